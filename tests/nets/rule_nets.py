"""Small networks in float64, one per way of calling activations, and numerical oracles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATE_NAMES = ("element", "position", "channel", "quadrant", "feature")
STARTS = ("gradient", "deconvnet", "guided_backprop")


def prepare(model: nn.Module) -> nn.Module:
    """Evaluation mode, float64, frozen weights, and batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.normal_(module.weight, mean=1.0, std=0.2)
                nn.init.normal_(module.bias, std=0.2)
    return model.double().eval().requires_grad_(False)


def vgg() -> nn.Module:
    """Modules only, each called once."""
    return prepare(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5),
        )
    )  # fmt: skip


class Block(nn.Module):
    """Residual block that calls one ReLU twice."""

    def __init__(self, channels: int, inplace: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and the identity."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResidualNet(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.Sequential(Block(4, inplace), Block(4, inplace))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.layers(self.pool(self.relu(self.bn(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


def resnet(inplace: bool = True) -> nn.Module:
    """Reused ReLU modules, in place by default."""
    return prepare(ResidualNet(inplace))


class InceptionNet(nn.Module):
    """Parallel branches; activations and pooling by functions, or by modules with the same weights."""

    def __init__(self, functional: bool = True) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.right, self.fc = nn.Conv2d(4, 3, 3, padding=1), nn.Linear(10, 5)
        self.functional = functional
        if not functional:
            self.relus, self.pool = nn.ModuleList(nn.ReLU() for _ in range(3)), nn.MaxPool2d(3, 1, 1)

    def _relu(self, x: Tensor, k: int) -> Tensor:
        if not self.functional:
            return self.relus[k](x)
        return (F.relu, torch.relu, lambda z: F.relu(z, inplace=True))[k](x)

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1) if self.functional else self.pool(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self._relu(self.stem(x), 0)
        x = torch.cat([self._relu(self.left(x), 1), self._relu(self.right(x), 2), self._pool(x)], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def inception() -> nn.Module:
    """Functional activations and pooling."""
    return prepare(InceptionNet())


def twin(model: nn.Module) -> nn.Module:
    """The same function out of modules called in a way that every library sees."""
    if isinstance(model, InceptionNet):
        other: nn.Module = InceptionNet(functional=False)
    elif isinstance(model, ResidualNet):
        other = ResidualNet(inplace=False)
    else:
        return model
    prepare(other).load_state_dict(model.state_dict())
    return other


NETS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "resnet": resnet, "inception": inception}


def images(batch: int = 2, size: int = 8) -> Tensor:
    """Differentiable input, ``(B, 3, size, size)``."""
    return torch.randn(batch, 3, size, size, dtype=torch.float64, requires_grad=True)


def one_hot(output: Tensor, target: int = 1) -> Tensor:
    """Constant seed of the backward pass."""
    seed = torch.zeros_like(output)
    seed[:, target] = 1
    return seed.detach()


@torch.no_grad()
def randomise(parameters: Iterable[Tensor], scale: float = 0.4) -> None:
    """Move parameters off their start."""
    for parameter in parameters:
        parameter.copy_(scale * torch.randn_like(parameter))


def score(maps: Tensor | Sequence[Tensor]) -> Tensor:
    """A loss on attributions whose derivative depends on their values."""
    maps = [maps] if isinstance(maps, Tensor) else maps
    ramps = (torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m) for m in maps)
    return torch.stack([(m * (ramp + m)).sum() for m, ramp in zip(maps, ramps, strict=True)]).sum()


def assert_gradient(
    value: Callable[[], Any], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], eps: float = 1e-5
) -> None:
    """Compare gradients with central differences of ``value`` along random directions, for each tensor."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient is not None
        assert gradient.shape == tensor.shape
        kept = tensor.detach().clone()
        for _ in range(2):
            direction = torch.randn_like(kept)
            ends = []
            for step in (eps, -eps):
                with torch.no_grad():
                    tensor.copy_(kept + step * direction)
                ends.append(float(value()))
            with torch.no_grad():
                tensor.copy_(kept)
            numerical = (ends[0] - ends[1]) / (2 * eps)
            analytical = float((gradient * direction).sum())
            size = max(abs(numerical), float((gradient * direction).abs().sum()), 1e-6)
            assert abs(numerical - analytical) <= 1e-5 * size, (numerical, analytical)
