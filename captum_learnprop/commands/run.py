"""``learnprop run``: an unchanged script, in a process where every plugin is loaded."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import click

from captum_learnprop.plugins.manager import get_manager

__all__ = ["command"]


def _parse_trained(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Read ``NAME=PATH`` pairs."""
    pairs: list[tuple[str, Path]] = []
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name.isidentifier() or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH, such as my_rules=rules.safetensors")
        if name in dict(pairs):
            raise click.BadParameter(f"{name!r} is given twice")
        if not Path(path).is_file():
            raise click.BadParameter(f"there is no file {path!r} for {name!r}")
        pairs.append((name, Path(path)))
    return pairs


# Everything after SCRIPT belongs to the script, also what looks like an option of ours.
@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--trained",
    metavar="NAME=PATH",
    multiple=True,
    callback=_parse_trained,
    help="Register the trained rule set PATH as the composite NAME. May be repeated.",
)
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is the name of a module, as for 'python -m'.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(trained: list[tuple[str, Path]], as_module: bool, script: str, args: tuple[str, ...]) -> None:
    """Run SCRIPT with ARGS as 'python SCRIPT ARGS' would, after loading every plugin.

    Scripts that look up zennit.composites.COMPOSITES then find our composites, those of plugins, and those
    named by --trained. Options of learnprop go before SCRIPT. The exit code is the script's.
    """
    from captum_learnprop.commands import _register_rules

    if not as_module and not Path(script).is_file():
        raise click.UsageError(f"there is no script {script!r}")
    get_manager()
    for name, path in trained:
        _register_rules.register_rules(name, path)
    first = os.getcwd() if as_module else str(Path(script).resolve().parent)
    with _as_program([script, *args], first):
        if not as_module:
            _execute(lambda: runpy.run_path(script, run_name="__main__"))
            return
        if not _module_exists(script):
            raise click.UsageError(f"there is no module {script!r}")
        _execute(lambda: runpy.run_module(script, run_name="__main__", alter_sys=True))


@contextmanager
def _as_program(argv: list[str], first_path: str) -> Iterator[None]:
    """Give the script its arguments and the import path that Python would give it."""
    arguments, path = sys.argv[:], sys.path[:]
    sys.argv[:] = argv
    sys.path.insert(0, first_path)
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = arguments, path


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _execute(program: Callable[[], object]) -> None:
    """Run a program; its exception is reported as Python would, not as an error of ours.

    ``SystemExit`` passes through, and with it the exit code.
    """
    try:
        program()
    except Exception as error:
        shown = error.with_traceback(_without_runner(error.__traceback__))
        sys.excepthook(type(shown), shown, shown.__traceback__)
        sys.exit(1)


def _without_runner(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that starts in the script."""
    while traceback is not None and _is_runner(traceback.tb_frame.f_code.co_filename):
        traceback = traceback.tb_next
    return traceback


def _is_runner(filename: str) -> bool:
    return filename in {__file__, runpy.__file__, "<frozen runpy>"}
