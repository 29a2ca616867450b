"""DiFull: a mosaic model in which only one cell can matter for each output, so that the right answer is known.

Rao, Böhle, Schiele: *Towards Better Understanding Attribution Methods*, CVPR 2022. In a mosaic of images
every class has a head of its own for every cell, and the heads are fully disconnected: the outputs of a cell are
computed from that cell alone. Attribution outside it is wrong, whatever the model has learned. A method that follows
the gradient scores exactly 1; one that smooths or upsamples a coarse map over the mosaic does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.checks import require_batch_size, require_targets
from captum_learnprop.evaluation.localization import grid_pointing
from captum_learnprop.evaluation.randomization import Attribute
from captum_learnprop.forward import output_of
from captum_learnprop.maps import reduce_channels


class DiFull(nn.Module):
    """A classifier of single images as a classifier of mosaics, whose outputs each see one cell.

    The cells of a mosaic go through the classifier as if they were images of their own: outputs are ``(B, cells^2 *
    classes)``, class c of cell k (in reading order) at ``k * classes + c``. All cells share the weights. The classifier
    sees batches of ``B * cells^2``, in the order of `split`: a method that explains a layer of it gets the cells along
    the batch, not along space.

    Args:
        model: ``(B, C, H, W)`` to ``(B, classes)``; used, not copied. In evaluation mode: a batch norm in training mode
            connects the cells.
        cells: per side, at least 1.

    Raises:
        LearnpropError: there are no cells, or a module of the model is in training mode.
    """

    def __init__(self, model: nn.Module, cells: int = 2) -> None:
        super().__init__()
        if cells < 1:
            raise LearnpropError(f"a mosaic has at least one cell per side, got {cells}")
        if any(module.training for module in model.modules()):
            raise LearnpropError("the model must be in evaluation mode: batch norms in training mode connect the cells")
        self.model = model
        self.cells = cells
        self.training = False

    def forward(self, mosaics: Tensor) -> Tensor:
        """Outputs ``(B, cells^2 * classes)`` of mosaics ``(B, C, cells * H, cells * W)``."""
        outputs = output_of(self.model, (split(mosaics, self.cells),))
        return outputs.reshape(len(mosaics), -1)


def mosaic(images: Tensor, cells: int = 2) -> Tensor:
    """Returns mosaics ``(B / cells^2, C, cells * H, cells * W)`` of successive images, in reading order.

    Args:
        images: ``(B, C, H, W)``, B a multiple of ``cells^2``.
        cells: per side of a mosaic.

    Raises:
        LearnpropError: the images do not fill the mosaics.

    Example:
        >>> mosaic(torch.arange(4.0).reshape(4, 1, 1, 1))
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    if images.dim() != 4 or cells < 1 or not len(images) or len(images) % cells**2:
        raise LearnpropError(f"images must be (B, C, H, W) with B a multiple of {cells}^2, got {tuple(images.shape)}")
    batch, channels, height, width = images.shape
    rows = images.reshape(batch // cells**2, cells, cells, channels, height, width)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, cells * height, cells * width)


def split(mosaics: Tensor, cells: int = 2) -> Tensor:
    """Returns the images ``(B * cells^2, C, H, W)`` that mosaics are made of: the inverse of `mosaic`.

    Args:
        mosaics: ``(B, C, cells * H, cells * W)``.
        cells: per side of a mosaic.

    Raises:
        LearnpropError: the mosaics cannot be cut into that many cells.

    Example:
        >>> split(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """
    if mosaics.dim() != 4 or cells < 1 or mosaics.shape[2] % cells or mosaics.shape[3] % cells:
        raise LearnpropError(f"mosaics must be (B, C, {cells} * H, {cells} * W), got {tuple(mosaics.shape)}")
    batch, channels, height, width = mosaics.shape
    parts = mosaics.reshape(batch, channels, cells, height // cells, cells, width // cells)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // cells, width // cells)


def difull_score(
    model: nn.Module,
    attribute: Attribute,
    images: Tensor,
    targets: Tensor,
    *,
    cells: int = 2,
    sign: str = "positive",
    internal_batch_size: int = 64,
) -> Tensor:
    """Returns the share of the attribution in the cell of the explained output, ``(B,)`` in [0, 1].

    1 is the only right answer, ``1 / cells^2`` that of a constant map. Successive images make up mosaics; for each
    image the `DiFull` model's output for its cell and its target is explained, and the map scored by `grid_pointing`. A
    map without positive values scores 0: take ``sign="absolute"`` where attributions can be negative everywhere.

    Formula:
        ``sum_{i in own cell} max(m_i, 0) / sum_i max(m_i, 0)`` on a mosaic whose other cells cannot matter.

    Source:
        Rao, Böhle, Schiele, *Towards Better Understanding Attribution Methods*, CVPR 2022.

    Args:
        model: classifier of single images, in evaluation mode; not changed.
        attribute: ``(DiFull model, mosaics (n, C, cells * H, cells * W), targets (n,)) -> attribution``, of the
            mosaics' shape or without channels.
        images: ``(B, C, H, W)``, B a multiple of ``cells^2``.
        targets: ``(B,)`` int64.
        cells: per side of a mosaic.
        sign: how `captum_learnprop.maps.reduce_channels` reduces channels; maps ``(n, H, W)`` are taken as they are.
        internal_batch_size: how many mosaics are explained together; each costs ``cells^2`` images.

    Raises:
        LearnpropError: shapes do not fit, the model is in training mode, a target does not exist, or an attribution is
            not finite.

    Example:
        >>> def gradient(model, inputs, targets):
        ...     leaf = inputs.clone().requires_grad_()
        ...     return torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)[0]
        >>> difull_score(nn.Flatten().eval(), gradient, torch.ones(4, 1, 2, 2), torch.tensor([0, 1, 2, 3]))
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    mosaics = mosaic(images.detach(), cells)
    require_targets(targets, len(images))
    require_batch_size(internal_batch_size)
    disconnected = DiFull(model, cells)
    with torch.no_grad():
        classes = output_of(model, (images[:1],)).shape[1]
    if not ((targets >= 0) & (targets < classes)).all():
        raise LearnpropError(f"targets must be classes 0 to {classes - 1}, got {targets.tolist()}")
    place = torch.arange(len(images), device=images.device)
    scores = []
    for rows in place.split(internal_batch_size):
        own = rows % cells**2
        wholes = mosaics[rows // cells**2]
        maps = attribute(disconnected, wholes, own * classes + targets[rows]).detach()
        scores.append(grid_pointing(_as_maps(maps, wholes, sign), own, cells))
    return torch.cat(scores)


def _as_maps(attribution: Tensor, mosaics: Tensor, sign: str) -> Tensor:
    expected = (len(mosaics), *mosaics.shape[2:])
    if attribution.dim() == 4:
        attribution = reduce_channels(attribution, sign)
    if tuple(attribution.shape) != expected:
        raise LearnpropError(f"attribute gave maps {tuple(attribution.shape)} for mosaics {tuple(mosaics.shape)}")
    return attribution
