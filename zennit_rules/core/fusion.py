"""Fusion: relevance maps of sites at several depths, multiplied into the map at the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RuleError
from .sites import Site


class Fusion(nn.Module):
    """Maps of several depths, multiplied into the attribution at the input.

    ``a * prod_l (e + m_l) ** w_l`` with ``m_l = max(sum_c relu(z) g, 0)`` of site ``l``, divided by its largest value
    in the sample and brought to the input's size; ``w_l = 2 tanh(raw_l)``, so that ``raw = 0`` leaves ``a`` as it is.
    A site without any positive relevance says nothing.

    Args:
        sites: Names of the fused sites.
    """

    floor = 0.02
    """``e``: what a pixel keeps where a depth sees nothing."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(sites)
        self.raw = nn.Parameter(torch.zeros(len(self.names)))

    @staticmethod
    def choose(sites: Sequence[Site], inputs: Sequence[Tensor]) -> list[str]:
        """Returns the name of the last activation of each resolution.

        Raises:
            RuleError: If there is not one input ``(B, C, *spatial)``, or no site of its kind.
        """
        shape = tuple(inputs[0].shape)
        if len(inputs) != 1 or not 3 <= len(shape) <= 5:
            raise RuleError(f"fusion needs one input (B, C, *spatial), got {[tuple(x.shape) for x in inputs]}")
        fitting = [
            site
            for site in sites
            if site.kind == "activation"
            and len(site.shape) == len(shape)
            and site.channel_dim == 1
            and site.shape[0] == shape[0]
            and max(site.shape[2:]) > 1
        ]
        if not fitting:
            raise RuleError("fusion needs activations (B, C, *spatial) with more than one position; there is none")
        return list({site.shape[2:]: site.name for site in fitting}.values())

    @property
    def weights(self) -> Tensor:
        """The exponents ``w``, one per site, in (-2, 2)."""
        return 2 * torch.tanh(self.raw)

    def forward(self, maps: tuple[Tensor, ...], arrived: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The attribution ``(B, C, *spatial)``, multiplied by the maps ``(B, *spatial_l)`` of the sites."""
        (attribution,) = maps
        exponent = torch.zeros((), device=attribution.device, dtype=attribution.dtype)
        for weight, name in zip(self.weights, self.names, strict=True):
            if name in arrived:
                exponent = exponent + weight.to(attribution.dtype) * self._log(arrived[name], attribution)
        return (attribution * exponent.exp(),)

    def _log(self, relevance: Tensor, attribution: Tensor) -> Tensor:
        dims = tuple(range(1, relevance.ndim))
        top = relevance.amax(dim=dims, keepdim=True)
        scaled = torch.where(top > 0, relevance / torch.where(top > 0, top, 1.0), torch.ones_like(relevance))
        mode = ("linear", "bilinear", "trilinear")[relevance.ndim - 2]
        size = attribution.shape[2:]
        sized = F.interpolate(scaled[:, None].to(attribution.dtype), size=size, mode=mode, align_corners=False)
        return (self.floor + sized).log()
