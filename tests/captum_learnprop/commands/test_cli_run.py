"""``learnprop run``: scripts run as Python would run them, with plugins and trained rule sets in place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from fake_distributions import install_project, write_distribution
from PIL import Image

import zennit_rules
from captum_learnprop.cli import cli
from captum_learnprop.plugins import get_manager

EXAMPLES = Path(__file__).parents[3] / "examples"
FEED_FORWARD = EXAMPLES / "feed_forward.py"
SMALL = ["--size", "32", "--n-outputs", "10"]


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run registers."""
    from zennit.composites import COMPOSITES

    from zennit_rules.gates import GATES

    monkeypatch.delenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", raising=False)
    before = [(registry, dict(registry)) for registry in (GATES, COMPOSITES)]
    get_manager.cache_clear()
    yield
    get_manager.cache_clear()
    for registry, content in before:
        registry.clear()
        registry.update(content)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, args)], prog_name="learnprop")


def maps(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]


class TestScript:
    @pytest.fixture
    def script(self, tmp_path: Path) -> Iterator[Path]:
        (tmp_path / "beside.py").write_text("HERE = 'beside'")
        path = tmp_path / "script.py"
        path.write_text(
            "import sys, beside\nfrom zennit.composites import COMPOSITES\n"
            "print(__name__, sys.argv, beside.HERE, 'learned_gradient' in COMPOSITES, sys.path[0])\n"
        )
        yield path
        sys.modules.pop("beside", None)

    def test_runs_as_main_program(self, script: Path) -> None:
        argv, path, main = sys.argv[:], sys.path[:], sys.modules["__main__"]
        result = run(script, "a", "--trained", "x", "--help", "--", "-m")
        assert result.exit_code == 0, result.output
        expected = [str(script), "a", "--trained", "x", "--help", "--", "-m"]
        assert result.stdout == f"__main__ {expected} beside True {script.parent}\n"
        assert (sys.argv, sys.path, sys.modules["__main__"]) == (argv, path, main)

    def test_runs_a_module(self, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(script.parent)
        result = run("-m", "script", "--flag")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"__main__ {[str(script), '--flag']} beside True {script.parent}\n"

    @pytest.mark.parametrize(
        ("statement", "code"), [("sys.exit(7)", 7), ("sys.exit()", 0), ("sys.exit('no')", 1), ("pass", 0)]
    )
    def test_exit_code_is_the_scripts(self, tmp_path: Path, statement: str, code: int) -> None:
        path = tmp_path / "exits.py"
        path.write_text(f"import sys\n{statement}\n")
        assert run(path).exit_code == code

    @pytest.mark.parametrize("error", ["RuntimeError", "ValueError"])
    def test_exception_is_reported_as_python_does(self, tmp_path: Path, error: str) -> None:
        path = tmp_path / "fails.py"
        path.write_text(f"def inner():\n    raise {error}('broken')\ninner()\n")
        result = run(path)
        plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
        assert result.exit_code == plain.returncode == 1
        assert result.stderr == plain.stderr

    def test_missing_script_or_module(self, tmp_path: Path) -> None:
        for args in (["no_such_script.py"], ["-m", "no_such_module"], ["-m", "no.such.module"]):
            result = run(*args)
            assert result.exit_code == 2
            assert result.stderr.startswith(f"error: there is no {'module' if '-m' in args else 'script'}")

    def test_faulty_plugin_is_one_warning_line(
        self, tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_distribution(tmp_path / "site", "bad-dist", {"bad": "bad_run"}, {"bad_run": "raise RuntimeError('x')"})
        monkeypatch.syspath_prepend(tmp_path / "site")
        with pytest.warns(UserWarning, match="plugin 'bad'"):
            result = run(script)
        assert result.exit_code == 0
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-m", "captum_learnprop.cli", "run", str(script)]
        program = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert "warning: plugin 'bad' (bad-dist 1.0) was left out: RuntimeError: x\n" in program.stderr


class TestTrainedOption:
    @pytest.mark.parametrize("value", ["mine", "mine=", "=x", "two words=x", "mine=no_such_file.safetensors"])
    def test_bad_value(self, value: str) -> None:
        result = run("--trained", value, FEED_FORWARD)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: Invalid value for '--trained'")

    def test_given_twice(self, tmp_path: Path) -> None:
        file = tmp_path / "x.safetensors"
        file.touch()
        result = run("--trained", f"a={file}", "--trained", f"a={file}", FEED_FORWARD)
        assert "'a' is given twice" in result.stderr

    def test_truncated_file(self, tmp_path: Path, images: Path) -> None:
        file = tmp_path / "x.safetensors"
        file.write_bytes(b"\x10")
        arguments = [images, tmp_path / "maps" / "{sample}.png", "--composite", "mine", *SMALL]
        result = run("--trained", f"mine={file}", FEED_FORWARD, *arguments)
        assert result.exit_code == 1
        assert str(file) in result.stderr


# A script with one composite after the other, in one process that does not know learnprop.
TWICE = """
import runpy, sys

_, *sys.argv = sys.argv
given = sys.argv[:]
for composite in ("guided_backprop", "learned_gradient"):
    sys.argv = [*given, "--composite", composite]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print(composite, code)
"""


class TestFeedForward:
    def test_plain_python_offers_zennits_composites(self, tmp_path: Path, images: Path) -> None:
        out = tmp_path / "maps"
        script = tmp_path / "twice.py"
        script.write_text(TWICE)
        command = [sys.executable, script, FEED_FORWARD, images, out / "{sample}.png", *SMALL]
        program = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert program.stdout.splitlines()[-2:] == ["guided_backprop 0", "learned_gradient 2"], program.stderr
        assert len(maps(out)) == 2

    @pytest.mark.parametrize(
        ("ours", "zennits"), [("learned_gradient", None), ("learned_guided_backprop", "guided_backprop")]
    )
    def test_untrained_composite_equals_its_start(
        self, tmp_path: Path, images: Path, ours: str, zennits: str | None
    ) -> None:
        for name, composite in (("ours", ours), ("zennits", zennits)):
            option = [] if composite is None else ["--composite", composite]
            result = run(FEED_FORWARD, images, tmp_path / name / "{sample}.png", *option, *SMALL)
            assert result.exit_code == 0, result.output
        for found, expected in zip(maps(tmp_path / "ours"), maps(tmp_path / "zennits"), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_composite_of_an_installed_plugin(self, tmp_path: Path, images: Path) -> None:
        install_project(EXAMPLES / "plugin", tmp_path / "site")
        command = [sys.executable, "-m", "captum_learnprop.cli", "run", FEED_FORWARD, images]
        options = [tmp_path / "maps" / "{sample}.png", "--composite", "blended_gradient", *SMALL]
        environment = os.environ | {
            "PYTHONPATH": str(tmp_path / "site"),
            "CAPTUM_LEARNPROP_STRICT_PLUGINS": "1",
        }
        program = subprocess.run(
            list(map(str, [*command, *options])), capture_output=True, text=True, env=environment, check=False
        )
        assert program.returncode == 0, program.stderr
        assert "0.png: class" in program.stdout
        assert len(maps(tmp_path / "maps")) == 2

    def test_trained_rule_set(self, tmp_path: Path, images: Path) -> None:
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=10).eval()
        rules = zennit_rules.RuleSet.build(
            model,
            torch.zeros(1, 3, 32, 32),
            composite="learned_gradient",
            gate="channel",
            start="guided_backprop",
        )
        rules.save(tmp_path / "start.safetensors")
        with torch.no_grad():
            for parameter in rules.parameters():
                parameter.normal_()
        rules.save(tmp_path / "trained.safetensors")

        pictures = {}
        for name in ("start", "trained", "guided_backprop"):
            file, out = tmp_path / f"{name}.safetensors", tmp_path / name / "{sample}.png"
            option = ["--trained", f"{name}={file}"] if file.exists() else []
            result = run(*option, FEED_FORWARD, images, out, "--composite", name, *SMALL)
            assert result.exit_code == 0, result.output
            pictures[name] = maps(out.parent)
        # The parameters come from the file: one file is guided backprop, the other is something else.
        np.testing.assert_array_equal(pictures["start"], pictures["guided_backprop"])
        assert (np.array(pictures["trained"]) != np.array(pictures["start"])).any()
