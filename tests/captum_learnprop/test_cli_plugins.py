"""The command group and ``learnprop plugins``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from fake_distributions import write_distribution

from captum_learnprop import cli as cli_module
from captum_learnprop.cli import COMMANDS, cli
from captum_learnprop.errors import LearnpropError
from zennit_rules.errors import RuleError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions with one plugin that cannot be imported."""
    folder = tmp_path / "site"
    write_distribution(
        folder,
        "bad-dist",
        {"bad": "bad_cli_plugin"},
        {"bad_cli_plugin": "raise RuntimeError('out of order')"},
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", raising=False)
    return folder


def learnprop(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="learnprop")


class TestGroup:
    def test_help_names_every_command(self) -> None:
        for result in (learnprop("--help"), learnprop("-h"), learnprop()):
            assert result.exit_code == 0
            assert all(name in result.output and text in result.output for name, text in COMMANDS.items())

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_help(self, name: str) -> None:
        result = learnprop(name, "--help")
        assert result.exit_code == 0
        assert f"Usage: learnprop {name}" in result.output

    def test_help_does_not_import_torch(self) -> None:
        code = (
            "import sys; from captum_learnprop.cli import cli\n"
            "try: cli.main(['--help'])\n"
            "except SystemExit: sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

    def test_version(self) -> None:
        assert learnprop("--version").output == f"learnprop {metadata.version('captum-learnprop')}\n"

    @pytest.mark.parametrize("args", [["no-such-command"], ["--no-such-option"], ["plugins", "extra"], ["run"]])
    def test_wrong_usage_is_one_line_and_exit_code_2(self, args: list[str]) -> None:
        result = learnprop(*args)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "--help')" in result.stderr

    @pytest.mark.parametrize(
        "error", [LearnpropError("no\nluck"), RuleError("no luck"), click.ClickException("no luck")]
    )
    def test_users_error_is_one_line_and_exit_code_1(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        use_command(monkeypatch, error)
        result = learnprop("demo")
        assert result.exit_code == 1
        assert result.stderr == "error: no luck\n"

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_command(monkeypatch, LearnpropError("no luck"))
        assert isinstance(learnprop("--debug", "demo").exception, LearnpropError)

    def test_fault_of_the_program_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_command(monkeypatch, ValueError("a bug"))
        assert isinstance(learnprop("demo").exception, ValueError)

    def test_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_command(monkeypatch, KeyboardInterrupt())
        result = learnprop("demo")
        assert result.exit_code == 130
        assert "error: interrupted" in result.stderr


def use_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Replace every command by one that fails."""

    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli_module.LazyGroup, "get_command", lambda *_: failing)


class TestPlugins:
    def test_table(self, site: Path) -> None:
        result = learnprop("plugins")
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert lines[0].split() == ["name", "version", "owner", "status", "hooks"]
        version = metadata.version("captum-learnprop")
        assert lines[1].split()[:5] == ["builtin", version, "captum-learnprop", "ok", "composites,"]
        assert lines[2].split() == ["bad", "1.0", "bad-dist", "failed"]
        assert "bad: RuntimeError: out of order" in lines
        assert any(line.split()[:3] == ["gate", "channel", "ok"] for line in lines)
        assert result.stderr == ""

    def test_json(self, site: Path) -> None:
        plugins = json.loads(learnprop("plugins", "--json").output)
        keys = {"name", "version", "owner", "hooks", "records", "status", "error"}
        assert all(set(plugin) == keys for plugin in plugins)
        assert [(plugin["name"], plugin["status"]) for plugin in plugins] == [
            ("builtin", "ok"),
            ("bad", "failed"),
        ]

    def test_strict(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", "1")
        result = learnprop("plugins")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: plugin 'bad' (bad-dist 1.0) was left out: RuntimeError")

    def test_off(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", "1")
        assert "disabled" in learnprop("plugins").output
