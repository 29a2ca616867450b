"""Installed distributions for tests: a ``dist-info`` folder and modules, in a folder on ``sys.path``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUP = "captum_learnprop"


def write_distribution(
    site: Path, name: str, entry_points: dict[str, str], modules: dict[str, str], version: str = "1.0"
) -> None:
    """Install a distribution.

    Args:
        site: Folder on ``sys.path``.
        name: Name of the distribution.
        entry_points: Module by name of the plugin.
        modules: Source by name of the module.
        version: Version of the distribution.
    """
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{plugin} = {module}" for plugin, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)


def install_project(project: Path, site: Path) -> None:
    """Install a project from its ``pyproject.toml`` as pip would, without a build backend or a network."""
    with open(project / "pyproject.toml", "rb") as file:
        config: dict[str, Any] = tomllib.load(file)
    metadata = config["project"]
    write_distribution(site, metadata["name"], metadata["entry-points"][GROUP], {}, metadata["version"])
    for package in config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(project / package, site / package)
