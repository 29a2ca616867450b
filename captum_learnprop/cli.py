"""The ``learnprop`` command.

Commands live in ``captum_learnprop.commands``, one module each, and are imported when they are asked for:
help and listings must not wait for torch.
"""

from __future__ import annotations

import errno
import importlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from captum_learnprop.commands._log import logs_shown
from captum_learnprop.commands._memory import keep_freed_memory
from captum_learnprop.errors import LearnpropError, PluginWarning, SceneWarning, did_you_mean

__all__ = ["LazyGroup", "cli", "main"]

#: Short help by command; the module ``captum_learnprop.commands.<name>`` holds the click command ``command``.
COMMANDS: dict[str, str] = {
    "demo": "Explain a real net on photographs by rules trained before.",
    "explain": "Explain a picture: prediction, map and cost.",
    "web": "Open a page that explains pictures in the browser.",
    "attribute": "Write attributions of a model for a folder of images.",
    "merge": "Gather what several processes of `attribute` wrote.",
    "train": "Learn the rules of a model from a folder of images.",
    "analyse": "Say what maps depend on: weights, class or image.",
    "evaluate": "Compare methods on scenes with known ground truth.",
    "data": "Fetch what experiments need and the project may not ship.",
    "plugins": "List plugins: version, owner, hooks, records and status.",
    "run": "Run a script unchanged, with every plugin loaded.",
}

# What a shell expects of a program ended by Ctrl-C: 128 + SIGINT.
_INTERRUPTED = 130


# Full, over the quota, read-only, or above the largest size of a file: no fault of the program, whatever was written.
_DISK = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class LazyGroup(click.Group):
    """A group that imports a command when it is used, and prints a user's error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"captum_learnprop.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; exit codes are 0, 1 (the user's error) and 2 (wrong usage)."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        options = extra.setdefault("obj", {"debug": False})
        _print_any_name()
        with _short_warnings(), logs_shown():
            try:
                result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            except click.Abort:
                _fail("interrupted", _INTERRUPTED)
            # What plugins raise must not end the program without a word, whatever it is.
            except BaseException as error:
                message = None if options["debug"] else _message(error)
                if message is None:
                    raise
                _fail(message, getattr(error, "exit_code", 1))
        # Without standalone mode, click hands back the exit code of `ctx.exit` or what the command returns.
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="captum-learnprop", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Trainable backward propagation rules for Captum and Zennit."""
    ctx.ensure_object(dict)["debug"] = debug
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run ``learnprop`` as a program."""
    keep_freed_memory()
    cli.main(prog_name="learnprop")


def _message(error: BaseException) -> str | None:
    """What to tell the user of an error; None for a fault of the program, and for an exit.

    The errors of both packages are told by their module: importing them here would import torch.
    """
    plugin = _plugin_of(error)
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, LearnpropError) or (
        isinstance(error, ValueError) and package in {"captum_learnprop", "zennit_rules"}
    ):
        return str(error) if plugin is None or plugin in str(error) else f"{error} (in {plugin})"
    if plugin is not None:
        return f"{plugin}: {type(error).__name__}" + (f": {error}" if str(error) else "")
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}"
    return None


def _plugin_of(error: BaseException) -> str | None:
    """The plugin in which an error was raised, if plugins were loaded at all."""
    loader = sys.modules.get("captum_learnprop.plugins.manager")
    found: str | None = None if loader is None else loader.plugin_at_fault(error)
    return found


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message} (see '{error.ctx.command_path} --help')"
    return message


def _print_any_name() -> None:
    """Let file names with bytes that are no text be printed as they are, and not end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings about plugins and scenes as one line, without the place in our code that noticed them."""
    original = warnings.formatwarning

    def short(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> str:
        if issubclass(category, (PluginWarning, SceneWarning)):
            return f"warning: {message}\n"
        return original(message, category, *rest, **named)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = original


if __name__ == "__main__":
    main()
