"""What LRP by trainable rules costs, next to zennit's rules.

Per model, interleaved: attributions by zennit's Gamma and EpsilonGammaBox, by ours at the same settings, and a training
step of ours (attribution with its graph, and the derivative to every parameter of the rules).

    python examples/benchmarks/lrp_cost.py                    # ResNet-18 and VGG-11 at 96 px, 3 minutes on a core
    python examples/benchmarks/lrp_cost.py --models vgg11 --size 224 --runs 3
"""

from __future__ import annotations

import argparse
import json

import torch
from timing import interleaved
from torch import Tensor, nn
from torchvision.models import get_model
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer
from zennit.composites import EpsilonGammaBox, EpsilonPlus, LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.rules import Gamma, Pass, ZBox
from zennit.torchvision import ResNetCanonizer
from zennit.types import Convolution
from zennit.types import Linear as LinearLike

import zennit_rules as zr

GAMMA, LOW, HIGH = 0.25, -3.0, 3.0


def seed(output: Tensor) -> Tensor:
    """Relevance of the outputs: that of class 1."""
    start = torch.zeros_like(output)
    start[:, 1] = 1
    return output * start


def attribute(model: nn.Module, x: Tensor, composite: zr.LearnedComposite | LayerMapComposite) -> Tensor:
    """One attribution, through zennit's attributor."""
    with Gradient(model, composite) as attributor:
        relevance: Tensor = attributor(x.clone(), seed)[1]
    return relevance


def step(model: nn.Module, x: Tensor, rules: zr.RuleSet) -> None:
    """One training step without its loss: a backward pass with a graph, and a second one to the rules."""
    with Gradient(model, rules.composite(), create_graph=True) as attributor:
        relevance: Tensor = attributor(x.clone(), seed)[1]
    torch.autograd.grad(relevance.square().sum(), rules.parameters(), materialize_grads=True)


def measure(name: str, size: int, batch: int, runs: int) -> dict[str, object]:
    """One row of the table."""
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval().requires_grad_(False)
    x = torch.randn(batch, 3, size, size)
    canonizers: list[Canonizer] = [ResNetCanonizer()] if name.startswith("resnet") else []

    def everywhere(rule: Gamma | zr.LearnedGamma) -> LayerMapComposite:
        return LayerMapComposite([(LinearLike, rule), (nn.ReLU, Pass())], canonizers=canonizers)

    options = {"gamma": GAMMA, "negative": "mirrored", "low": LOW, "high": HIGH}
    gamma = {**options, "first": "conv", "dense": "gamma"}
    box = zr.RuleSet.build(model, x, "learned_epsilon_gamma_box", rule_options=options)
    whole = zr.RuleSet.build(model, x, "learned_epsilon_gamma_box", rule_options=gamma)
    gated = zr.RuleSet.build(
        model, x, "learned_epsilon_gamma_box", "feature", gate_options={"position": True}, rule_options=options
    )
    trained = zr.RuleSet.build(  # as RuleTrainer makes them
        model, x, "learned_epsilon_gamma_box", "feature", pooling="soft", gate_options={"position": True},
        rule_options={"low": LOW, "high": HIGH},
    )  # fmt: skip
    with torch.no_grad():
        for parameter in trained.parameters():  # off the start, where max-pools take a short cut
            parameter.sub_(0.1)
    plus = SpecialFirstLayerMapComposite(
        EpsilonPlus().layer_map, [(Convolution, ZBox(low=LOW, high=HIGH))], canonizers=canonizers
    )
    t = interleaved(
        {
            "gradient": lambda: attribute(model, x, LayerMapComposite([])),
            "zennit gamma": lambda: attribute(model, x, everywhere(Gamma(GAMMA))),
            "LearnedGamma": lambda: attribute(model, x, everywhere(zr.LearnedGamma(GAMMA))),
            "zennit box": lambda: attribute(model, x, EpsilonGammaBox(low=LOW, high=HIGH, canonizers=canonizers)),
            "learned box": lambda: attribute(model, x, box.composite()),
            "gated box": lambda: attribute(model, x, gated.composite()),
            "zennit plus": lambda: attribute(model, x, plus),
            "trained": lambda: attribute(model, x, trained.composite()),
            "gamma": lambda: attribute(model, x, whole.composite()),
            "gamma step": lambda: step(model, x, whole),
            "box step": lambda: step(model, x, box),
            "gated step": lambda: step(model, x, gated),
        },
        runs,
    )
    return {
        "model": name, "size": size, "batch": batch,
        "gradient ms": round(1e3 * t["gradient"], 1),
        "zennit Gamma / gradient": round(t["zennit gamma"] / t["gradient"], 2),
        "LearnedGamma / zennit Gamma": round(t["LearnedGamma"] / t["zennit gamma"], 3),
        "step / attribution, gamma": round(t["gamma step"] / t["gamma"], 2),
        "learned box / zennit EpsilonGammaBox": round(t["learned box"] / t["zennit box"], 3),
        "step / attribution, box": round(t["box step"] / t["learned box"], 2),
        "gated box / learned box": round(t["gated box"] / t["learned box"], 2),
        "as trained / zennit z+ box": round(t["trained"] / t["zennit plus"], 2),
        "step / attribution, gated": round(t["gated step"] / t["gated box"], 2),
    }  # fmt: skip


def main() -> None:
    """Print a row of JSON per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg11"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        print(json.dumps(measure(name, options.size, options.batch, options.runs)), flush=True)


if __name__ == "__main__":
    main()
