"""How long a run takes, from numbers counted by hand, and how it is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from captum_learnprop.benchmark import forecast as module
from captum_learnprop.benchmark.contenders import CONTROL, Contender, _no_build
from captum_learnprop.benchmark.forecast import (
    CHANGED,
    MEASURING,
    NOTHING,
    RULES,
    TIMED_AGAIN,
    TRAINING,
    CellWork,
    Forecast,
    PassTimes,
    Remaining,
    cell_work,
    describe,
    forecast,
    forecast_cells,
    require_time,
    time_passes,
    together,
)
from captum_learnprop.benchmark.nets import Subject
from captum_learnprop.benchmark.scorecard import SCORES
from captum_learnprop.benchmark.settings import Settings
from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.options import TrainingOptions

TIMES = PassTimes(forward=0.1, both=0.3, choosing=0.02, imputing=0.05)


def contender(name: str, family: str, passes: int) -> Contender:
    return Contender(name, family, passes, _no_build)


def subject(questions: int, tuning_questions: int, training_scenes: int = 20, judges: int = 2) -> Subject:
    settings = Settings(questions=questions, tuning_questions=tuning_questions, training_scenes=training_scenes)
    found = SimpleNamespace(settings=settings, targets_per_image=2, judges=[nn.Identity()] * judges)
    return cast(Subject, found)


def test_the_parts_of_a_cell() -> None:
    cell = CellWork(40, 10, scoring_passes=50, training_passes=8, measuring_passes=20, chosen=5, imputed=4, name="a")
    found = forecast([cell, NOTHING], TIMES)
    assert found.explaining == pytest.approx(10 * 40 * 0.15 + TIMED_AGAIN)
    assert found.scoring == pytest.approx(50 * 0.1 * CHANGED + 5 * 0.02 + 4 * 0.05)
    assert found.training == pytest.approx(8 * 0.3 * TRAINING + 20 * 0.1 * MEASURING)
    assert forecast_cells([cell, NOTHING], TIMES) == pytest.approx([found.seconds, 0.0])
    assert dict(found.methods) == pytest.approx({"a": found.seconds, "": 0.0})


def test_the_work_of_a_cell_counted_by_hand() -> None:
    options = TrainingOptions(steps=10, batch_size=4, deletions=8, validate_every=5)
    work = cell_work(
        contender("gates, learned", "learned", 2), subject(48, 24),
        ["average precision", "deletion, blur", "MoRF-LeRF area", "insertion, other nets", "ROAD", "randomisation"],
        training=options,
    )  # fmt: skip
    assert work.passes == 2 * RULES
    assert work.explanations == 48 + 24 + 2 * 24
    assert work.scoring_passes == 48 * (11 + 2 * 11 + 2 * 11 + 4)
    assert work.training_passes == 2 * 10 * 4 + 3 * 8  # 4 of 20 images are held out, with two targets each
    assert work.measuring_passes == 20 * (8 + 2)
    assert (work.chosen, work.imputed) == (24, 48 * 4)


def test_what_is_there_is_not_done_again() -> None:
    options = TrainingOptions()
    learned = contender("gates, learned", "learned", 2)
    work = cell_work(learned, subject(4, 2), [], training=options, measured=True)
    assert work.measuring_passes == 0 < work.training_passes
    there = cell_work(learned, subject(4, 2), ["pointing game"])
    assert there.training_passes == there.scoring_passes == there.imputed == 0
    assert cell_work(contender("random", CONTROL, 0), subject(4, 2), []).passes == 0


def test_every_score_has_its_passes() -> None:
    cheap = {name for name, one in SCORES.items() if one.cheap} | {"randomisation"}
    for name in SCORES:
        work = cell_work(contender("saliency", "gradient", 2), subject(3, 1), [name])
        assert (work.scoring_passes == 0) is (name in cheap), name


def test_passes_of_a_net_are_timed_and_leave_it_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    image = torch.rand(1, 3, 12, 12)
    net(image)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = time_passes(net, image)
    assert 0 < found.forward < 0.5
    assert found.both > 0.5 * found.forward
    assert found.choosing > 0
    assert found.imputing > 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not image.requires_grad


def test_a_slow_net_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    assert time_passes(net, torch.rand(1, 3, 4, 4)) == PassTimes(0.25, 0.25, 1, 1)  # a second a batch of four


def test_a_run_that_is_too_long_is_refused_with_the_way_out() -> None:
    found = Forecast(600.0, 1200.0, 9000.0, (("gates, learned", 9600.0), ("RISE", 1200.0)))
    require_time(found, 3.0)
    with pytest.raises(LearnpropError) as error:
        require_time(found, 2.0)
    assert str(error.value) == (
        "this run will take about 3 h on this machine, more than the 2 h allowed; most is training (about 2 h 30 min), "
        "and by method: gates, learned about 2 h 40 min, RISE about 20 min. Ask for less (fewer --seeds, --steps or "
        "--training-scenes, or one --composite), or allow it: --max-hours 3"
    )
    for name, way in (("explaining", "--method"), ("scoring", "--metric")):
        parts = {"explaining": 1.0, "scoring": 1.0, "training": 1.0, name: 7200.0}
        with pytest.raises(LearnpropError, match=way):
            require_time(Forecast(parts["explaining"], parts["scoring"], parts["training"]), 1.0)


def test_forecasts_of_several_nets_add_up() -> None:
    one = Forecast(10.0, 20.0, 0.0, (("a", 25.0), ("b", 5.0)))
    found = together([one, Forecast(1.0, 2.0, 3.0, (("b", 6.0),))])
    assert (found.explaining, found.scoring, found.training) == (11.0, 22.0, 3.0)
    assert found.methods == (("a", 25.0), ("b", 11.0))
    assert str(one) == "about 30 s (explaining about 10 s, scoring about 20 s)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "a few seconds"), (12, "about 10 s"), (57, "about 1 min"), (89, "about 1 min"), (3560, "about 59 min"),
        (3599, "about 1 h"), (7100, "about 2 h"), (47.99 * 3600, "about 2 days"), (71.9 * 3600, "about 3 days"),
        (51 * 3600, "about 2 days 3 h"),
    ],
)  # fmt: skip
def test_times_in_words(seconds: float, said: str) -> None:
    assert describe(seconds) == said


def test_what_is_left_weighs_cells_by_their_forecast() -> None:
    left = Remaining([1.0, 1.0, 98.0])
    assert left.text() == "about 2 min left"
    left.done(1.0, 1.0)
    left.done(1.0, 1.0)
    assert left.share == pytest.approx(0.02)
    assert left.seconds() == pytest.approx(98.0)
    assert left.seconds(98.0, 40.0) == pytest.approx(58.0)
    assert left.seconds(98.0, 500.0) == 0.0
    left.done(98.0, 98.0)
    assert (left.share, left.seconds()) == (1.0, 0.0)


def test_what_is_left_follows_what_was_seen() -> None:
    left = Remaining([10.0] * 10)
    for _ in range(5):
        left.done(10.0, 30.0)
    assert left.seconds() == pytest.approx(50.0 * (150 + 10) / (50 + 10))  # three times as slow, but for some trust
    assert Remaining([]).text() == "a few seconds left"
    assert Remaining([0.0]).share == 1.0
