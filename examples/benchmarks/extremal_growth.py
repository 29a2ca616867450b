"""A picture of a photograph under its extremal masks, as the area grows.

python examples/benchmarks/extremal_growth.py --out growth.png        # 2 minutes on a core; needs the extra [photos]
python examples/benchmarks/extremal_growth.py --image cat.jpg --target 285 --model torchvision:resnet18 --out cat.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_learnprop import ExtremalPerturbation
from captum_learnprop.images import read_image
from captum_learnprop.models import class_names_of, load_model, preprocessing_of
from captum_learnprop.plot import NotebookFigure, area_curves, save_figure, to_hwc
from captum_learnprop.scenes.photographs import whole

AREAS = (0.02, 0.05, 0.1, 0.2, 0.4)


def growth_figure(image: Tensor, masks: Tensor, titles: list[str]) -> NotebookFigure:
    """The image, and what masks ``(A, H, W)`` leave of it on a grey ground, above the masks' outlines."""
    figure = NotebookFigure(figsize=(2.0 * (len(masks) + 1), 2.4), layout="constrained")
    row = figure.subplots(1, len(masks) + 1)
    row[0].imshow(to_hwc(image))
    for axes, mask in zip(row[1:], masks, strict=True):
        axes.imshow(to_hwc(image * mask + 0.75 * (1 - mask)))
        axes.contour(mask.numpy(), levels=[0.5], colors="#c8102e", linewidths=0.8)
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def grown(model: nn.Module, inputs: Tensor, target: int, perturbation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Masks ``(A, H, W)``, the share of the output that each preserves ``(A,)``, and the output."""
    _, found = ExtremalPerturbation(model).attribute(
        inputs, target, areas=AREAS, perturbation=perturbation, return_masks=True, show_progress=True
    )
    preserved = (found.rewards - found.empty[:, None]) / (found.original - found.empty)[:, None]
    return found.masks[0][0].cpu(), preserved[0].cpu(), found.original[0].cpu()


def main() -> None:
    """Write the picture, and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet_lite:0")
    parser.add_argument("--image", type=Path, help="a cat of scikit-image by default")
    parser.add_argument("--target", type=int, help="class to explain; needed with --image")
    parser.add_argument("--perturbation", default="blur", choices=["blur", "fade"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curve", type=Path, help="also draw how the preserved share grows")
    options = parser.parse_args()
    if (options.image is None) != (options.target is None):
        parser.error("--image and --target belong together")
    torch.set_num_threads(1)
    if options.image is None:
        photograph = whole()[0]
        picture, target = photograph.image(), photograph.target
    else:
        picture, target = read_image(options.image), options.target
    model = load_model(options.model).eval().requires_grad_(False)
    preprocessing = preprocessing_of(options.model, model)
    pixels = preprocessing.pixels(picture)
    masks, preserved, output = grown(model, preprocessing.normalize(pixels[None]), target, options.perturbation)
    names = class_names_of(options.model, model)
    titles = [f"{names[target] if names else target}: {float(output):.1f}"]
    titles += [f"area {area:g}: {float(share):.0%}" for area, share in zip(AREAS, preserved, strict=True)]
    save_figure(growth_figure(pixels, masks, titles), options.out, dpi=80)
    if options.curve is not None:
        save_figure(area_curves(torch.tensor([AREAS]), preserved[None], share=1.0), options.curve, dpi=80)
    print(json.dumps({"areas": AREAS, "preserved": [round(float(s), 2) for s in preserved], "output": float(output)}))


if __name__ == "__main__":
    main()
