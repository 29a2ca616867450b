"""The registry of metrics: one name each, data that fits the functions, plugins' metrics beside our own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_distributions import write_distribution
from torch import Tensor, nn

from captum_learnprop import evaluation
from captum_learnprop.benchmark.scorecard import FAMILIES_WITH, SCORES, Case, in_table_order, score, scores_of
from captum_learnprop.errors import LearnpropError, PluginError
from captum_learnprop.evaluation import metrics
from captum_learnprop.evaluation.metrics import METRICS, UnknownMetricError, find_metric
from captum_learnprop.plugins import MetricRecord, PluginManager, get_manager
from captum_learnprop.plugins.specs import METRIC_ARGUMENTS, MODEL_METRIC
from captum_learnprop.scenes.scenes import FAMILIES, make_scenes

PLUGIN = """
from captum_learnprop.plugins import MetricRecord, hookimpl

def peak(model, inputs, maps, targets):
    assert model(inputs).shape[1] > int(targets.max())
    return maps.flatten(1).amax(1)

def spread(maps, masks):
    return maps.flatten(1).std(1)

def pair_share(maps, other_masks):
    return other_masks.flatten(1).double().mean(1)

def wrong(model, inputs, maps, targets):
    return maps.sum()

def failing(maps):
    raise OverflowError("no luck")

@hookimpl
def learnprop_metrics():
    here = "metric_plugin"
    yield MetricRecord("peak", f"{here}:peak", "highest value")
    yield MetricRecord("spread", f"{here}:spread", "deviation", needs=("maps", "masks"), higher_is_better=False)
    yield MetricRecord("pair_share", f"{here}:pair_share", "others", needs=("maps", "other_masks"))
    yield MetricRecord("neither", f"{here}:spread", "neither", needs=("maps", "masks"), higher_is_better=None)
    yield MetricRecord("wrong", f"{here}:wrong", "gives one number")
    yield MetricRecord("failing", f"{here}:failing", "fails", needs=("maps",))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with metrics."""
    write_distribution(tmp_path, "metric-dist", {"measures": "metric_plugin"}, {"metric_plugin": PLUGIN})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CAPTUM_LEARNPROP_DISABLE_PLUGINS", raising=False)
    get_manager.cache_clear()
    yield
    get_manager.cache_clear()


class Tiny(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).repeat(1, 4)[:, :10]


def case_of(family: str) -> Case:
    questions = make_scenes(family, 2, split="test", counterfactuals=family == "parts").questions()
    return Case(Tiny().eval(), questions, "softmax")


class TestOurOwn:
    def test_the_listing_and_the_registry_are_one_table(self) -> None:
        assert list(METRICS) == list(PluginManager.discover().available("metric"))

    @pytest.mark.parametrize("name", METRICS)
    def test_a_metric_has_the_name_of_its_function(self, name: str) -> None:
        function = METRICS[name].entry.resolve()
        assert function.__name__ == name
        assert getattr(evaluation, name) is function
        assert name in evaluation.__all__

    @pytest.mark.parametrize("name", METRICS)
    def test_needs_are_the_arguments_of_the_function(self, name: str) -> None:
        metric = METRICS[name]
        given = [
            one.name for one in inspect.signature(metric.entry.resolve()).parameters.values()
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        ]  # fmt: skip
        other = {"difull_score": {"images": "inputs"}, "conservation": {"relevance": "maps"}}.get(name, {})
        assert [other.get(one, one) for one in given] == list(metric.needs)
        assert set(metric.needs) <= set(METRIC_ARGUMENTS)
        assert metric.bounds[0] < metric.bounds[1]

    def test_the_old_name_of_a_record_warns_and_works(self) -> None:
        with pytest.warns(DeprecationWarning, match="metric 'difull' is 'difull_score' now"):
            entry = PluginManager.discover().get("metric", "difull")
        assert entry.name == "difull_score"

    def test_an_unknown_name_lists_what_there_is(self) -> None:
        with pytest.raises(UnknownMetricError, match=r"choose one of average_precision, .*did you mean 'deletion'"):
            find_metric("deletio")

    def test_what_is_not_known_is_named(self) -> None:
        with pytest.raises(LearnpropError, match="'class_auc' needs masks and other_masks, known are maps"):
            METRICS["class_auc"].of({"maps": torch.ones(1, 2, 2)})

    def test_shown_in_a_line_and_in_a_notebook(self) -> None:
        assert repr(METRICS["deletion"]) == (
            "Metric('deletion': output while the most relevant input is removed; needs model, inputs, maps, targets; "
            "0 to 1, lower is better)"
        )
        assert repr(METRICS["conservation"]).endswith("needs maps, output_relevance; no bounds, neither way is better)")
        assert "<td>lower is better</td>" in METRICS["deletion"]._repr_html_()


class TestScores:
    @pytest.mark.parametrize("heading", SCORES)
    def test_headings_are_names_of_scores(self, heading: str) -> None:
        assert score(heading) is SCORES[heading]

    @pytest.mark.parametrize(
        ("name", "headings"),
        [
            ("average_precision", ["average precision"]),
            ("class_auc", ["class AUC", "distractor AUC"]),
            ("relevance_rank_accuracy", ["rank accuracy"]),
            ("deletion", ["deletion, zero", "deletion, blur", "deletion, mean"]),
            ("insertion", ["insertion, blur", "insertion, other nets"]),
            ("full_randomization", ["randomisation"]),
            ("compactness", ["compactness"]),
            ("box_sensitivity", ["box_sensitivity"]),
        ],
    )
    def test_a_metric_asks_for_its_columns(self, name: str, headings: list[str]) -> None:
        assert [one.name for one in scores_of([name])] == headings
        assert [one.name for one in scores_of([*headings, name])] == headings

    def test_no_name_asks_for_the_tables(self) -> None:
        assert [one.name for one in scores_of([])] == list(SCORES)

    def test_one_name_of_several_columns(self) -> None:
        with pytest.raises(LearnpropError, match="'deletion' is several columns: deletion, zero; deletion, blur"):
            score("deletion")

    @pytest.mark.parametrize(
        ("name", "words"),
        [("difull_score", "needs attribute, which scenes do not have"), ("conservation", "needs output_relevance")],
    )
    def test_metrics_of_more_than_maps_are_refused(self, name: str, words: str) -> None:
        with pytest.raises(LearnpropError, match=f"metric '{name}' cannot be a column of the tables: it {words}"):
            scores_of([name])

    @pytest.mark.parametrize("name", ["compactness", "box_sensitivity"])
    def test_metrics_that_are_in_no_table_can_be_asked_for(self, name: str) -> None:
        case = case_of("pairs")
        maps = torch.rand(len(case.questions), 64, 64)
        function = getattr(evaluation, name)
        asked = (maps,) if name == "compactness" else (case.model, case.questions.images, maps, case.questions.targets)
        assert torch.equal(score(name).rate(case, maps), function(*asked))

    def test_families_have_what_is_said(self) -> None:
        for family in FAMILIES:
            case = case_of(family)
            for need, families in FAMILIES_WITH.items():
                if family in families:
                    assert len(case.known(torch.zeros(1), [need])[need]) == len(case.questions)

    def test_order(self) -> None:
        names = ["ROAD", "gone", "compactness", "average precision", "ROAD"]
        assert in_table_order(names) == ["average precision", "ROAD", "compactness"]


@pytest.mark.usefixtures("plugin")
class TestPlugins:
    def test_a_metric_of_a_plugin_is_found_and_called(self) -> None:
        metric = find_metric("peak")
        assert (metric.needs, metric.higher_is_better) == (MODEL_METRIC, True)
        maps = torch.rand(3, 4, 4)
        found = metric(Tiny(), torch.rand(3, 3, 4, 4), maps, torch.zeros(3, dtype=torch.int64))
        assert torch.equal(found, maps.flatten(1).amax(1))

    def test_its_score_is_defined_where_scenes_have_what_it_needs(self) -> None:
        assert [family for family in FAMILIES if score("peak").defined_on(family)] == list(FAMILIES)
        assert {family for family in FAMILIES if score("pair_share").defined_on(family)} == {"pairs", "grid", "patch"}
        assert not score("peak").cheap
        assert score("spread").cheap
        assert not score("spread").higher_is_better

    def test_what_has_no_direction_is_refused(self) -> None:
        assert find_metric("neither").higher_is_better is None
        with pytest.raises(LearnpropError, match="'neither' cannot be a column of the tables: it says not which way"):
            score("neither")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("wrong", r"metric 'wrong': it must give a tensor \(4,\) of numbers, got torch.float32 \(\)"),
            ("failing", "metric 'failing': OverflowError: no luck"),
        ],
    )
    def test_faults_name_the_plugin(self, name: str, words: str) -> None:
        case = case_of("pairs")
        with pytest.raises(PluginError, match=rf"plugin 'measures' \(metric-dist 1.0\): {words}"):
            score(name).rate(case, torch.rand(4, 64, 64))

    def test_unknown_names_list_them(self) -> None:
        with pytest.raises(LearnpropError, match=r"choose one of .*peak.*; did you mean 'spread'"):
            score("sprea")


class TestRecords:
    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"needs": ("maps", "mask")}, r"needs must be a tuple of .* \(model, inputs, .*got \('maps', 'mask'\)"),
            ({"needs": ()}, "needs must be"),
            ({"needs": "maps"}, "needs must be"),
            ({"bounds": (1.0, 0.0)}, "bounds must be two numbers, the lower one first"),
            ({"bounds": (0.0,)}, "bounds must be"),
            ({"bounds": None}, "bounds must be"),
            ({"higher_is_better": "yes"}, "higher_is_better must be True, False or None"),
        ],
    )
    def test_malformed(self, facts: dict[str, object], words: str) -> None:
        with pytest.raises(PluginError, match=f"MetricRecord 'x': {words}"):
            MetricRecord("x", len, "x", **facts)  # type: ignore[arg-type]


def test_our_own_are_found_without_loading_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "get_manager", None)
    assert find_metric("road").name == "road"
