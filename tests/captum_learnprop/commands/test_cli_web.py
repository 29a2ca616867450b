"""``learnprop web``: what it offers, and what it refuses before anything is served."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from captum_learnprop.cli import cli
from captum_learnprop.commands import _web_page
from captum_learnprop.web.guard import PASSWORD
from captum_learnprop.web.server import Server

NET = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, ["web", *arguments], catch_exceptions=True, **options)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What would have been served, in place of a server that only Ctrl-C ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PASSWORD, raising=False)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("cat\ndog\nboat\n")
    found: dict[str, Any] = {}

    @contextmanager
    def serve(server: Server, offer: Any) -> Iterator[str]:
        found.update(server=server, offer=offer)
        yield "http://127.0.0.1:7860/"

    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    module = ModuleType("captum_learnprop.web.page.serve")
    module.served = serve  # type: ignore[attr-defined]
    monkeypatch.setattr(_web_page, "import_module", lambda name: module)
    monkeypatch.setattr(_web_page, "threading", SimpleNamespace(Event=Interrupted))
    return found


def test_the_given_model_comes_first_with_its_options(served: dict[str, Any]) -> None:
    options = ["--size", "16", "--mean", "0.5", "--std", "0.2", "--classes", "names.txt", "--seed", "3"]
    result = run("--model", "net.py:make", *options, "--also", "reference:vit-digits", "--port", "8000")
    assert result.exit_code == 0, result.output
    assert "net.py:make: 3 classes" in result.output
    assert "open http://127.0.0.1:7860/ (Ctrl-C ends it)\nended" in result.output
    offer, server = served["offer"], served["server"]
    assert offer.names[:2] == ["net.py:make", "reference:vit-digits"]
    assert (server.host, server.port, server.password, server.images) == ("127.0.0.1", 8000, None, None)
    model = offer.model("net.py:make")
    assert model.names == ["cat", "dog", "boat"]
    assert (model.choice.seed, model.known.prepare.mean, model.known.prepare.crop) == (3, (0.5,) * 3, 16)


@pytest.mark.parametrize(("normalization", "mean"), [("none", (0.0,) * 3), ("imagenet", (0.485, 0.456, 0.406))])
def test_normalization(served: dict[str, Any], normalization: str, mean: tuple[float, ...]) -> None:
    result = run("--model", "net.py:make", "--size", "16", "--normalization", normalization)
    assert result.exit_code == 0, result.output
    assert served["offer"].model("net.py:make").known.prepare.mean == mean


def test_without_a_model_one_that_is_installed_is_taken(served: dict[str, Any]) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "reference:vit-digits" in served["offer"].names
    assert not any(name.startswith("net") for name in served["offer"].names)


def test_the_password_comes_from_the_environment_or_a_prompt(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--password", input="secret\nsecret\n").exit_code == 0
    assert served["server"].password == "secret"
    monkeypatch.setenv(PASSWORD, "other")
    assert run("--host", "0.0.0.0").exit_code == 0
    assert (served["server"].host, served["server"].password) == ("0.0.0.0", "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "32"], "--size belongs to a model: name it with --model"),
        (["--rules", "r.safetensors"], "--rules belongs to a model: name it with --model"),
        (["--model", "net.py:mak"], "no function 'mak'"),
        (["--model", "reference:vgg-digits", "--size", "64", "--rules", "none.safetensors"], "none.safetensors"),
        (["--model", "reference:vgg-digits", "--size", "64", "--classes", "names.txt"], "3 names are known"),
        (["--images", "nowhere"], "nowhere"),
        (["--port", "0"], "0 is not in the range"),
    ],
)
def test_mistakes(served: dict[str, Any], arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert "server" not in served


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("captum_learnprop.web.page")]:
        monkeypatch.delitem(sys.modules, name)
    result = run()
    assert result.exit_code == 1
    assert "pip install 'captum-learnprop[web]'" in result.output
    assert "gradio" in result.output


def test_other_machines_need_a_password(served: dict[str, Any]) -> None:
    result = run("--host", "0.0.0.0")
    assert result.exit_code == 1
    assert "--host 0.0.0.0 lets other machines in: set a password with --password" in result.output
    assert "server" not in served


def test_passwords_are_compared_whole_and_never_shown() -> None:
    server = Server("0.0.0.0", password="s3cret")
    assert (server.local, Server().local, Server("localhost").local) == (False, True, True)
    given = ("s3cret", "s3cre", "", "geheim\u00fc")
    assert [server.lets_in("anybody", one) for one in given] == [True, False, False, False]
    assert not Server().lets_in("anybody", "")
    assert "s3cret" not in repr(server)
