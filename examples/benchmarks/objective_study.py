"""Which deletions tell the truth: how well what training minimises agrees with where the object is.

    learnprop data photos
    learnprop evaluate --model efficientnet_lite:0 --scenes photos --seeds 0 --out DIR       # trains the rules
    python examples/benchmarks/objective_study.py --rules-from DIR --out STUDY               # half an hour on a core

Occlusion regression compares a map's mass in random regions with what the class loses when they are filled. This
program measures deletions of every kind on *validation* scenes of two cut-out photographs: boxes and superpixels,
filled with random colours, a blur, or parts of other photographs; or all but the region filled (kept). It explains
the same questions by many methods, each with two signs and six smoothings, and asks of every kind of deletion,
quantity and exponent of the area: does the map that the objective prefers find the object better? The answer is the
rank correlation, within each question, of the correlation with average precision (and with class AUC), averaged over
questions; and the correlation that the true object itself has.

A second table says what the maps of each method lack, with the treatment that suits them best: how much average
precision rises where the object is even inside, where nothing spills over its outline (8 pixels), where nothing lies
farther away, and where the other object is dark. Measurements and attributions are kept in ``--out`` and used again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from on_photographs import explained, subject_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.transforms.functional import gaussian_blur

from captum_learnprop.benchmark.contenders import every_contender
from captum_learnprop.benchmark.own_net import OwnNet
from captum_learnprop.evaluation import average_precision, class_auc
from captum_learnprop.evaluation.similarity import average_ranks
from captum_learnprop.files import write_text
from captum_learnprop.maps import postprocess, smooth
from captum_learnprop.scenes.scenes import Questions
from captum_learnprop.training.occlusion import random_fills
from captum_learnprop.training.regions import box_regions, random_boxes

METHODS = (
    "saliency", "input x gradient", "guided backprop", "SmoothGrad", "integrated gradients", "DeepLift", "Grad-CAM",
    "guided Grad-CAM", "LayerCAM, mid layer", "LRP epsilon plus", "LRP z+, box", "LRP gamma", "LRP gamma x Grad-CAM",
    "gates, learned", "LRP, z+ start + fusion, untrained", "LRP, z+ start + fusion, learned",
)  # fmt: skip
SIGNS, SMOOTHINGS = ("absolute", "signed"), (0.0, 0.0125, 0.025, 0.05, 0.075, 0.1)
EXPONENTS = (0.0, 0.25, 0.5, 1.0)
"""Of the area that mass and loss are divided by; 0 compares sums, 1 densities."""

REGIONS = 64
"""Of each kind, for an image."""

SEGMENTS = (10, 25, 60, 150)
"""Superpixels of an image, by scale; a region is a union of one to four of one scale."""


def regions_of(image: Tensor, number: int) -> Tensor:
    """Returns boxes, then unions of superpixels: ``(2 REGIONS, H, W)`` bool."""
    from skimage.segmentation import slic

    side = image.shape[-1]
    boxes = box_regions(random_boxes(REGIONS, (side, side), generator(number)), (side, side))
    draws = np.random.default_rng(number)
    scales = [slic(image.permute(1, 2, 0).numpy(), n_segments=n, compactness=8, start_label=0) for n in SEGMENTS]
    unions = []
    for _ in range(REGIONS):
        labels = scales[draws.integers(len(scales))]
        count, joined = labels.max() + 1, draws.integers(1, 5)
        chosen = draws.choice(count, min(joined, count), replace=False)
        unions.append(torch.from_numpy(np.isin(labels, chosen)))
    return torch.cat([boxes, torch.stack(unions)])


def generator(number: int) -> torch.Generator:
    """Returns the random numbers of a scene."""
    return torch.Generator().manual_seed(1000 + number)


@torch.no_grad()
def measured(subject: OwnNet, images: Tensor) -> dict[str, Tensor]:
    """Returns regions, and the net's outputs before and after every deletion, of each scene."""
    found: dict[str, list[Tensor]] = {}

    def outputs(pixels: Tensor) -> Tensor:
        return torch.cat([subject.model(part) for part in pixels.split(16)])

    for number, image in enumerate(images):
        regions, draws = regions_of(image, number), generator(number)
        random_boxes(REGIONS, tuple(image.shape[1:]), draws)  # the fills come after the regions
        many, shape = len(regions), tuple(image.shape)
        others = subject.training_images
        fills = {
            "colour": random_fills(many, shape, torch.zeros(3), torch.ones(3), draws),
            "blur": gaussian_blur(image, [61, 61], [12.0, 12.0]).expand(many, *shape),
            "photo": others[torch.randint(len(others), (many,), generator=draws)],
        }
        entry = {"regions": regions, "before": outputs(image[None])[0]}
        entry |= {kind: outputs(torch.where(regions[:, None], fill, image)) for kind, fill in fills.items()}
        entry["kept"] = outputs(torch.where(regions[:, None], image, fills["colour"]))
        for name, value in entry.items():
            found.setdefault(name, []).append(value)
        print(f"measured {number + 1} of {len(images)} scenes", flush=True)
    return {name: torch.stack(values) for name, values in found.items()}


def attributions(subject: OwnNet, questions: Questions, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the attributions of every method, kept in a folder."""
    every = {one.name: one for one in every_contender(subject.settings, own_net=True)}
    for number, name in enumerate(METHODS):
        path = folder / f"attributions_{number:02d}.safetensors"
        if not path.is_file():
            explain = every[name].build(subject, subject.net, 0)
            save_file({"attribution": explained(explain, questions).contiguous()}, path)
            print(f"explained by {name}", flush=True)
        yield name, load_file(path)["attribution"]


def quantities(outputs: Tensor, target: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Returns what may be lost, of outputs ``(..., classes)``."""
    rest = outputs.clone()
    rest[..., target] = -torch.inf
    return {
        "logit": outputs[..., target],
        "log-probability": outputs.log_softmax(-1)[..., target],
        "probability": outputs.softmax(-1)[..., target],
        "against all others": outputs[..., target] - rest.logsumexp(-1),
        "against the other object": outputs[..., target] - outputs[..., other],
    }


def losses(data: dict[str, Tensor], targets: Tensor) -> dict[tuple[str, str], Tensor]:
    """Returns what each question lost by every region, ``(M, 2 REGIONS)``, by quantity and kind of deletion."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for question, target in enumerate(targets):
        scene, other = question // 2, targets[question ^ 1]
        before = quantities(data["before"][scene], target, other)
        for kind in ("colour", "blur", "photo", "kept"):
            for name, after in quantities(data[kind][scene], target, other).items():
                found.setdefault((name, kind), []).append(after if kind == "kept" else before[name] - after)
    return {key: torch.stack(values) for key, values in found.items()}


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlation of rows."""
    first, second = (v - v.mean(-1, keepdim=True) for v in (first, second))
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1)).clamp(min=1e-12)


def lacking(maps: Tensor, questions: Questions) -> dict[str, float]:
    """Returns average precision, and what it gains where one fault of the maps is mended."""
    inside, other = questions.masks, questions.other_masks
    near = max_pool2d(inside[:, None].float(), 17, 1, 8)[:, 0] > 0
    lowest = maps.amin((1, 2), keepdim=True) - 1
    even = (maps * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True)
    mended = {
        "even inside": torch.where(inside, even, maps),
        "outline": torch.where(near & ~inside & ~other, lowest, maps),
        "farther away": torch.where(~near & ~other, lowest, maps),
        "other object": torch.where(other, lowest, maps),
    }
    base = average_precision(maps, inside)
    gains = {name: (average_precision(one, inside) - base).mean().item() for name, one in mended.items()}
    return {"average precision": base.mean().item(), **gains}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    lines += [f"| {' | '.join(f'{v:.3f}' if isinstance(v, float) else v for v in row.values())} |" for row in rows]
    return "\n".join(lines)


def ranked(values: Tensor) -> Tensor:
    """Returns the ranks of values along the last dimension."""
    return average_ranks(values.reshape(-1, values.shape[-1])).reshape(values.shape)


def main() -> None:
    """Measure, explain, compare, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite:0")
    parser.add_argument("--rules-from", type=Path, required=True, help="folder of learnprop evaluate with the rules")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    subject = subject_of(options.model, options.rules_from, tuning_questions=48)
    questions = subject.questions("photos", "validation")
    path = options.out / "measured.safetensors"
    if not path.is_file():
        save_file(measured(subject, questions.images[::2]), path)
    data = load_file(path)
    scenes, count = len(data["regions"]), len(questions)
    regions = data["regions"].flatten(2).float()
    area = regions.mean(-1).repeat_interleave(2, 0)
    lost = losses(data, questions.targets)
    kinds = {"boxes": slice(0, REGIONS), "superpixels": slice(REGIONS, None), "both": slice(None)}
    keys = list(product(lost, kinds, EXPONENTS))

    def agreements(maps: Tensor) -> Tensor:
        """Returns the correlation of every kind, ``(keys, M)``."""
        mass = torch.bmm(regions, maps.reshape(scenes, 2, -1).transpose(1, 2)).transpose(1, 2).reshape(count, -1)
        found = []
        for key, kind, exponent in keys:
            at, size = kinds[kind], area[:, kinds[kind]] ** exponent
            found.append(correlation(mass[:, at] / size, lost[key][:, at] / size))
        return torch.stack(found)

    truth = agreements(smooth(questions.masks.float(), 8.0)).mean(1)
    precision, contrast, agreed, lacks = [], [], [], []
    for name, attribution in attributions(subject, questions, options.out):
        best: list[tuple[float, Tensor]] = []
        for sign, smoothing in product(SIGNS, SMOOTHINGS):
            maps = postprocess(attribution, sign, smoothing)
            precision.append(average_precision(maps, questions.masks))
            contrast.append(class_auc(maps, questions.masks, questions.other_masks))
            agreed.append(agreements(maps))
            best.append((precision[-1].mean().item(), maps))
        lacks.append({"method": name, **lacking(max(best, key=lambda one: one[0])[1], questions)})
    values = torch.stack(agreed).permute(1, 2, 0).double()  # (keys, M, maps)
    by_rank = [correlation(ranked(values), ranked(torch.stack(t, -1))).mean(1) for t in (precision, contrast)]
    rows = [
        {"quantity": q, "deletion": d, "regions": kind, "exponent": e, "with average precision": by_rank[0][i].item(),
         "with class AUC": by_rank[1][i].item(), "of the true object": truth[i].item(),
         "of the best map": values[i].mean(0).max().item()}
        for i, ((q, d), kind, e) in enumerate(keys)
    ]  # fmt: skip
    write_text(options.out / "study.json", json.dumps({"objective": rows, "maps lack": lacks}, indent=1) + "\n")
    print(f"{table(rows)}\n\n{table(lacks)}")
    draw(rows, options.out / "study.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the rank correlation with average precision: a panel per quantity, a line per kind of deletion."""
    import matplotlib.pyplot as plt

    chosen = ("logit", "log-probability", "against the other object")
    figure, axes = plt.subplots(1, len(chosen), figsize=(12, 3.4), sharey=True, constrained_layout=True)
    for axis, quantity in zip(axes, chosen, strict=True):
        for kind, colour in (("colour", "C0"), ("blur", "C7"), ("photo", "C2"), ("kept", "C3")):
            for regions, line in (("boxes", ":"), ("superpixels", "--"), ("both", "-")):
                values = [r["with average precision"] for r in rows
                          if (r["quantity"], r["deletion"], r["regions"]) == (quantity, kind, regions)]  # fmt: skip
                axis.plot(EXPONENTS, values, line, color=colour, label=f"{kind}, {regions}")
        axis.set(title=quantity, xlabel="exponent of the area", xticks=EXPONENTS)
    axes[0].set_ylabel("rank correlation with\naverage precision")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
