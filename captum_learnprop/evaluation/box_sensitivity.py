"""Does the sum of a map inside a box tell how much the output falls without it? And how compact is a map?

Two of the scores that maps of vision transformers are compared by: random boxes are replaced by a baseline, and the
relevance inside is correlated with the fall of the logit (in the manner of Sensitivity-n, Ancona et al., ICLR 2018);
and the share of values that hardly differ from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import Baseline, fill_values
from captum_learnprop.evaluation.checks import require_batch_size, require_maps
from captum_learnprop.evaluation.faithfulness import OUTPUTS, Model, target_curve
from captum_learnprop.evaluation.similarity import pearson

LEVEL = 0.05
"""Share of a map's largest absolute value that counts as nothing."""


@torch.no_grad()
def box_sensitivity(
    model: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    box: int = 16,
    boxes: int = 100,
    baseline: Baseline = "blur",
    output: str = "logit",
    seed: int = 0,
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns the correlation of the map's sum in random boxes with the output's fall without them, ``(B,)`` in [-1,
    1].

    Higher is better; NaN for a map whose sums do not differ. All samples are asked about the same boxes.

    Formula:
        ``corr over boxes b of (sum_{i in b} m_i, f_t(x) - f_t(x with b replaced))``, Pearson's.

    Source:
        After Ancona, Ceolini, Öztireli, Gross, *Towards Better Understanding of Gradient-based Attribution Methods*
        (Sensitivity-n), ICLR 2018.

    Args:
        model: inputs to outputs ``(B, classes)``; a module must be in evaluation mode.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``, signed.
        targets: ``(B,)`` int64.
        box: side of the boxes in pixels, at most that of the inputs.
        boxes: how many, at least 2.
        baseline: what the pixels in a box become: a number, a tensor, a name or a function, as `fill_values` takes
            them.
        output: ``"logit"``, or a ``"softmax"`` or ``"sigmoid"`` probability.
        seed: of the places and of a baseline that is drawn.
        internal_batch_size: how many inputs go through the model together.

    Raises:
        LearnpropError: shapes do not fit, an option is out of range, or a map is not finite.

    Example:
        >>> inputs = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> model = lambda images: images.sum((2, 3))  # one class, to which each pixel adds its value
        >>> targets = torch.tensor([0])
        >>> box_sensitivity(model, inputs, inputs[:, 0], targets, box=1, boxes=20, baseline="zero")
        tensor([1.], dtype=torch.float64)
    """
    require_maps(inputs, maps, targets)
    require_batch_size(internal_batch_size)
    height, width = inputs.shape[-2:]
    if not 1 <= box <= min(height, width) or boxes < 2:
        raise LearnpropError(
            f"box must be 1 to {min(height, width)} pixels and boxes at least 2, got {box} and {boxes}"
        )
    if output not in OUTPUTS:
        raise LearnpropError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")
    generator = torch.Generator().manual_seed(seed)
    tops = torch.randint(height - box + 1, (boxes, 1), generator=generator)
    lefts = torch.randint(width - box + 1, (boxes, 1), generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    inside = ((rows >= tops) & (rows < tops + box))[:, :, None] & ((columns >= lefts) & (columns < lefts + box))[
        :, None
    ]
    inside = torch.cat([torch.zeros(1, height, width, dtype=torch.bool), inside]).to(inputs.device)
    fill = fill_values(baseline, inputs, seed)

    def changed(samples: Tensor, points: Tensor) -> Tensor:
        return torch.where(inside[points, None], fill[samples], inputs[samples])

    curve = target_curve(model, changed, OUTPUTS[output], targets, boxes + 1, internal_batch_size).double()
    sums = torch.einsum("bhw,khw->bk", maps.reshape(-1, height, width).double(), inside[1:].double())
    return pearson(sums, curve[:, :1] - curve[:, 1:])


def compactness(maps: Tensor, level: float = LEVEL) -> Tensor:
    """Returns the share of a map's absolute values of at most ``level`` times the largest, ``(B,)`` in [0, 1].

    Higher is more compact; 1 for a map of zeros.

    Formula:
        ``mean_i [|m_i| <= level * max_j |m_j|]``.

    Source:
        One of the scores that maps of vision transformers are compared by.

    Args:
        maps: ``(B, ...)``.
        level: share of the largest absolute value.

    Raises:
        LearnpropError: there are no values, or the level is not in [0, 1].

    Example:
        >>> compactness(torch.tensor([[[10.0, 0.1], [0.0, -3.0]]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if maps.dim() < 2 or not maps.numel() or not 0 <= level <= 1:
        raise LearnpropError(f"maps must be (B, ...) and level in [0, 1], got {tuple(maps.shape)} and {level}")
    values = maps.detach().flatten(1).abs()
    return (values <= level * values.amax(1, keepdim=True)).double().mean(1)
