"""RuleTrainer: what it learns from, what it minimises, and that nothing else changes its result."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_nets import CLASSES, images, net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import postprocess
from captum_learnprop.training import trainer as trainer_module
from captum_learnprop.training.checkpoint import CheckpointError
from captum_learnprop.training.log import read_log
from captum_learnprop.training.losses import Losses
from captum_learnprop.training.objectives import Agreement
from captum_learnprop.training.regions import unpacked
from captum_learnprop.training.rule_maps import RecordedMaps
from captum_learnprop.training.run import is_above
from captum_learnprop.training.terms import (
    ClassContrast,
    Necessity,
    OcclusionRegression,
    RandomizationContrast,
    Sufficiency,
)
from captum_learnprop.training.trainer import RuleTrainer, TrainingWarning, held_out_images, starting_rules

QUICK: dict[str, Any] = {
    "steps": 6, "batch_size": 4, "deletions": 8, "validate_every": 2, "smoothing": 0.05, "fill": "colours",
}  # fmt: skip
"""Noise in the place of noise says nothing: colours replace regions."""


def fit(model: nn.Module | None = None, data: Any = None, fitting: dict[str, Any] | None = None, **options: Any) -> Any:
    """A few quick steps; the last state is returned, however bad."""
    trainer = RuleTrainer(net() if model is None else model, **{**QUICK, **options})
    return trainer.fit(images() if data is None else data, **{"validation": 0, **(fitting or {})})


def assert_same(first: zr.RuleSet, second: zr.RuleSet, tolerance: float = 0.0) -> None:
    """Equal parameters, away from the start."""
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert any(tensor.abs().max() > 0.01 for tensor in states[0].values())
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=tolerance)


def judged(losses: list[float]) -> tuple[Tensor, dict[str, float]]:
    """What a validation gives."""
    return torch.tensor(losses), {"loss": sum(losses) / len(losses)}


class TestLearning:
    def test_the_held_out_loss_falls(self) -> None:
        trainer = RuleTrainer(net(), **{**QUICK, "steps": 40, "validate_every": 10})
        rules = trainer.fit(images(40))
        losses = [row["validation loss"] for row in trainer.log if "validation loss" in row]
        assert rules.training["validation_loss"] == losses[rules.training["best_step"] // 10]
        assert min(losses) <= rules.training["validation_loss"] < losses[0] - 0.02

    def test_the_loss_is_the_definition(self) -> None:
        """First step of a run, by hand: regions and drops from the collected examples, maps by the captum method."""
        model, data = net(), images(6)
        trainer = RuleTrainer(model, **{**QUICK, "batch_size": 6, "steps": 1})
        trainer.fit(data, validation=0)
        from captum_learnprop.training.distributed import Processes
        from captum_learnprop.training.examples import Collection, collect

        what = Collection(trainer.quantity, "logit", deletions=8, fill="colours")
        rows = collect(model, iter([(data, None)]), what, processes=Processes()).rows(torch.arange(6))
        rules = zr.RuleSet.build(model, data, gate="feature", pooling="soft", gate_options={"position": True})
        attribution = cl.LearnedPropagation(model, rules=rules).attribute(data, target=rows["targets"])
        maps = postprocess(attribution, "absolute", 0.05)
        regions = unpacked(rows["regions"], (3, 16, 16))
        losses = []
        for sample, region, drop in zip(maps, regions, rows["drops"], strict=True):
            root = region.flatten(1).sum(1) ** 0.5
            mass = torch.stack([sample[part].sum() for part in region]) / root
            losses.append(1 - torch.corrcoef(torch.stack([mass, drop / root]))[0, 1])
        assert trainer.log[0]["loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)

    def test_drops_are_what_the_target_loses(self) -> None:
        from captum_learnprop.training.occlusion import measure_drops, random_fills
        from captum_learnprop.training.regions import random_regions

        model, image = net(), images(1)[0]
        regions = random_regions(image, 5, torch.Generator().manual_seed(3))
        fills = random_fills(5, (3, 16, 16), torch.zeros(3), torch.ones(3), torch.Generator().manual_seed(4))
        targets = torch.tensor([2, 0])
        drops = measure_drops(
            model, image, targets, regions, fills, lambda out, t: out.softmax(1).gather(1, t[:, None])[:, 0],
            internal_batch_size=2,
        )  # fmt: skip
        for number, (region, fill) in enumerate(zip(regions, fills, strict=True)):
            changed = image.clone()
            changed[:, region] = fill[:, region]
            lost = model(image[None]).softmax(1)[0] - model(changed[None]).softmax(1)[0]
            torch.testing.assert_close(drops[:, number], lost[targets].detach())

    @pytest.mark.parametrize(
        "objective",
        [
            OcclusionRegression() + 0.1 * ClassContrast(),
            OcclusionRegression() + 0.2 * RandomizationContrast(),
            Sufficiency() + Necessity(),
            "class_contrast",
            Agreement(baseline="noise"),
        ],
        ids=lambda o: type(o).__name__ if isinstance(o, Agreement) else repr(o)[:40],
    )
    def test_objectives(self, objective: Any) -> None:
        trainer = RuleTrainer(net(), objective=objective, quantity="logit", **QUICK)
        rules = trainer.fit(images(), validation=0)
        assert all(math.isfinite(row["loss"]) for row in trainer.log)
        assert any(tensor.abs().max() > 0.01 for tensor in rules.state_dict().values())
        assert rules.training["objective"][0]["term"]

    @pytest.mark.parametrize("options", [{"gate": "channel"}, {"gate": "quadrant"}, {"pooling": "exact"}])
    @pytest.mark.parametrize(
        "composite",
        ["learned_gradient", "learned_guided_backprop", "learned_epsilon_gamma_box", "learned_deeplift"],
    )
    def test_composites_and_gates(self, composite: str, options: dict[str, Any]) -> None:
        rules = fit(composite=composite, **options)
        assert rules.composite_name == composite
        assert rules.closed

    @pytest.mark.parametrize("gate", ["feature", "none"])
    def test_rules_of_linear_layers(self, gate: str, tmp_path: Path) -> None:
        model = net()
        options = {"conv": "gamma", "gamma": 0.5, "low": 0.0, "high": 1.0}
        rules = fit(model, composite="learned_epsilon_gamma_box", gate=gate, rule_options=options)
        start = zr.RuleSet.build(
            model, images(2), "learned_epsilon_gamma_box", gate, pooling="soft", rule_options=options,
            gate_options={"position": True} if gate == "feature" else {},
        )  # fmt: skip
        assert rules.config["rule_options"].items() >= options.items()
        assert rules.config["rule_options"] == start.config["rule_options"]
        before, after = start.state_dict(), rules.state_dict()
        moved = {name.split("::")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved >= {"0", "4", "8"}
        loaded = zr.RuleSet.load(rules.save(tmp_path / "rules.safetensors", model), model)
        assert loaded.config == rules.config
        maps, again = (cl.LearnedPropagation(model, rules=one).maps(images(2), target=1) for one in (rules, loaded))
        torch.testing.assert_close(again, maps)

    def test_the_baseline_of_deeplift_decides(self, tmp_path: Path) -> None:
        model = net()
        grey, black = (
            fit(model, composite="learned_deeplift", rule_options={"baseline": value}) for value in (0.5, 0.0)
        )
        assert grey.config["rule_options"] == {"baseline": 0.5}
        with pytest.raises(AssertionError):
            assert_same(grey, black)
        loaded = zr.RuleSet.load(grey.save(tmp_path / "rules.safetensors", model), model)
        maps = cl.LearnedPropagation(model, rules=loaded).attribute(torch.full((1, 3, 16, 16), 0.5), target=1)
        assert maps.abs().max() == 0  # contributions of an input that is the baseline

    def test_rules_see_the_first_training_images_when_they_are_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []

        def watched(model: nn.Module, examples: Tensor, options: Any) -> zr.RuleSet:
            seen.append(examples)
            return starting_rules(model, examples, options)

        monkeypatch.setattr(trainer_module, "starting_rules", watched)
        data = images(50)
        data[:, :, 0, 0] = torch.arange(50)[:, None]  # says which image it is
        for share, count in ((0, 50), (0.2, 40), (0.5, 25)):
            seen.clear()
            fit(data=data, steps=1, fitting={"validation": share, "targets_per_image": 2})
            numbers = seen[0][:, 0, 0, 0].tolist()
            assert len(numbers) == len(set(numbers)) == min(32, count)
        seen.clear()
        fit(data=data, steps=1, internal_batch_size=2)
        assert len(seen[0]) == 8  # less takes less memory here, too
        rules = fit(data=data, steps=1, composite="learned_epsilon_gamma_box", gate="none")
        shown = data[torch.randperm(50, generator=torch.Generator().manual_seed(0))[:32]]
        torch.testing.assert_close(rules.gate("0").low[0], shown.amin((0, 2, 3)))
        torch.testing.assert_close(rules.gate("0").high[0], shown.amax((0, 2, 3)))

    def test_contrast_and_fusion(self) -> None:
        rules = fit(gate_options={"position": True, "contrast": True}, fusion=True)
        assert rules.contrast
        assert rules.fusion is not None
        assert rules.fusion.raw.abs().max() > 0
        maps = cl.LearnedPropagation(net(), rules=rules).attribute(images(2), target=1)
        assert maps.shape == (2, 3, 16, 16)

    def test_bfloat16(self) -> None:
        seen: list[torch.dtype] = []
        model = net()
        model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        objective = OcclusionRegression() + 0.1 * Sufficiency()
        low = fit(model, precision="bfloat16", objective=objective)
        assert {torch.float32, torch.bfloat16} == set(seen)  # deletions are measured in the model's own precision
        full = fit(objective=objective)
        assert_same(low, full, tolerance=0.06)
        with pytest.raises(AssertionError):
            assert_same(low, full)

    def test_a_model_in_bfloat16(self) -> None:
        model, data = net().bfloat16(), images().bfloat16()
        rules = fit(model, data, objective=OcclusionRegression() + 0.1 * Sufficiency())
        assert all(parameter.dtype == torch.float32 for parameter in rules.parameters())

    @pytest.mark.parametrize("dims", [1, 3])
    def test_signals_and_volumes(self, dims: int) -> None:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        model = nn.Sequential(conv(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6**dims, 3)).eval()
        trainer = RuleTrainer(model, objective=OcclusionRegression() + 0.1 * Sufficiency(), **QUICK)
        rules = trainer.fit(torch.rand(8, 2, *(6,) * dims))
        maps = cl.LearnedPropagation(model, rules=rules).maps(torch.rand(2, 2, *(6,) * dims), target=0)
        assert maps.shape == (2, *(6,) * dims)

    def test_float64(self) -> None:
        rules = fit(net(dtype=torch.float64), images(dtype=torch.float64))
        assert all(parameter.dtype == torch.float64 for parameter in rules.parameters())


class TestBudget:
    def test_examples_are_those_of_the_training(self, tmp_path: Path) -> None:
        trainer = RuleTrainer(net(), **QUICK)
        measured = trainer.measure(images(), targets_per_image=2, examples_dir=tmp_path)
        (file,) = (tmp_path / "training").iterdir()
        before = file.stat().st_mtime_ns
        trainer.fit(images(), targets_per_image=2, examples_dir=tmp_path)
        assert [file.stat().st_mtime_ns for file in (tmp_path / "training").iterdir()] == [before]
        rows = measured.rows(torch.arange(24))
        torch.testing.assert_close(rows["inputs"][::2], images())
        assert rows["drops"].shape == (24, 8)

    @pytest.mark.parametrize(("steps", "every"), [(6, 2), (5, 2), (1, 20)])
    def test_passes_are_the_rows_that_are_explained(
        self, monkeypatch: pytest.MonkeyPatch, steps: int, every: int
    ) -> None:
        counted: list[int] = []
        explain = RecordedMaps.explain

        def watched(self: RecordedMaps, targets: Tensor) -> Tensor:
            counted.append(len(targets) * (2 if self._create_graph else 1))
            return explain(self, targets)

        monkeypatch.setattr(RecordedMaps, "explain", watched)
        trainer = RuleTrainer(net(), **{**QUICK, "steps": steps, "validate_every": every})
        rules = trainer.fit(images(20))
        assert (rules.training["training_rows"], rules.training["validation_rows"]) == (16, 4)
        assert held_out_images(20, 0.2) == 4
        assert trainer.options.passes(16, 4) == sum(counted)
        assert trainer.options.passes(3, 0) == 2 * steps * 3  # a batch is no larger than its part


class TestSameResult:
    def test_seed(self) -> None:
        assert_same(fit(seed=3), fit(seed=3))
        with pytest.raises(AssertionError):
            assert_same(fit(seed=3), fit(seed=4))

    @pytest.mark.parametrize(
        "objective",
        [None, OcclusionRegression() + 0.1 * Sufficiency() + 0.1 * ClassContrast() + 0.1 * RandomizationContrast()],
    )
    def test_chunks(self, objective: Any) -> None:
        options: dict[str, Any] = {"objective": objective}
        model, data = net(dtype=torch.float64), images(dtype=torch.float64)
        assert_same(fit(model, data, internal_batch_size=3, **options), fit(model, data, **options), 1e-9)

    def test_rows_that_do_not_fit_into_memory_go_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, data = net(dtype=torch.float64), images(dtype=torch.float64)
        expected = fit(model, data)
        seen: list[int] = []

        def full(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                seen.append(len(args[0]))
            if len(seen) > 1 and seen[-1] > 2:  # the first pass builds the rules
                raise torch.OutOfMemoryError("no room for more than two")

        handle = model.register_forward_pre_hook(full)
        try:
            found = fit(model, data)
        finally:
            handle.remove()
        assert_same(found, expected, 1e-9)
        assert max(seen[-4:]) <= 2  # what was learned once holds

    def test_one_row_that_does_not_fit_is_an_error(self) -> None:
        def full(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled() and rules_are_built:
                raise torch.OutOfMemoryError("no room at all")

        rules_are_built: list[bool] = []
        model, data = net(), images()
        model.register_forward_pre_hook(full)
        trainer = RuleTrainer(model, steps=1, deletions=8)
        trainer.measure(data)
        rules_are_built.append(True)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.fit(data)

    def test_kinds_of_data(self) -> None:
        data, labels = images(), torch.arange(12) % CLASSES
        expected = fit(data=data)
        for same in (TensorDataset(data, labels), DataLoader(TensorDataset(data), batch_size=5), list(data)):
            assert_same(fit(data=same), expected)

    def test_labels(self) -> None:
        data, labels = images(), torch.arange(12) % CLASSES
        rules = fit(data=(data, labels), fitting={"targets": "labels"})
        assert_same(fit(data=TensorDataset(data, labels), fitting={"targets": "labels"}), rules)
        assert rules.training["rows_per_class"] == {str(c): 3 for c in range(CLASSES)}

    @pytest.mark.parametrize("validation", [0, 0.3])
    def test_interrupted_runs_end_alike(self, tmp_path: Path, validation: float) -> None:
        share = {"validation": validation}
        data = images(60)
        expected = fit(data=data, fitting=share)
        file = tmp_path / "run.safetensors"
        for stop in (2.0, 3.0, 5.0):

            def interrupt(row: dict[str, float], at: float = stop) -> None:
                if row["step"] == at:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                fit(data=data, fitting={**share, "checkpoint": file, "on_step": interrupt, "log_dir": tmp_path})
        rules = fit(data=data, fitting={**share, "checkpoint": file, "log_dir": tmp_path})
        assert_same(rules, expected)
        assert rules.training["best_step"] == expected.training["best_step"]
        rows = read_log(tmp_path / "training.csv")
        assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6][validation == 0 :]

    def test_a_finished_run_is_not_trained_again(self, tmp_path: Path) -> None:
        file = tmp_path / "run.safetensors"
        expected = fit(fitting={"checkpoint": file})

        def fail(row: dict[str, float]) -> None:
            raise AssertionError

        assert_same(fit(fitting={"checkpoint": file, "on_step": fail}), expected)

    def test_examples_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from captum_learnprop.training import examples

        monkeypatch.setattr(examples, "SHARD", 5)
        expected = fit()
        assert_same(fit(fitting={"examples_dir": tmp_path}), expected)
        files = sorted((tmp_path / "training").iterdir())
        assert [file.name[:15] for file in files] == [f"examples-0000{n}-" for n in range(3)]
        files[1].write_bytes(files[1].read_bytes()[:100])  # an interrupted run left half a file
        times = [files[0].stat().st_mtime_ns, files[2].stat().st_mtime_ns]
        assert_same(fit(fitting={"examples_dir": tmp_path}), expected)
        assert times == [files[0].stat().st_mtime_ns, files[2].stat().st_mtime_ns]  # measured once

    def test_the_model_is_untouched(self) -> None:
        model = net()
        model[0].weight.grad = torch.ones_like(model[0].weight)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = torch.random.get_rng_state()
        objective = OcclusionRegression() + 0.1 * Sufficiency() + 0.1 * RandomizationContrast()
        fit(model, objective=objective)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
        assert model[4].weight.grad is None
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(torch.random.get_rng_state(), state)


class TestStopping:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("constant", [1, 2, 3, 3, 3, 3]),
            ("linear", [1, 2, 3, 2.25, 1.5, 0.75]),
            ("cosine", [1, 2, 3, 2.56, 1.5, 0.44]),
        ],
    )
    def test_learning_rates(self, schedule: str, rates: list[float]) -> None:
        trainer = RuleTrainer(net(), **{**QUICK, "lr": 3.0, "schedule": schedule, "warmup": 2})
        trainer.fit(images(), validation=0)
        assert [row["lr"] for row in trainer.log] == pytest.approx(rates, abs=0.01)

    def test_gradients_are_clipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        norms: list[float] = []
        step = torch.optim.Adam.step

        def watched(self: torch.optim.Adam, *args: Any) -> Any:
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat(gradients).norm().item())
            return step(self, *args)

        monkeypatch.setattr(torch.optim.Adam, "step", watched)
        trainer = RuleTrainer(net(), **{**QUICK, "clip": 0.01})
        trainer.fit(images(), validation=0)
        assert max(row["gradient norm"] for row in trainer.log) > 0.01
        assert max(norms) == pytest.approx(0.01, rel=1e-4)

    def test_early(self) -> None:
        trainer = RuleTrainer(net(), **{**QUICK, "steps": 400, "lr": 3.0, "schedule": "constant", "patience": 2})
        rules = trainer.fit(images())
        assert rules.training["steps_done"] < 400
        lowest = rules.training["steps_done"] - 4
        assert rules.training["stopped"] == f"no lower validation loss since step {lowest}"
        assert rules.training["best_step"] >= lowest

    def test_the_best_state_is_kept(self) -> None:
        trainer = RuleTrainer(net(), **{**QUICK, "steps": 12, "lr": 3.0, "schedule": "constant", "validate_every": 1})
        rules = trainer.fit(images(), validation=1 / 12)  # of one row nothing is uncertain
        best = int(rules.training["best_step"])
        losses = [row["validation loss"] for row in trainer.log]
        assert rules.training["validation_loss"] == min(losses) == losses[best]
        assert best < 12  # such steps do not end at the best place
        shorter = {**QUICK, "steps": max(best, 1), "lr": 3.0, "schedule": "constant", "validate_every": 1}
        again = RuleTrainer(net(), **shorter).fit(images(), validation=1 / 12)
        assert again.training["validation_loss"] == rules.training["validation_loss"]

    def test_within_a_standard_error_is_not_above(self) -> None:
        lowest = torch.tensor([1.0, 2.0, 3.0, 4.0])
        excess = torch.tensor([0.4, -0.3, 0.4, -0.3])  # .05 on average, with an error of .2
        assert not is_above(lowest + excess, lowest)
        assert is_above(lowest + excess + 0.2, lowest)
        assert not is_above(lowest - 1.0, lowest)
        assert is_above(torch.tensor([1.1]), torch.tensor([1.0]))

    def test_the_last_state_that_is_as_good_as_the_lowest_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = iter(map(judged, [[2.0, 2.0], [1.0, 1.4], [1.5, 1.0], [1.4, 1.2], [2.0, 2.1]]))
        monkeypatch.setattr(Losses, "each", lambda *_: next(found))
        rules = fit(steps=4, validate_every=1, fitting={"validation": 0.3})
        assert rules.training["best_step"] == 3  # .1 above the lowest, of step 1, with an error of .3
        assert rules.training["validation_loss"] == pytest.approx(1.3)

    def test_nothing_above_the_start_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = iter(map(judged, [[2.0, 2.0], [1.9, 1.9], [1.0, 3.1]]))  # the last is within an error of the lowest
        monkeypatch.setattr(Losses, "each", lambda *_: next(found))
        assert fit(steps=2, validate_every=1, fitting={"validation": 0.3}).training["best_step"] == 1

    def test_the_start_is_kept_where_nothing_is_lower(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = iter(map(judged, [[2.0, 1.0], [1.0, 2.0], [3.0, 0.5]]))
        monkeypatch.setattr(Losses, "each", lambda *_: next(found))
        assert fit(steps=2, validate_every=1, fitting={"validation": 0.3}).training["best_step"] == 0

    @pytest.mark.parametrize(("rows", "steps"), [(1, 20), (116, 44), (205, 77), (10_000, 80)])
    def test_steps_go_with_the_rows(self, rows: int, steps: int) -> None:
        options = RuleTrainer(net()).options
        assert options.steps is None
        assert options.steps_for(rows) == steps
        assert RuleTrainer(net(), steps=3).options.steps_for(rows) == 3

    def test_a_loss_that_is_not_finite_keeps_the_best(self) -> None:
        class Breaks(OcclusionRegression):
            def __call__(self, batch: Any) -> Tensor:
                value = super().__call__(batch)
                return value * torch.nan if batch.draws.step == 4 else value

        with pytest.warns(TrainingWarning, match=r"not finite at step 5 \(loss nan\); the rules of step 4 are kept"):
            rules = fit(objective=Breaks())
        assert rules.training["steps_done"] == 4
        assert all(tensor.isfinite().all() for tensor in rules.state_dict().values())

    def test_without_held_out_rows_the_last_finite_state_is_kept(self, tmp_path: Path) -> None:
        class Breaks(OcclusionRegression):
            def __call__(self, batch: Any) -> Tensor:
                value = super().__call__(batch)
                return value * torch.nan if batch.draws.step == 3 else value

        with pytest.warns(TrainingWarning, match="not finite at step 4"):
            rules = fit(objective=Breaks(), validate_every=20)
        file = tmp_path / "run.safetensors"

        def interrupt(row: dict[str, float]) -> None:
            if row["step"] == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(objective=OcclusionRegression(), validate_every=20, fitting={"checkpoint": file, "on_step": interrupt})
        kept = load_file(file)
        for name, tensor in rules.state_dict().items():
            assert torch.equal(tensor, kept[f"rules|{name}"])
        assert (rules.training["steps_done"], rules.training["best_step"]) == (3, 3)

    def test_a_validation_that_is_not_finite(self) -> None:
        class Breaks(OcclusionRegression):
            def __call__(self, batch: Any) -> Tensor:
                value = super().__call__(batch)
                return value * torch.nan if not batch.maps.requires_grad and self.distance == "pearson" else value

        with pytest.raises(LearnpropError, match="validation loss is not finite at step 0"):
            fit(objective=Breaks(), fitting={"validation": 0.3})

    def test_a_loss_that_is_never_finite(self) -> None:
        class Broken(OcclusionRegression):
            def __call__(self, batch: Any) -> Tensor:
                return super().__call__(batch) * torch.nan

        with pytest.raises(LearnpropError, match="not finite at step 1"):
            fit(objective=Broken())

    def test_a_full_disk_costs_the_checkpoint_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = fit()

        def full(self: Path, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.warns(TrainingWarning, match="No space left"):
            rules = fit(fitting={"checkpoint": tmp_path / "run.safetensors"})
        assert_same(rules, expected)
        with pytest.raises(LearnpropError, match="No space left"):
            fit(fitting={"examples_dir": tmp_path})
        assert list(tmp_path.rglob("*.part")) == []


def test_repr_is_one_line() -> None:
    trainer = RuleTrainer(net(), gate="channel", steps=7, lr=0.02)
    assert repr(trainer) == (
        "RuleTrainer(Sequential, composite='learned_gradient', gate='channel', "
        "objective=OcclusionRegression(distance='pearson', density=0.5), steps=7, batch_size=12, lr=0.02, seed=0)"
    )


def test_validations_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="captum_learnprop"):
        fit(steps=2, fitting={"validation": 0.3})
    assert [record.getMessage().partition(" loss")[0] for record in caplog.records] == ["validation"] * 2


class TestErrors:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (torch.zeros(0, 3, 16, 16), "empty"),
            ([], "empty"),
            (torch.zeros(4, 3, 16, 16).long(), "floating-point"),
            ([torch.rand(3, 16, 16), torch.rand(3, 16, 15)], r"image 1 is \(3, 16, 15\), the first \(3, 16, 16\)"),
            (DataLoader([torch.rand(3, 16, 16), torch.rand(3, 8, 8)], batch_size=2), "differ in size"),
            (torch.full((4, 3, 16, 16), torch.nan), "image 0 has NaN"),
            (["a", "b"], "item 0 of the data set holds a str"),
            (7, "must be a tensor"),
            ((torch.rand(4, 3, 16, 16), torch.zeros(3)), "one label per image"),
        ],
    )
    def test_data(self, data: Any, message: str) -> None:
        with pytest.raises(LearnpropError, match=message):
            fit(data=data)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.tensor([0, 1, 9, 0]), r"label \[9\] of image 2 is out of range: the model has 4 classes"),
            (torch.rand(4), "class indices"),
            (None, "the data have none"),
        ],
    )
    def test_labels(self, labels: Tensor | None, message: str) -> None:
        data = images(4) if labels is None else (images(4), labels)
        with pytest.raises(LearnpropError, match=message):
            fit(data=data, fitting={"targets": "labels"})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.0}, "lr"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"schedule": "step"}, "unknown schedule 'step'"),
            ({"sign": "both"}, "unknown sign"),
            ({"precision": "float8"}, "unknown precision"),
            ({"deletions": 2}, "deletions"),
            ({"patience": 0}, "patience"),
            ({"quantity": "loss"}, "loss"),
            ({"objective": 3}, "objective must be"),
            ({"mask": cl.MaxMask()}, "mask= goes with"),
            ({"objective": OcclusionRegression(), "mask": cl.MaxMask()}, "masks of their own"),
            ({"gate": "element", "gate_options": {}}, "parameters for each sample"),
            ({"gate": "nonsense"}, "unknown gate"),
            ({"composite": "nonsense"}, "nonsense"),
            ({"rule_options": {"gama": 1}}, "LearnedGradient has no rule option 'gama'; it has: none"),
            (
                {"composite": "learned_epsilon_gamma_box", "rule_options": {"gama": 1}},
                "LearnedEpsilonGammaBox has no rule option 'gama'; it has: conv",
            ),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(**options)

    def test_training_mode(self) -> None:
        with pytest.raises(LearnpropError, match=r"model\.eval\(\)"):
            fit(net().train())
        model = net()
        model[1].train()  # one batch norm is enough
        with pytest.raises(LearnpropError, match="module 1"):
            fit(model)

    def test_classes_without_images(self) -> None:
        with pytest.warns(TrainingWarning, match=r"no training image of 2 of 4 classes \(1, 3\)"):
            fit(data=(images(8), torch.tensor([0, 2] * 4)), fitting={"targets": "labels"})

    def test_labels_that_are_not_needed_may_be_anything(self) -> None:
        data = [(image, {"boxes": []}) for image in images()]
        assert_same(fit(data=data), fit())

    def test_validation_images_of_another_size(self) -> None:
        with pytest.raises(LearnpropError, match=r"training images are \(3, 16, 16\), validation images \(3, 8, 8\)"):
            fit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(),
                fitting={"validation": torch.rand(4, 3, 8, 8)})  # fmt: skip

    def test_outputs_are_checked_without_deletions_too(self) -> None:
        model = net()
        with torch.no_grad():
            model[-1].bias[:] = torch.nan
        with pytest.raises(LearnpropError, match="NaN or infinite for image 0"):
            fit(model, objective=Sufficiency())

    def test_no_module(self) -> None:
        with pytest.raises(LearnpropError, match=r"nn\.Module"):
            RuleTrainer(lambda x: x)  # type: ignore[arg-type]

    def test_a_model_of_another_kind(self) -> None:
        with pytest.raises(LearnpropError, match=r"must return \(B, classes\)"):
            fit(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval())

    def test_an_output_that_is_not_finite(self) -> None:
        model = net()
        with torch.no_grad():
            model[-1].bias[:] = torch.nan
        with pytest.raises(LearnpropError, match="NaN or infinite for image 0"):
            fit(model)

    def test_a_checkpoint_of_another_run(self, tmp_path: Path) -> None:
        file = tmp_path / "run.safetensors"
        fit(fitting={"checkpoint": file})
        with pytest.raises(CheckpointError, match=r"lr: 0\.03 there, 0\.01 now"):
            fit(lr=0.01, fitting={"checkpoint": file})
        lrp: dict[str, Any] = {"composite": "learned_epsilon_gamma_box", "gate": "none"}
        other = tmp_path / "lrp.safetensors"
        fit(**lrp, rule_options={"gamma": 0.5}, fitting={"checkpoint": other})
        with pytest.raises(CheckpointError, match=r"rule_options: .*'gamma': 0\.5"):
            fit(**lrp, rule_options={"gamma": 0.25}, fitting={"checkpoint": other})
        with pytest.raises(CheckpointError, match="weights: "):
            fit(net(seed=1), fitting={"checkpoint": file})
        with pytest.raises(CheckpointError, match="data: "):
            fit(data=images(seed=1), fitting={"checkpoint": file})
        fit(internal_batch_size=3, fitting={"checkpoint": file})  # decides memory, not the result
        file.write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="damaged"):
            fit(fitting={"checkpoint": file})
        with pytest.raises(LearnpropError, match="does not exist"):
            fit(fitting={"checkpoint": tmp_path / "nowhere" / "run.safetensors"})

    def test_too_many_targets(self) -> None:
        with pytest.raises(LearnpropError, match="targets_per_image=9"):
            fit(fitting={"targets_per_image": 9})

    def test_maps_are_finished_as_they_were_trained(self) -> None:
        model, data = net(), images(3)
        rules = fit(model)
        method = cl.LearnedPropagation(model, rules=rules)
        attribution = method.attribute(data, target=1)
        torch.testing.assert_close(method.maps(data, target=1), postprocess(attribution, "absolute", 0.05))
        untrained = cl.LearnedPropagation(model, rules=zr.RuleSet.build(model, data, gate="channel"))
        with pytest.raises(cl.LearnpropError, match="RuleTrainer"):
            untrained.maps(data, target=1)

    def test_maps_that_are_learned_or_refined_are_finished_as_they_were_learned(self) -> None:
        model, data = net(), images(3)
        learned, refined = cl.LearnedPropagation(model), cl.LearnedPropagation(model, rules=fit(model))
        attribution = learned.attribute(data, target=1, n_steps=2, seed=3)
        maps = learned.maps(data, target=1, n_steps=2, seed=3)
        torch.testing.assert_close(maps, postprocess(attribution, "absolute", 0.025))
        attribution = refined.attribute(data, target=1, n_steps=2)
        torch.testing.assert_close(refined.maps(data, target=1, n_steps=2), postprocess(attribution, "absolute", 0.05))

    def test_outlines_are_learned_with_and_kept(self) -> None:
        model, data = net(), images(8)
        rules = fit(model, outlines=0.2)
        plain = fit(model)
        method = cl.LearnedPropagation(model, rules=rules)
        expected = postprocess(method.attribute(data, target=1), "absolute", 0.05, 0.2, data)
        torch.testing.assert_close(method.maps(data, target=1), expected)
        assert (rules.training["outlines"], plain.training["outlines"]) == (0.2, 0.0)
        torch.testing.assert_close(
            method.maps(data, target=1, outlines=0.0), postprocess(method.attribute(data, target=1), "absolute", 0.05)
        )
        assert any(not torch.equal(a, b) for a, b in zip(rules.parameters(), plain.parameters(), strict=True))

    def test_saved_with_its_summary(self, tmp_path: Path) -> None:
        model = net()
        rules = fit(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = zr.RuleSet.load(rules.save(tmp_path / "rules.safetensors", model), model)
        assert loaded.training == rules.training
        assert loaded.training["smoothing"] == 0.05
