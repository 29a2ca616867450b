"""A net of all kinds of layers that captum's LRP takes, and trained rules for it."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn

from zennit_rules import RuleSet


class Net(nn.Module):
    """All kinds of layers that captum's LRP takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.relu1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.pool, self.conv2, self.tanh = nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh()
        self.add, self.average, self.mean = Addition_Module(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.relu2, self.drop, self.fc2 = nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.norm(self.conv1(x))))
        x = self.average(self.add(self.tanh(self.conv2(x)), x))
        return self.fc2(self.drop(self.relu2(self.fc1(self.mean(x).flatten(1)))))


def net(kind: type[nn.Module] = Net) -> Any:
    torch.manual_seed(1)
    model = kind().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def batch(samples: int = 3) -> Tensor:
    return torch.randn(samples, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def trained(model: nn.Module, x: Any, std: float = 0.3, **options: Any) -> RuleSet:
    rules = RuleSet.build(model, x, "learned_epsilon_gamma_box", **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return rules
