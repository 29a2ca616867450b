"""The house, drawn from its code: which file imports which, and that no arrow runs up or in a circle.

Imports inside functions count like any other; a room is a folder, a floor a set of rooms.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zennit_rules", "captum_learnprop")

#: Rooms and single files by floor, from the ground up; an arrow may stay on its floor or run down.
FLOORS = {
    "zennit_rules": [
        ["_compat", "errors", "_moved", "files", "rule_file"],
        ["core"],
        ["gates"],
        ["rules"],
        ["linear_canonizer", "ready", "rule_document"],
        ["batch_norm_canonizer", "skip_canonizer"],
        ["canonizers", "ruleset"],
        ["composites"],
        ["__init__"],
    ],
    "captum_learnprop": [
        ["_compat", "errors"],
        ["chunks", "files", "forward", "html_page", "progress", "tables", "wording"],
        [
            "targets",
            "maps",
            "reparametrized",
            "reinitialization",
            "images",
            "image_lists",
            "plot",
            "plugins",
            "attribution_store",
            "attribution_predictions",
            "attribution_curves",
            "attribution_index",
            "attribution_shards",
            "claims",
        ],
        ["scenes"],
        ["training"],
        ["attribution"],
        ["evaluation"],
        ["benchmark"],
        ["models"],
        ["explanation"],
        ["web"],
        ["commands"],
        ["cli", "batches"],
        ["__init__"],
    ],
}

#: Rooms of a room, from the ground up.
INNER_FLOORS = {
    "captum_learnprop.attribution": [
        ["checked_inputs", "rewards", "shown", "suffix"],
        ["rules", "extremal", "tokens"],
        ["__init__"],
    ],
}

#: Where a module may be imported inside a function: errors, files and plugins must not wait for torch, which
#: ``zennit_rules`` imports; a command imports the file of its work, see ``captum_learnprop.commands``.
DEFERRED = ("captum_learnprop.errors", "captum_learnprop.files", "captum_learnprop.plugins")
WORK = "captum_learnprop.commands._"

#: Packages that are extras, or slow to import.
OPTIONAL = (
    "efficientnet_lite_pytorch", "h5py", "mlxtend", "skimage", "sklearn", "timm", "torch.utils.tensorboard",
    "transformers", "huggingface_hub",
)  # fmt: skip


def module_name(path: Path) -> str:
    """Dotted name of a file; a package's own file ends in ``__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_name(path): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}


def imports(name: str, *, inside: bool = False) -> Iterator[str]:
    """Whole names that a file imports; with ``inside``, only those imported inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    nodes: Iterator[ast.AST] = ast.walk(tree)
    if inside:
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        nodes = (node for function in functions for node in ast.walk(function))
    package = name.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}"


def home(imported: str) -> str | None:
    """The file that an imported name comes from; None outside of the project."""
    if imported.partition(".")[0] not in PACKAGES:
        return None
    while imported:
        for candidate in (imported, f"{imported}.__init__"):
            if candidate in MODULES:
                return candidate
        imported = imported.rpartition(".")[0]
    return None


def arrows(name: str) -> set[str]:
    """Files of the project that a file imports."""
    return {found for found in map(home, imports(name)) if found is not None and found != name}


ARROWS = {name: arrows(name) for name in MODULES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def place(name: str, package: str, floors: list[list[str]]) -> tuple[int, str]:
    """Floor and room of a file below a package."""
    room = name.removeprefix(f"{package}.").partition(".")[0]
    (floor,) = [index for index, rooms in enumerate(floors) if room in rooms]
    return floor, room


def test_no_circle_of_files() -> None:
    assert circle(ARROWS) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_zennit_rules_knows_nothing_above() -> None:
    for name, found in ARROWS.items():
        if name.startswith("zennit_rules"):
            assert not [other for other in found if other.startswith("captum_learnprop")], name
            assert not [other for other in imports(name) if other.partition(".")[0] == "captum"], name


def climbing(package: str, floors: list[list[str]]) -> list[str]:
    """Arrows inside a package that run up."""
    inside = {name: {other for other in found if other.startswith(f"{package}.")}
              for name, found in ARROWS.items() if name.startswith(f"{package}.")}  # fmt: skip
    return [
        f"{name} -> {other}"
        for name, found in inside.items()
        for other in found
        if place(other, package, floors)[0] > place(name, package, floors)[0]
    ]


def rooms_of(package: str, floors: list[list[str]]) -> dict[str, set[str]]:
    """Rooms that each room of a package imports from."""
    rooms: dict[str, set[str]] = {}
    for name, found in ARROWS.items():
        for other in found if name.startswith(f"{package}.") else ():
            if other.startswith(f"{package}."):
                room, neighbour = place(name, package, floors)[1], place(other, package, floors)[1]
                if room != neighbour:
                    rooms.setdefault(room, set()).add(neighbour)
    return rooms


@pytest.mark.parametrize("package", [*FLOORS, *INNER_FLOORS])
def test_arrows_run_down(package: str) -> None:
    floors = {**FLOORS, **INNER_FLOORS}[package]
    assert climbing(package, floors) == []
    assert circle(rooms_of(package, floors)) == []


def test_an_arrow_that_runs_up_is_found() -> None:
    for package, floors in {**FLOORS, **INNER_FLOORS}.items():
        assert climbing(package, floors[::-1]) != []


def may_wait(name: str, imported: str) -> bool:
    """Whether a file may import something inside a function."""
    if name.startswith("captum_learnprop.commands."):
        return imported.startswith(WORK) and not name.startswith(WORK)
    return name.startswith(DEFERRED) or imported.startswith(OPTIONAL)


def test_imports_stand_at_the_top() -> None:
    late = [f"{name}: {found}" for name in MODULES for found in imports(name, inside=True) if not may_wait(name, found)]
    assert late == []


@pytest.mark.parametrize(
    ("name", "imported", "may"),
    [
        ("captum_learnprop.commands.train", "captum_learnprop.commands._train_rules", True),
        ("captum_learnprop.commands.train", "captum_learnprop.training.trainer.RuleTrainer", False),
        ("captum_learnprop.commands.train", "torch", False),
        ("captum_learnprop.commands._train_rules", "captum_learnprop.commands._objective.parse", False),
        ("captum_learnprop.maps", "captum_learnprop.plot", False),
        ("captum_learnprop.maps", "torch", False),
        ("captum_learnprop.attribution_store", "h5py", True),
    ],
)
def test_what_may_be_imported_inside_a_function(name: str, imported: str, may: bool) -> None:
    assert may_wait(name, imported) is may


def test_every_room_says_what_it_is_for() -> None:
    for name, path in MODULES.items():
        if name.endswith("__init__"):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
