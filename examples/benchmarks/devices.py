"""Do attributions agree between CPU and another device, and do rules move with the model?

python examples/benchmarks/devices.py --device cuda
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from torchvision.models import get_model

import captum_learnprop as cl
import zennit_rules as zr


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a.cpu().double() - b.cpu().double()).abs().max() / b.cpu().double().abs().max())


def main() -> None:
    """Print one line per check; exit with an error if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed = 0

    def check(name: str, error: float, bound: float) -> None:
        nonlocal failed
        failed += error > bound
        print(f"{'ok  ' if error <= bound else 'FAIL'} {name}: {error:.2e} (bound {bound:.0e})", flush=True)

    for model_name, size in (
        ("resnet18", 64),
        ("googlenet", 64),
        ("convnext_tiny", 64),
        ("swin_t", 64),
        ("vit_b_16", 224),
    ):
        torch.manual_seed(0)
        model = get_model(
            model_name, weights=None, **({"init_weights": True} if model_name == "googlenet" else {})
        ).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter)
        model = model.double()
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        rules = zr.RuleSet.build(model, x, gate="feature", pooling="soft")
        with torch.no_grad():
            for p in rules.parameters():
                p.normal_(0, 0.3)
        one = cl.LearnedPropagation(model, rules=rules).attribute(x, target=3)
        step = cl.LearnedPropagation(model, gate="quadrant")
        learned = step.attribute(x, target=3, n_steps=1, objective=cl.Agreement(), mask=cl.MaxMask())
        with tempfile.TemporaryDirectory() as folder:
            path = rules.save(Path(folder) / "rules.safetensors", model)
            model = model.to(device)
            moved = zr.RuleSet.load(path, model)
        there = cl.LearnedPropagation(model, rules=moved).attribute(x.to(device), target=3)
        check(f"{model_name}, one backward, float64", relative(there, one), 1e-9)
        learned_there = cl.LearnedPropagation(model, gate="quadrant").attribute(
            x.to(device), target=3, n_steps=1, objective=cl.Agreement(), mask=cl.MaxMask()
        )
        check(f"{model_name}, learned one step, float64", relative(learned_there, learned), 1e-6)
        model, x32 = model.float(), x.float().to(device)
        moved.to(dtype=torch.float32)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            half = cl.LearnedPropagation(model, rules=moved).attribute(x32, target=3)
            cl.LearnedPropagation(model).attribute(x32, target=3, n_steps=2)
        a, b = (m.detach().cpu().double().flatten() / float(m.abs().max()) for m in (half, one))
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
        check(f"{model_name}, bfloat16 autocast, 1 - cosine", 1 - float(cosine), 0.2)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
