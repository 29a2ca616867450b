"""Train the small net that `learnprop demo` explains, and write its weights.

    python examples/train_digits_net.py --out digits_cnn.safetensors

Needs the extra ``[demo]`` (scikit-learn bundles the digits). The net sees new scenes in every epoch, made
from the training digits only; the accuracies it prints are those of scenes made from digits it has never
seen.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.evaluation.digits_net import FORMAT_VERSION, DigitsNet
from captum_learnprop.evaluation.scenes import Scenes, make_scenes


def main() -> None:
    """Train, measure, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = train(options.scenes, options.epochs, options.batch_size, options.lr, options.seed)
    accuracy = {
        f"{split}_{family}": score(net, make_scenes(family, options.test_scenes, split=split, seed=options.seed))
        for split in ("validation", "test")
        for family in ("digits", "pairs")
    }
    print("share of scenes with every digit named:", {name: round(value, 4) for name, value in accuracy.items()})
    schedule = {
        "scenes": options.scenes,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
    }
    write(net, options.out, {"seed": options.seed, **schedule, **accuracy})
    print(f"wrote {options.out}")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_cnn.safetensors"))
    parser.add_argument("--scenes", type=int, default=4000, help="new scenes per epoch, half of them pairs")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def train(scenes: int, epochs: int, batch_size: int, lr: float, seed: int) -> DigitsNet:
    """Binary cross-entropy on both families, AdamW, one cycle of the learning rate."""
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    steps = epochs * -(-2 * (scenes // 2) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.15)
    start = time.perf_counter()
    for epoch in range(epochs):
        images, labels = epoch_data(scenes // 2, seed=seed + 1000 * epoch)
        order = torch.randperm(len(images))
        net.train()
        total = 0.0
        for batch in order.split(batch_size):
            loss = F.binary_cross_entropy_with_logits(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(
            f"epoch {epoch + 1:2d}  loss {total / len(images):.4f}  {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return net.eval()


def epoch_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(2 * count, 3, 64, 64)`` and labels ``(2 * count, 10)``: as many digits as pairs."""
    parts = [make_scenes(family, count, split="train", seed=seed) for family in ("digits", "pairs")]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


@torch.no_grad()
def score(net: DigitsNet, scenes: Scenes) -> float:
    """Share of scenes whose ``K`` digits are exactly the ``K`` highest logits."""
    logits = torch.cat([net(images) for images in scenes.images.split(250)])
    named = logits.topk(scenes.targets.shape[1], 1).indices.sort(1).values
    return (named == scenes.targets.sort(1).values).all(1).float().mean().item()


def write(net: DigitsNet, path: Path, metadata: dict[str, float]) -> None:
    """Write to a temporary name, then move: an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    text = {
        name: f"{value:.4f}" if isinstance(value, float) and name != "lr" else str(value)
        for name, value in metadata.items()
    }
    text |= {"format_version": FORMAT_VERSION, "net": "DigitsNet", "made_by": "examples/train_digits_net.py"}
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, temporary, metadata=text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
