"""The joint descent: one step length for all gates of a sample, and a pull towards the start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_learnprop.training.joint_descent import STEEP, JointDescent
from zennit_rules import ElementGate, QuadrantGate


def gate_with(*rows: list[float]) -> ElementGate:
    gate = ElementGate((len(rows), len(rows[0])))
    gate.raw.data.copy_(torch.tensor(rows))
    return gate


def test_a_first_step_has_the_length_asked_for_over_all_gates() -> None:
    one, other = gate_with([0.0, 0.0], [0.0, 0.0]), QuadrantGate((2, 3), samples=2)
    descent = JointDescent(0.5, 2)
    first = 3 + torch.rand(2, 2)
    second = torch.randn(other.raw.shape)
    descent.note("one", one, {"raw": first.clone()})
    descent.note("other", other, {"raw": second.clone()})
    assert not one.raw.any()
    descent.step()
    for sample in range(2):
        gradient = torch.cat([first[sample].flatten(), second[:, sample].flatten()])
        moved = torch.cat([one.raw[sample].flatten(), other.raw[:, sample].flatten()]).detach()
        torch.testing.assert_close(moved, -0.5 * gradient / gradient.norm())


def test_short_gradients_make_shorter_steps() -> None:
    gate, descent = gate_with([0.0, 0.0], [0.0, 0.0]), JointDescent(1.0, 2)
    descent.note("site", gate, {"raw": torch.tensor([[0.6, 0.8], [0.06 * STEEP, 0.08 * STEEP]])})
    descent.step()
    torch.testing.assert_close(gate.raw.detach(), torch.tensor([[-0.6, -0.8], [-0.06, -0.08]]))


def test_momentum_and_pull() -> None:
    gate, descent = gate_with([1.0, 2.0]), JointDescent(1.0, 1, momentum=0.5, pull=0.25)
    start, moving = torch.tensor([1.0, 2.0]), torch.zeros(2)
    expected = start.clone()
    for gradient in (torch.tensor([3.0, 4.0]), torch.tensor([-1.0, 2.0]), torch.tensor([5.0, 0.0])):
        descent.note("site", gate, {"raw": gradient[None].clone()})
        descent.step()
        moving = 0.5 * moving + gradient
        expected = expected + 0.25 * (start - expected) - moving / moving.norm()
        torch.testing.assert_close(gate.raw[0].detach(), expected)


def test_the_pull_bounds_the_way_from_the_start() -> None:
    gate, descent = gate_with([0.0, 0.0]), JointDescent(0.3, 1, pull=0.1)
    for _ in range(200):
        descent.note("site", gate, {"raw": torch.tensor([[3.0, 4.0]])})
        descent.step()
    torch.testing.assert_close(gate.raw.detach().norm(), torch.tensor(3.0))


@pytest.mark.parametrize("rows", [1, 3])
def test_rounding_noise_is_no_gradient(rows: int) -> None:
    """Also where a sample has several rows at a site, as when a model folds time into the batch."""
    gate, descent = ElementGate((2 * rows, 1)), JointDescent(1.0, 2)
    descent.noise = torch.tensor([2.0, 2.0])
    descent.note("site", gate, {"raw": torch.tensor([[1.0]] * rows + [[5.0]] * rows)})
    descent.step()
    torch.testing.assert_close(gate.raw.detach(), torch.tensor([[0.0]] * rows + [[-(rows**-0.5)]] * rows))


def test_rows_that_are_no_samples_move_together() -> None:
    """Where a model puts time first, the rows of a gate do not count the samples."""
    gate, descent = gate_with([0.0], [0.0], [0.0]), JointDescent(1.0, 2)
    gradient: Tensor = torch.tensor([[1.0], [2.0], [2.0]])
    descent.note("site", gate, {"raw": gradient.clone()})
    descent.step()
    torch.testing.assert_close(gate.raw.detach(), -gradient / 3)
