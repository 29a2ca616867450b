"""Plugins: records, the loader, faulty plugins, the switches, and the example plugin as it is installed."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from captum.attr import Saliency
from fake_distributions import install_project, write_distribution
from torch import Tensor, nn
from zennit.core import Composite

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.errors import LearnpropError, PluginWarning
from captum_learnprop.plugins import (
    API_VERSION,
    CompositeRecord,
    GateRecord,
    MethodRecord,
    MetricRecord,
    ModelRecord,
    ObjectiveRecord,
    PluginError,
    PluginManager,
    get_manager,
    hookimpl,
    specs,
)
from zennit_rules import LearnedGradient, RuleError, RuleSet
from zennit_rules.gates import Gate

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "plugin"
KINDS = list(specs.RECORD_TYPES)

HEADER = "from captum_learnprop.plugins import *\n"
GOOD = HEADER + "@hookimpl\ndef learnprop_metrics():\n    yield MetricRecord('answer', 'math:sqrt', 'a metric')\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", raising=False)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def registries() -> Iterator[None]:
    """Undo what a test registers in the gates of ``zennit_rules`` and in zennit's composites."""
    from zennit.composites import COMPOSITES

    from zennit_rules.gates import GATES

    before = [(registry, dict(registry)) for registry in (GATES, COMPOSITES)]
    get_manager.cache_clear()
    yield
    get_manager.cache_clear()
    for registry, content in before:
        registry.clear()
        registry.update(content)


def status_of(manager: PluginManager, name: str) -> dict:
    return next(plugin for plugin in manager.info() if plugin["name"] == name)


def discover_with_warning(match: str) -> PluginManager:
    with pytest.warns(PluginWarning, match=match):
        return PluginManager.discover()


class TestRecords:
    @pytest.mark.parametrize("name", ["", "Gate", "my-gate", "1st", "two words", "_x", "x_", "a__b", None])
    def test_bad_name(self, name: str) -> None:
        with pytest.raises(PluginError, match=r"GateRecord name .* lower-case snake identifier like 'my_gate'"):
            GateRecord(name, "math:sqrt", "a gate")

    @pytest.mark.parametrize("factory", ["math.sqrt", "math:", ":sqrt", "a b:c", "math:1", 3, None])
    def test_bad_factory(self, factory: object) -> None:
        with pytest.raises(PluginError, match="GateRecord 'x': factory"):
            GateRecord("x", factory, "a gate")  # type: ignore[arg-type]

    @pytest.mark.parametrize("summary", ["", "  ", "two\nlines", None])
    def test_bad_summary(self, summary: str) -> None:
        with pytest.raises(PluginError, match="one line of text"):
            GateRecord("x", "math:sqrt", summary)

    @pytest.mark.parametrize("version", ["1", None, True, 1.0])
    def test_bad_api_version(self, version: int) -> None:
        with pytest.raises(PluginError, match="api_version must be an integer"):
            GateRecord("x", "math:sqrt", "a gate", api_version=version)

    def test_factory_is_resolved_on_demand(self) -> None:
        assert MetricRecord("x", "os.path:join", "lazy").resolve()("a", "b") == str(Path("a", "b"))
        assert MetricRecord("x", len, "a callable").resolve() is len

    @pytest.mark.parametrize("factory", ["no_such_package:x", "math:no_such_name", "math:pi"])
    def test_unusable_factory_is_an_error_on_demand(self, factory: str) -> None:
        record = MetricRecord("x", factory, "broken")
        with pytest.raises(PluginError, match=f"metric 'x': .*{factory}"):
            record.resolve()

    def test_plugin_error_is_a_users_error(self) -> None:
        assert issubclass(PluginError, LearnpropError)
        assert issubclass(LearnpropError, ValueError)


class TestHooks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_hook_delivers(self, kind: str) -> None:
        record_type = specs.RECORD_TYPES[kind]
        record = record_type("thing", len, "a thing")
        plugin = type("Plugin", (), {record_type.hook: staticmethod(hookimpl(lambda: [record]))})
        manager = PluginManager(strict=True)
        manager.register(plugin(), "mine", owner="mine-dist", version="2.0")

        entry = manager.get(kind, "thing")
        assert (entry.record, entry.plugin, entry.owner, entry.version) == (
            record,
            "mine",
            "mine-dist",
            "2.0",
        )
        assert manager.available(kind) == {"thing": entry}
        assert manager.create(kind, "thing", "abc") == 3
        assert status_of(manager, "mine")["hooks"] == [record_type.hook]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_hook_is_documented(self, kind: str) -> None:
        record_type = specs.RECORD_TYPES[kind]
        text = getattr(specs, record_type.hook).__doc__
        assert "Example::" in text
        assert f"yield {record_type.__name__}(" in text
        assert ".. versionadded:: " in text
        readme = (EXAMPLE / "README.md").read_text()
        assert f"`{record_type.hook}` | `{record_type.__name__}`" in readme

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_example_of_a_hook_works(self, kind: str) -> None:
        record_type = specs.RECORD_TYPES[kind]
        text = inspect.getdoc(getattr(specs, record_type.hook)) or ""
        code = textwrap.dedent(text.partition("Example::")[2].partition(".. versionadded")[0])
        names = dict(vars(specs))
        exec(code, names)
        (record,) = names[record_type.hook]()
        assert type(record) is record_type
        assert record.name in code

    def test_every_specification_has_a_kind(self) -> None:
        hooks = {name for name in vars(specs) if name.startswith("learnprop_")}
        assert hooks == {record.hook for record in specs.RECORD_TYPES.values()}


class TestBuiltin:
    expected = (
        ("composite", {"learned_gradient", "learned_guided_backprop"}),
        ("gate", {"none", "element", "position", "channel", "quadrant", "feature"}),
        ("objective", {"agreement"}),
        (
            "method",
            {
                "learned_propagation",
                "learned_guided_backprop",
                "learned_lrp",
                "saliency",
                "input_x_gradient",
                "integrated_gradients",
                "guided_backprop",
                "deconvolution",
            },
        ),
        ("metric", {"deletion", "insertion", "average_precision", "pointing_game"}),
        ("model", {"torchvision", "digits_cnn"}),
    )

    @pytest.mark.parametrize(("kind", "names"), expected)
    def test_our_own_parts(self, site: Path, kind: str, names: set[str]) -> None:
        assert names <= set(PluginManager.discover(strict=True).available(kind))

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_factory_can_be_imported(self, site: Path, kind: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # our own records name things by their names of today
            for entry in PluginManager.discover(strict=True).available(kind).values():
                assert callable(entry.resolve())

    def test_listing_does_not_import_torch(self) -> None:
        code = (
            "import sys; from captum_learnprop.plugins import PluginManager; PluginManager.discover().info();"
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_the_manager_is_made_once(self, site: Path, registries: None) -> None:
        assert get_manager() is get_manager()


class TestEntryPoints:
    def test_good(self, site: Path) -> None:
        write_distribution(site, "good-dist", {"good": "good_plugin"}, {"good_plugin": GOOD}, version="1.2")
        manager = PluginManager.discover(strict=True)
        assert manager.create("metric", "answer", 4.0) == 2.0
        assert status_of(manager, "good") == {
            "name": "good",
            "version": "1.2",
            "owner": "good-dist",
            "hooks": ["learnprop_metrics"],
            "records": [
                {
                    "kind": "metric",
                    "name": "answer",
                    "summary": "a metric",
                    "factory": "math:sqrt",
                    "api_version": API_VERSION,
                    "status": "ok",
                    "error": None,
                }
            ],
            "status": "ok",
            "error": None,
        }

    def test_class_is_instantiated(self, site: Path) -> None:
        source = (
            HEADER
            + "class Plugin:\n    @hookimpl\n    def learnprop_metrics(self):\n"
            + "        return [MetricRecord('answer', 'math:sqrt', 'a metric')]\n"
        )
        write_distribution(site, "class-dist", {"mine": "class_plugin:Plugin"}, {"class_plugin": source})
        assert "answer" in PluginManager.discover(strict=True).available("metric")

    FAULTS: ClassVar[dict[str, tuple[str, str, str]]] = {
        "raises on import": ("raise RuntimeError('out of order')\n", "", "RuntimeError: out of order"),
        "exits on import": ("raise SystemExit(3)\n", "", "SystemExit: 3"),
        "closes a generator on import": ("raise GeneratorExit\n", "", "GeneratorExit"),
        "interrupts itself on import": ("raise KeyboardInterrupt\n", "", "KeyboardInterrupt"),
        "has an error of its own kind": (
            "class Stop(BaseException):\n    pass\nraise Stop('now')\n",
            "",
            "Stop: now",
        ),
        "closes a generator in a hook": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    yield GateRecord('x', len, 'x')\n"
            "    raise GeneratorExit\n",
            "",
            "GeneratorExit",
        ),
        "interrupts itself in a hook": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    raise KeyboardInterrupt\n",
            "",
            "KeyboardInterrupt",
        ),
        "exits in the constructor of its class": (
            "class Plugin:\n    def __init__(self):\n        raise SystemExit(1)\n",
            ":Plugin",
            "SystemExit: 1",
        ),
        "does not exist": ("", ":nothing", "AttributeError"),
        "raises in a hook": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    raise KeyError('lost')\n",
            "",
            "KeyError: 'lost'",
        ),
        "raises half-way": (
            GOOD + "@hookimpl\ndef learnprop_gates():\n    yield GateRecord('x', len, 'x')\n    1 / 0\n",
            "",
            "ZeroDivisionError",
        ),
        "bad record": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    yield GateRecord('Bad', len, 'x')\n",
            "",
            "GateRecord name 'Bad'",
        ),
        "wrong kind of record": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    yield MetricRecord('x', len, 'x')\n",
            "",
            "learnprop_gates must give GateRecord records",
        ),
        "no iterable": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    return 3\n",
            "",
            "must return an iterable of GateRecord",
        ),
        "wrong API version": (
            HEADER + "@hookimpl\ndef learnprop_gates():\n    yield GateRecord('x', len, 'x', api_version=7)\n",
            "",
            "gate 'x' wants plugin API version 7, but this captum-learnprop supports 1",
        ),
        "unknown hook": (
            HEADER + "@hookimpl\ndef learnprop_gate():\n    return []\n",
            "",
            "unknown hook 'learnprop_gate'; did you mean 'learnprop_gates'",
        ),
        "unknown argument": (
            HEADER + "@hookimpl\ndef learnprop_gates(manager):\n    return []\n",
            "",
            "manager",
        ),
        "no hook": (
            "def learnprop_gates():\n    return []\n",
            "",
            "it implements no hook .is @hookimpl missing",
        ),
        "class with arguments": (
            "class Plugin:\n    def __init__(self, x):\n        pass\n",
            ":Plugin",
            "it is the class Plugin, which cannot be constructed without arguments",
        ),
    }

    @pytest.mark.parametrize("fault", FAULTS)
    def test_faulty_plugin_is_left_out_and_named(self, site: Path, fault: str) -> None:
        source, attribute, reason = self.FAULTS[fault]
        write_distribution(site, "bad-dist", {"bad": f"bad_plugin{attribute}"}, {"bad_plugin": source})
        write_distribution(site, "good-dist", {"good": "good_plugin"}, {"good_plugin": GOOD})
        manager = discover_with_warning(rf"plugin 'bad' \(bad-dist 1.0\) was left out: .*{reason}")
        assert status_of(manager, "bad")["status"] == "failed"
        assert status_of(manager, "bad")["records"] == []
        assert manager.get("metric", "answer").plugin == "good"
        assert "x" not in manager.available("gate")

    @pytest.mark.parametrize("fault", FAULTS)
    def test_strict_mode_raises(self, site: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
        source, attribute, reason = self.FAULTS[fault]
        write_distribution(site, "bad-dist", {"bad": f"bad_plugin{attribute}"}, {"bad_plugin": source})
        with pytest.raises(PluginError, match=rf"plugin 'bad' \(bad-dist 1.0\) was left out: .*{reason}"):
            PluginManager.discover(strict=True)
        monkeypatch.setenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", "1")
        with pytest.raises(PluginError, match="'bad'"):
            PluginManager.discover()

    def test_duplicate_record_names_both_owners(self, site: Path) -> None:
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": GOOD})
        write_distribution(site, "b-dist", {"b": "b_plugin"}, {"b_plugin": GOOD})
        both = r"metric 'answer' is provided by both plugin 'a' \(a-dist 1.0\) and plugin 'b' \(b-dist 1.0\)"
        manager = discover_with_warning(both + "; the first is kept")
        assert manager.get("metric", "answer").owner == "a-dist"
        assert status_of(manager, "a")["status"] == "ok"
        assert status_of(manager, "b")["status"] == "partial"
        assert status_of(manager, "b")["records"][0]["status"] == "duplicate"
        with pytest.raises(PluginError, match=both):
            PluginManager.discover(strict=True)

    def test_our_own_names_cannot_be_taken(self, site: Path) -> None:
        source = GOOD.replace("answer", "deletion")
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": source})
        manager = discover_with_warning("both plugin 'builtin' .captum-learnprop .* and plugin 'a' .a-dist")
        assert manager.get("metric", "deletion").plugin == "builtin"

    def test_duplicate_plugin_name(self, site: Path) -> None:
        write_distribution(site, "a-dist", {"mine": "a_plugin"}, {"a_plugin": GOOD})
        write_distribution(site, "b-dist", {"mine": "b_plugin"}, {"b_plugin": GOOD.replace("answer", "other")})
        manager = discover_with_warning(
            r"plugin 'mine' \(b-dist 1.0\) was left out: the name is already used by plugin 'mine' \(a-dist"
        )
        assert "answer" in manager.available("metric")
        assert "other" not in manager.available("metric")

    def test_broken_factory_names_the_plugin(self, site: Path) -> None:
        source = GOOD.replace("math:sqrt", "no_such_package:x")
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": source})
        manager = PluginManager.discover(strict=True)
        with pytest.raises(PluginError, match=r"plugin 'a' \(a-dist 1.0\): metric 'answer': cannot import"):
            manager.create("metric", "answer")


class TestSwitches:
    @pytest.fixture(autouse=True)
    def _two_plugins(self, site: Path) -> None:
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": GOOD})
        write_distribution(site, "bad-dist", {"bad": "bad_plugin"}, {"bad_plugin": "raise RuntimeError"})

    def test_all_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", "1")
        manager = PluginManager.discover(strict=True)
        assert [plugin["status"] for plugin in manager.info()] == ["ok", "disabled", "disabled"]
        assert "answer" not in manager.available("metric")
        assert "deletion" in manager.available("metric")
        assert "bad_plugin" not in sys.modules

    def test_some_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", "other, bad")
        manager = discover_with_warning("CAPTUM_LEARNPROP_DISABLE_PLUGINS names 'other'")
        assert status_of(manager, "bad")["status"] == "disabled"
        assert "answer" in manager.available("metric")

    @pytest.mark.parametrize("value", ["", "0", "false"])
    def test_not_off(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", value)
        monkeypatch.setenv("CAPTUM_LEARNPROP_STRICT_PLUGINS", value)
        assert "answer" in discover_with_warning("'bad'").available("metric")


class TestLookUp:
    def test_unknown_name_lists_what_there_is(self, site: Path) -> None:
        with pytest.raises(PluginError, match=r"unknown gate 'chanel'; did you mean 'channel'.*: channel, element"):
            PluginManager.discover().get("gate", "chanel")

    def test_unknown_kind(self, site: Path) -> None:
        with pytest.raises(PluginError, match="unknown kind of record 'methods'; did you mean 'method'"):
            PluginManager.discover().available("methods")

    def test_nothing_there(self) -> None:
        with pytest.raises(PluginError, match="unknown gate 'x'; available: none"):
            PluginManager().get("gate", "x")


class TestInstall:
    @pytest.fixture(autouse=True)
    def _clean(self, site: Path, registries: None) -> None:
        pass

    def test_gates_and_composites_reach_the_lower_package(self, site: Path) -> None:
        from zennit.composites import COMPOSITES

        from zennit_rules.gates import GATES

        install_project(EXAMPLE, site)
        with warnings.catch_warnings():
            warnings.simplefilter("error", PluginWarning)
            manager = get_manager()
        assert GATES["blend"] is manager.get("gate", "blend").resolve()
        assert COMPOSITES["blended_gradient"] is manager.get("composite", "blended_gradient").resolve()
        assert status_of(manager, "example")["owner"] == "learnprop-example-plugin"
        manager.install()

    def test_name_that_zennit_uses(self) -> None:
        from zennit.composites import COMPOSITES

        from zennit_rules.composites import LearnedGradient

        class Plugin:
            @hookimpl
            def learnprop_composites(self) -> list[CompositeRecord]:
                mine = type("Mine", (LearnedGradient,), {})
                return [CompositeRecord("epsilon_plus", mine, "x"), CompositeRecord("free", mine, "x")]

        before = COMPOSITES["epsilon_plus"]
        manager = PluginManager()
        manager.register(Plugin(), "mine")
        with pytest.warns(PluginWarning, match="composite 'epsilon_plus' of plugin 'mine' was left out"):
            manager.install()
        assert COMPOSITES["epsilon_plus"] is before
        assert list(manager.available("composite")) == ["free"]
        assert status_of(manager, "mine")["status"] == "partial"
        assert [record["status"] for record in status_of(manager, "mine")["records"]] == ["failed", "ok"]

    def test_factory_that_cannot_be_imported(self, site: Path) -> None:
        source = HEADER + "@hookimpl\ndef learnprop_gates():\n    yield GateRecord('x', 'no_such:x', 'x')\n"
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": source})
        with pytest.warns(PluginWarning, match=r"gate 'x' of plugin 'a' .* cannot import 'no_such:x'"):
            assert "x" not in get_manager().available("gate")
        with pytest.raises(PluginError, match="gate 'x' of plugin 'a'"):
            PluginManager.discover(strict=True).install()


class TestExamplePlugin:
    def test_gate_learns_and_starts_at_the_textbook_rule(self, site: Path, registries: None) -> None:
        import torch

        import zennit_rules

        install_project(EXAMPLE, site)
        get_manager()
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
        ).double()
        inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        expected = torch.autograd.grad(model(inputs)[:, 0].sum(), inputs)[0]

        rules = zennit_rules.RuleSet.build(model, inputs, composite="blended_gradient")
        with rules.applied(model):
            found = torch.autograd.grad(model(inputs)[:, 0].sum(), inputs, create_graph=True)[0]
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(found.square().sum(), list(rules.parameters()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        assert sum(parameter.numel() for parameter in rules.parameters()) == 2


class TestCtrlC:
    """A real Ctrl-C stops the program while a plugin is loaded, whatever the plugin makes of it."""

    PRESS = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    TRY = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    "

    @pytest.mark.parametrize(
        "source",
        [
            PRESS,
            TRY + "pass\n",
            TRY + "raise ValueError\n",
            HEADER + "@hookimpl\ndef learnprop_gates():\n    import signal\n    signal.raise_signal(signal.SIGINT)\n",
        ],
    )
    def test_stops(self, site: Path, source: str) -> None:
        before = signal.getsignal(signal.SIGINT)
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": source})
        with pytest.raises(KeyboardInterrupt):
            PluginManager.discover()
        assert signal.getsignal(signal.SIGINT) is before

    def test_stops_in_a_lazy_factory(self, site: Path) -> None:
        modules = {"a_plugin": GOOD.replace("math:sqrt", "slow:answer"), "slow": self.PRESS}
        write_distribution(site, "a-dist", {"a": "a_plugin"}, modules)
        manager = PluginManager.discover(strict=True)
        with pytest.raises(KeyboardInterrupt):
            manager.create("metric", "answer")

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_cannot_come_where_nobody_waits_for_it(self, site: Path, handler: signal.Handlers) -> None:
        """A job in the background ignores it: an interrupt there is the plugin's own."""
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": "raise KeyboardInterrupt"})
        before = signal.signal(signal.SIGINT, handler)
        try:
            with pytest.warns(PluginWarning, match="a_plugin|'a'"):
                PluginManager.discover()
            assert signal.getsignal(signal.SIGINT) == handler
        finally:
            signal.signal(signal.SIGINT, before)

    def test_cannot_be_told_in_a_thread(self, site: Path) -> None:
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": "raise KeyboardInterrupt"})
        with ThreadPoolExecutor() as pool, pytest.raises(KeyboardInterrupt):
            pool.submit(PluginManager.discover).result()

    def test_a_handler_of_the_plugin_stays(self, site: Path) -> None:
        before = signal.getsignal(signal.SIGINT)
        source = "import signal\ndef mine(*_): pass\nsignal.signal(signal.SIGINT, mine)\n" + GOOD
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": source})
        try:
            PluginManager.discover(strict=True)
            assert signal.getsignal(signal.SIGINT) is sys.modules["a_plugin"].mine
        finally:
            signal.signal(signal.SIGINT, before)


class TestOutput:
    def test_stdout_is_as_before(self, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": "print('noise')\n" + GOOD})
        print("before")
        stdout = sys.stdout
        PluginManager.discover(strict=True)
        assert sys.stdout is stdout
        print("after")
        os.write(1, b"below\n")
        assert capfd.readouterr() == ("before\nafter\nbelow\n", "noise\n")

    def test_streams_that_are_closed(self, site: Path) -> None:
        write_distribution(site, "a-dist", {"a": "a_plugin"}, {"a_plugin": "print('noise')\n" + GOOD})
        code = "from captum_learnprop.plugins import PluginManager; PluginManager.discover(strict=True)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        for closed in (">&-", ">&- 2>&-"):
            command = f'"{sys.executable}" -c "{code}" {closed}'
            assert subprocess.run(command, shell=True, check=False, env=environment).returncode == 0, closed


class Failing(Saliency):
    """A method that fails when it is used."""

    def attribute(self, inputs: Tensor, error: type[BaseException] = ValueError) -> Tensor:
        raise error("no luck")


class Inheriting(Failing):
    """One whose failing part is in the class below."""


class Distant(Gate):
    """A gate that fails in the backward pass."""

    name = "distant"

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        pass

    def forward(self, z: Tensor, g: Tensor) -> Tensor:
        raise ZeroDivisionError("no luck")


class Crooked(LearnedGradient):
    """A composite that fails when it is put on a model."""

    name = "crooked"

    def prepare(self) -> None:
        if self.rules.config["gate"] == "position":
            raise LookupError("no luck")


class Margin:
    """An objective that fails in training."""

    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def __call__(self, *args: object) -> Tensor:
        raise ArithmeticError("no luck")

    def apply(self, *args: object) -> Tensor:
        return torch.zeros(())


def failing(*args: object) -> Tensor:
    """A metric or model that fails."""
    raise OverflowError("no luck")


def make_failing(model: nn.Module) -> Failing:
    """A factory of methods."""
    return Failing(model)


class UsedPlugin:
    @hookimpl
    def learnprop_methods(self) -> list[MethodRecord]:
        return [
            MethodRecord("failing", Failing, "x"), MethodRecord("inheriting", Inheriting, "x"),
            MethodRecord("made", make_failing, "x"), MethodRecord("foreign", "captum.attr:Saliency", "x"),
        ]  # fmt: skip

    @hookimpl
    def learnprop_metrics(self) -> list[MetricRecord]:
        return [MetricRecord("failing", failing, "x"), MetricRecord("nothing", lambda: None, "x")]

    @hookimpl
    def learnprop_models(self) -> list[ModelRecord]:
        return [ModelRecord("failing", failing, "x")]

    @hookimpl
    def learnprop_gates(self) -> list[GateRecord]:
        return [GateRecord("distant", Distant, "x")]

    @hookimpl
    def learnprop_composites(self) -> list[CompositeRecord]:
        return [CompositeRecord("crooked", Crooked, "x")]

    @hookimpl
    def learnprop_objectives(self) -> list[ObjectiveRecord]:
        return [ObjectiveRecord("margin", Margin, "x")]


class TestInUse:
    """An error in what a plugin made names plugin and record, and is chained to the first."""

    @pytest.fixture
    def manager(self, registries: None) -> PluginManager:
        manager = PluginManager(strict=True)
        manager.register(UsedPlugin(), "used", owner="used-dist", version="3.0")
        manager.install()
        return manager

    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    @staticmethod
    def check(error: pytest.ExceptionInfo[PluginError], record: str, cause: type[BaseException]) -> None:
        assert str(error.value) == f"plugin 'used' (used-dist 3.0): {record}: {cause.__name__}: no luck"
        assert type(error.value.__cause__) is cause

    @pytest.mark.parametrize("name", ["failing", "inheriting", "made"])
    @pytest.mark.parametrize("cause", [ValueError, RuntimeError, GeneratorExit, SystemExit])
    def test_method(self, manager: PluginManager, model: nn.Module, name: str, cause: type[BaseException]) -> None:
        method = manager.get("method", name).resolve()(model)
        assert type(method) is (Inheriting if name == "inheriting" else Failing)
        with pytest.raises(PluginError) as error:
            method.attribute(torch.zeros(1, 3), cause)
        self.check(error, f"method {name!r}", cause)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.cuda.OutOfMemoryError])
    def test_what_is_nobodys_fault(self, manager: PluginManager, model: nn.Module, error: type[BaseException]) -> None:
        with pytest.raises(error):
            manager.create("method", "failing", model).attribute(torch.zeros(1, 3), error)

    def test_metric_and_model(self, manager: PluginManager) -> None:
        for kind in ("metric", "model"):
            with pytest.raises(PluginError) as error:
                manager.get(kind, "failing").resolve()(1, 2)
            self.check(error, f"{kind} 'failing'", OverflowError)
            with pytest.raises(PluginError) as error:
                manager.create(kind, "failing", None, None, None)
            self.check(error, f"{kind} 'failing'", OverflowError)

    def test_gate(self, manager: PluginManager, model: nn.Module) -> None:
        with pytest.raises(PluginError) as error:
            LearnedPropagation(model, gate="distant").attribute(torch.ones(2, 3), target=0, n_steps=0)
        self.check(error, "gate 'distant'", ZeroDivisionError)

    def test_composite(self, manager: PluginManager, model: nn.Module) -> None:
        with pytest.raises(PluginError) as error:
            RuleSet.build(model, torch.ones(2, 3), composite="crooked", gate="position")
        self.check(error, "composite 'crooked'", LookupError)

    def test_objective(self, manager: PluginManager) -> None:
        with pytest.raises(PluginError) as error:
            manager.create("objective", "margin")(torch.zeros(2))
        self.check(error, "objective 'margin'", ArithmeticError)

    def test_nothing(self, manager: PluginManager) -> None:
        with pytest.raises(PluginError, match=r"plugin 'used' .*: metric 'nothing': it made nothing"):
            manager.create("metric", "nothing")

    def test_an_option_that_does_not_exist_is_the_callers_mistake(
        self, manager: PluginManager, model: nn.Module
    ) -> None:
        with pytest.raises(TypeError, match="widht"):
            manager.create("objective", "margin", widht=2)
        with pytest.raises(RuleError, match="Distant does not take colour"):
            RuleSet.build(model, torch.ones(2, 3), gate="distant", gate_options={"colour": 1})

    def test_classes_stay_what_they_are(self, manager: PluginManager, model: nn.Module) -> None:
        method = manager.create("method", "failing", model)
        assert inspect.signature(method.attribute).parameters.keys() == {"inputs", "error"}
        assert type(pickle.loads(pickle.dumps(method))) is Failing
        assert type(copy.deepcopy(method)) is Failing
        assert pickle.loads(pickle.dumps(manager.get("metric", "failing").resolve()))._label.endswith("'failing'")
        assert manager.get("method", "foreign").resolve() is Saliency
        assert not hasattr(Saliency.attribute, "_learnprop_original")

    def test_a_second_manager_names_the_plugin_once(self, manager: PluginManager, model: nn.Module) -> None:
        again = PluginManager(strict=True)
        again.register(UsedPlugin(), "other")
        with pytest.raises(PluginError) as error:
            again.create("method", "failing", model).attribute(torch.zeros(1, 3))
        assert str(error.value) == "plugin 'other': method 'failing': ValueError: no luck"

    def test_our_own_parts_are_not_wrapped(self, site: Path, model: nn.Module) -> None:
        saliency = PluginManager.discover(strict=True).get("method", "saliency")
        assert saliency.resolve() is Saliency
        with pytest.raises(IndexError):
            saliency.make(model).attribute(torch.zeros(1, 3, requires_grad=True), target=9)


def gate_class(**parts: object) -> type:
    return type("Gated", (Gate,), {"make_parameters": lambda self, shape: None, **parts})


def composite_class(**parts: object) -> type:
    return type("Composed", (Composite,), parts)


def raising(*args: object, **options: object) -> None:
    raise RuntimeError("out of order")


class TestBroken:
    """A factory that cannot be what its record says is named before anybody uses it."""

    FAULTS: ClassVar[dict[str, tuple[str, object, str]]] = {
        "no gate class": ("gate", lambda *_, **__: None, "<lambda> is no gate; name a class derived from"),
        "another class": ("gate", nn.ReLU, "torch.nn.modules.activation.ReLU is no gate"),
        "a gate that is none": ("gate", gate_class(__new__=lambda *_, **__: None), "it makes no gate but None"),
        "a gate that fails": ("gate", gate_class(make_parameters=raising), "any of the shapes .*: RuntimeError: out"),
        "a gate of another name": ("gate", gate_class(name="other"), "calls itself 'other'"),
        "no composite class": ("composite", lambda: None, "<lambda> is no composite; name a class derived from"),
        "a composite with arguments": (
            "composite",
            composite_class(__init__=lambda self, low: None),
            "'low'; a comp",
        ),
        "a composite that fails": ("composite", composite_class(__init__=raising), "without arguments: RuntimeError"),
        "a composite that is none": ("composite", composite_class(__new__=lambda *_: 3), "it makes no composite but 3"),
        "a method without a model": ("method", lambda: None, "a method is made from the model"),
        "a method without attribute": ("method", nn.Flatten, r"Flatten has no attribute\(\)"),
        "a method without target": ("method", Failing, r"attribute\(\) of .*Failing takes no target="),
        "a metric without arguments": ("metric", lambda: 0.0, "takes no argument"),
        "a model with too few": ("model", lambda name: None, r"factory\(argument, weights, checkpoint\)"),
        "a model class": ("model", type("Net", (nn.Module,), {"__init__": lambda self: None}), "a model is made by"),
        "an objective class": (
            "objective",
            Saliency,
            "is no term, nor an objective like .*: it has no __call__",
        ),
        "not to be imported": ("metric", "no_such_package:x", "cannot import 'no_such_package:x'"),
    }

    @staticmethod
    def registered(kind: str, factory: object, *, strict: bool = False) -> PluginManager:
        record = specs.RECORD_TYPES[kind]
        broken = record("thing", factory, "x")  # type: ignore[arg-type]
        plugin = type("Plugin", (), {record.hook: staticmethod(hookimpl(lambda: [broken]))})
        manager = PluginManager(strict=strict)
        manager.register(plugin(), "mine", owner="mine-dist", version="2.0")
        return manager

    @pytest.mark.parametrize("fault", FAULTS)
    def test_is_named_with_its_reason(self, fault: str) -> None:
        kind, factory, reason = self.FAULTS[fault]
        manager = self.registered(kind, factory)
        named = rf"{kind} 'thing' of plugin 'mine' \(mine-dist 2.0\) was left out: .*{reason}"
        before = torch.get_rng_state()
        with pytest.warns(PluginWarning, match=named):
            manager.check()
        assert torch.equal(torch.get_rng_state(), before)
        assert manager.available(kind) == {}
        (record,) = status_of(manager, "mine")["records"]
        assert record["status"] == "failed"
        assert re.search(reason, record["error"])
        with pytest.raises(PluginError, match=named):
            self.registered(kind, factory, strict=True).check()

    @pytest.mark.parametrize("fault", [fault for fault, (kind, *_) in FAULTS.items() if kind in ("gate", "composite")])
    def test_is_not_installed(self, registries: None, fault: str) -> None:
        kind, factory, reason = self.FAULTS[fault]
        manager = self.registered(kind, factory)
        with pytest.warns(PluginWarning, match=reason):
            manager.install()
        assert manager.available(kind) == {}

    @pytest.mark.parametrize(
        ("kind", "factory"),
        [
            ("gate", gate_class()),
            ("gate", gate_class(name="thing")),
            (
                "gate",
                gate_class(make_parameters=lambda self, shape: 1 / (self.start[0] == "d" and len(shape) == 3)),
            ),
            ("composite", composite_class()),
            ("method", Saliency),
            ("method", lambda model, **options: Saliency(model)),
            ("metric", "math:sqrt"),
            ("model", lambda *_: nn.ReLU()),
            ("objective", Margin),
            ("objective", lambda: Margin()),
        ],
    )
    def test_what_can_be_used_stays(self, kind: str, factory: object) -> None:
        manager = self.registered(kind, factory, strict=True)
        manager.check()
        assert status_of(manager, "mine")["status"] == "ok"

    def test_the_example_plugin_is_fine(self, site: Path) -> None:
        install_project(EXAMPLE, site)
        manager = PluginManager.discover(strict=True)
        manager.check()
        assert {plugin["status"] for plugin in manager.info()} == {"ok"}

    def test_a_plugin_to_leave_out_that_does_not_exist(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_distribution(site, "good-dist", {"good": "good_plugin"}, {"good_plugin": GOOD})
        monkeypatch.setenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", "godo")
        discover_with_warning("names 'godo', which is not an installed plugin; did you mean 'good'")
