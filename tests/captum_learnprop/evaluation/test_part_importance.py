"""Importance of parts: known drops, scipy's rank correlation, errors; and the shipped nets on figures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.part_importance import part_correlation, part_drops
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.objects import part_variants
from captum_learnprop.scenes.scenes import make_scenes


def quarters(count: int) -> Tensor:
    """Four parts, the quarters of a 4 x 4 image: ``(count, 4, 4, 4)``."""
    part = torch.arange(16).reshape(4, 4) // 8 * 2 + torch.arange(4) // 2
    return (part == torch.arange(4)[:, None, None]).expand(count, -1, -1, -1)


class TestDrops:
    weights = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, -1.0, 0.5, 0.0]])

    def model(self, images: Tensor) -> Tensor:
        """Two logits, each a weighted sum of the quarters."""
        sums = (images[:, 0, None] * quarters(len(images))).sum((2, 3)) / 4
        return sums @ self.weights.T

    def scenes(self) -> tuple[Tensor, Tensor]:
        images = torch.ones(2, 1, 4, 4)
        return images, images[:, None] * ~quarters(2)[:, :, None]

    def test_linear_model(self) -> None:
        images, without = self.scenes()
        drops = part_drops(self.model, images, without, torch.tensor([0, 1]), output="logit", internal_batch_size=3)
        torch.testing.assert_close(drops, self.weights)

    @pytest.mark.parametrize("output", ["softmax", "sigmoid"])
    def test_probabilities(self, output: str) -> None:
        images, without = self.scenes()
        quantity = torch.sigmoid if output == "sigmoid" else (lambda logits: logits.softmax(1))
        drops = part_drops(self.model, images, without, torch.tensor([1, 1]), output=output)
        expected = quantity(self.model(images))[0, 1] - quantity(self.model(without[0]))[:, 1]
        torch.testing.assert_close(drops[0], expected)

    def test_errors(self) -> None:
        images, without = self.scenes()
        targets = torch.tensor([0, 1])
        with pytest.raises(LearnpropError, match=r"without must be \(M, P, C, H, W\)"):
            part_drops(self.model, images, without[:, 0], targets)
        with pytest.raises(LearnpropError, match=r"images must be"):
            part_drops(self.model, images[0], without, targets)
        with pytest.raises(LearnpropError, match=r"int64 of shape \(2,\), got torch\.float32"):
            part_drops(self.model, images, without, targets.float())
        with pytest.raises(LearnpropError, match="'odds'; choose one of softmax"):
            part_drops(self.model, images, without, targets, output="odds")
        with pytest.raises(LearnpropError, match="got 0"):
            part_drops(self.model, images, without, targets, internal_batch_size=0)


class TestCorrelation:
    def test_order_counts_not_size(self) -> None:
        drops = torch.tensor([[0.1, 0.2, 0.3, 0.9], [4.0, 3.0, 2.0, 1.0]])
        maps = (quarters(2) * torch.tensor([1.0, 2.0, 9.0, 10.0])[:, None, None]).sum(1)
        torch.testing.assert_close(part_correlation(maps, quarters(2), drops), torch.tensor([1.0, -1.0]).double())
        torch.testing.assert_close(
            part_correlation(maps[:, None], quarters(2), drops), torch.tensor([1.0, -1.0]).double()
        )

    def test_scipy_with_ties(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        generator = torch.Generator().manual_seed(0)
        sums, drops = torch.randint(3, (2, 50, 4), generator=generator).double()
        maps = (quarters(50) * sums[..., None, None]).sum(1)
        found = part_correlation(maps, quarters(50), drops)
        for value, first, second in zip(found.tolist(), sums, drops, strict=True):
            constant = len(first.unique()) == 1 or len(second.unique()) == 1
            assert value == pytest.approx(0.0 if constant else stats.spearmanr(first, second).statistic)

    def test_pixels_outside_the_parts_do_not_count(self) -> None:
        parts = quarters(1)[:, :3]
        maps = torch.tensor([1.0, 2.0, 3.0, 50.0])[:, None, None].mul(quarters(1)).sum(1)
        assert part_correlation(maps, parts, torch.tensor([[1.0, 2.0, 3.0]])).item() == pytest.approx(1.0)

    def test_errors(self) -> None:
        maps, parts, drops = torch.ones(2, 4, 4), quarters(2), torch.zeros(2, 4)
        assert part_correlation(maps, parts, drops).tolist() == [0.0, 0.0]
        with pytest.raises(LearnpropError, match=r"got torch\.float32"):
            part_correlation(maps, parts.float(), drops)
        with pytest.raises(LearnpropError, match="2 parts at least"):
            part_correlation(maps, parts[:, :1], drops[:, :1])
        with pytest.raises(LearnpropError, match=r"maps must be \(2, 4, 4\)"):
            part_correlation(maps[:1], parts, drops)
        with pytest.raises(LearnpropError, match=r"drops must be \(2, 4\)"):
            part_correlation(maps, parts, drops[:, :3])
        with pytest.raises(LearnpropError, match="map 1 has NaN"):
            part_correlation(torch.stack([maps[0], maps[0] * float("nan")]), parts, drops)
        with pytest.raises(LearnpropError, match="row of drops 0 has NaN"):
            part_correlation(maps, parts, drops / 0)


@pytest.mark.parametrize("architecture", reference_nets.ARCHITECTURES)
def test_the_parts_that_tell_a_class_from_its_neighbours_matter_most(architecture: str) -> None:
    drawn = make_scenes("parts", 100, split="test", seed=11, counterfactuals=True)
    asked = drawn.questions()
    assert asked.without is not None
    assert asked.parts is not None
    drops = part_drops(reference_nets.load(architecture, "parts"), asked.images, asked.without, asked.targets)
    variants = part_variants()
    needed = torch.stack([(variants != variants.roll(step, 0)) for step in (1, -1)]).any(0)[asked.targets]
    assert needed.sum(1).eq(2).all()
    assert drops[needed].mean() > 0.3
    assert drops[needed].mean() > drops[~needed].mean() + 0.25
    truth = (asked.parts * drops[..., None, None] / asked.parts.sum((2, 3))[..., None, None]).sum(1)
    assert part_correlation(truth, asked.parts, drops).mean() > 0.999
