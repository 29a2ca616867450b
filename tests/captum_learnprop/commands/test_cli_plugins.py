"""The command group and ``learnprop plugins``."""

from __future__ import annotations

import errno
import importlib
import json
import os
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
from captum_learnprop.errors import LearnpropError, PluginWarning
from captum_learnprop.plugins import PluginManager
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


class TestWhatPluginsDo:
    """A plugin that prints, breaks and exits must not cost the program, nor what others read of it."""

    NOISY = (
        "import ctypes, os, subprocess, sys\n"
        "from captum_learnprop.plugins import *\n"
        "print('from python')\n"
        "print('from the first stdout', file=sys.__stdout__)\n"
        "os.write(1, b'from the descriptor\\n')\n"
        "ctypes.CDLL(None).puts(b'from C')\n"
        "subprocess.run(['echo', 'from a child'])\n"
        "@hookimpl\n"
        "def learnprop_metrics():\n"
        "    print('from a hook')\n"
        "    yield MetricRecord('answer', 'lazy_cli_plugin:answer', 'a metric')\n"
    )

    def test_json_is_alone_on_stdout(self, site: Path) -> None:
        modules = {"noisy_cli_plugin": self.NOISY, "lazy_cli_plugin": "print('from a factory')\nanswer = len"}
        write_distribution(site, "noisy-dist", {"noisy": "noisy_cli_plugin"}, modules)
        program = [sys.executable, "-m", "captum_learnprop.cli", "plugins", "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
        assert [plugin["status"] for plugin in json.loads(done.stdout)] == ["ok", "failed", "ok"]
        said = ("python", "the first stdout", "the descriptor", "C", "a child", "a hook", "a factory")
        assert done.stderr.splitlines() == [f"from {place}" for place in said]

    def test_json_is_alone_in_a_program_with_another_stdout(self, site: Path) -> None:
        source = self.NOISY.replace("lazy_cli_plugin:answer", "math:sqrt")
        write_distribution(site, "noisy-dist", {"noisy": "noisy_cli_plugin_2"}, {"noisy_cli_plugin_2": source})
        result = learnprop("plugins", "--json")
        assert json.loads(result.stdout)[2]["name"] == "noisy"
        assert result.stderr.splitlines() == ["from python", "from a hook"]

    def test_the_listing_names_every_broken_record(self, site: Path) -> None:
        source = (
            "from captum_learnprop.plugins import *\n"
            "@hookimpl\n"
            "def learnprop_gates():\n"
            "    yield GateRecord('first', 'no_such_package:x', 'a gate')\n"
            "    yield GateRecord('second', len, 'a gate')\n"
            "    yield GateRecord('third', 'odd_cli_gates:Third', 'a gate')\n"
        )
        gates = "from zennit_rules.gates import ChannelGate\nclass Third(ChannelGate):\n    name = '3rd'\n"
        write_distribution(
            site, "odd-dist", {"odd": "odd_cli_plugin"}, {"odd_cli_plugin": source, "odd_cli_gates": gates}
        )
        lines = learnprop("plugins").stdout.splitlines()
        assert any(line.startswith("odd: gate 'first': cannot import 'no_such_package:x'") for line in lines)
        assert any(line.startswith("odd: gate 'second': builtins.len is no gate; name a class") for line in lines)
        assert ["gate", "second", "failed", "a", "gate"] in [line.split() for line in lines]
        records = json.loads(learnprop("plugins", "--json").stdout)[2]["records"]
        assert [record["status"] for record in records] == ["failed", "failed", "failed"]
        assert "its class calls itself '3rd'" in records[2]["error"]

    @pytest.mark.parametrize("error", ["GeneratorExit", "SystemExit(0)", "RuntimeError('out of order')", "OSError(9)"])
    def test_an_error_that_nobody_caught_names_the_plugin(
        self, site: Path, monkeypatch: pytest.MonkeyPatch, error: str
    ) -> None:
        source = self.NOISY.split("print(")[0] + "def use(): raise " + error + "\n"
        source += "@hookimpl\ndef learnprop_metrics():\n    yield MetricRecord('answer', use, 'a metric')\n"
        module = f"used_{error.partition('(')[0].lower()}"
        write_distribution(site, "used-dist", {"used": module}, {module: source})
        with pytest.warns(PluginWarning, match="bad"):
            PluginManager.discover()

        @click.command()
        def using() -> None:
            importlib.import_module(module).use()

        monkeypatch.setattr(cli_module.LazyGroup, "get_command", lambda *_: using)
        result = learnprop("demo")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: plugin 'used' (used-dist 1.0): {error.partition('(')[0]}")
        assert result.stderr.count("\n") == 1


class TestFullDisk:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
    def test_is_no_fault_of_the_program(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        use_command(monkeypatch, OSError(number, os.strerror(number), "/out/a.csv"))
        result = learnprop("demo")
        assert (result.exit_code, result.stderr) == (1, f"error: cannot write /out/a.csv: {os.strerror(number)}\n")
        use_command(monkeypatch, OSError(number, os.strerror(number)))
        assert learnprop("demo").stderr == f"error: cannot write: {os.strerror(number)}\n"

    def test_other_errors_of_the_system_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_command(monkeypatch, OSError(errno.EBADF, "a bug"))
        assert isinstance(learnprop("demo").exception, OSError)


def test_a_misspelled_command() -> None:
    result = learnprop("atribute")
    assert result.exit_code == 2
    assert result.stderr == "error: No such command 'atribute'; did you mean 'attribute'? (see 'learnprop --help')\n"


def test_names_with_bytes_that_are_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("x", callback=lambda: click.echo("wrote a\udcff"))
    monkeypatch.setattr(cli_module.LazyGroup, "get_command", lambda *_: command)
    assert learnprop("demo").stdout_bytes == b"wrote a\xff\n"
