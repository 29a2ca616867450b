"""Heat maps for a folder of images by Zennit alone: a composite by name, an attributor, a picture per image.

The script knows nothing of `zennit_rules` or `captum_learnprop`; it looks the composite up in zennit's
registry. As `python feed_forward.py ...` it offers zennit's composites; as `learnprop run feed_forward.py
...` also the learned ones, those of plugins, and the rule sets named by `--trained`:

    learnprop run --trained mine=rules.safetensors feed_forward.py images 'maps/{sample}.png' --composite mine
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2
from zennit.attribution import Gradient, IntegratedGradients, SmoothGrad
from zennit.composites import COMPOSITES
from zennit.image import CMAPS, imgify, palette
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

MODELS = {
    "vgg11": VGGCanonizer,
    "vgg11_bn": VGGCanonizer,
    "vgg16": VGGCanonizer,
    "vgg16_bn": VGGCanonizer,
    "resnet18": ResNetCanonizer,
    "resnet50": ResNetCanonizer,
}

ATTRIBUTORS = {"gradient": Gradient, "smoothgrad": SmoothGrad, "integrads": IntegratedGradients}

Transform = Callable[[Image.Image], torch.Tensor]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def load_model(name: str, parameters: Path | None, n_outputs: int) -> torch.nn.Module:
    """The model in evaluation mode, with random parameters unless a file is given."""
    model = torchvision.models.get_model(name, num_classes=n_outputs)
    if parameters is not None:
        model.load_state_dict(torch.load(parameters, map_location="cpu", weights_only=True))
    return model.eval()


def batches(root: Path, batch_size: int, transform: Transform) -> Iterator[tuple[list[Path], torch.Tensor]]:
    """Paths and stacked images ``(B, 3, H, W)`` of a folder, in the order of the names."""
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        yield chunk, torch.stack([transform(Image.open(path).convert("RGB")) for path in chunk])


def bounds(relevance: torch.Tensor, norm: str) -> tuple[float, float]:
    """What the two ends of the color map stand for."""
    if norm == "symmetric":
        highest = float(relevance.abs().max())
        return -highest, highest
    if norm == "absolute":
        return 0.0, float(relevance.max())
    return float(relevance.min()), float(relevance.max())


def save(path: Path, heatmap: Image.Image, cmap: str, level: float) -> None:
    """Save a picture made by `zennit.image.imgify`.

    `zennit.image.imsave` hands Pillow the colors as an array, which Pillow 13 no longer takes.
    """
    heatmap.putpalette(palette(cmap, level).tobytes())
    heatmap.save(path)


@click.command()
@click.argument("dataset_root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("relevance_format")
@click.option("--attributor", "attributor_name", type=click.Choice(list(ATTRIBUTORS)), default="gradient")
@click.option("--composite", "composite_name", type=click.Choice(list(COMPOSITES)), help="Default: plain gradient.")
@click.option("--model", "model_name", type=click.Choice(list(MODELS)), default="resnet18")
@click.option("--parameters", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="State dict.")
@click.option("--n-outputs", type=int, default=1000, help="Number of classes.")
@click.option("--size", type=int, default=224, help="Height and width of the input, in pixels.")
@click.option("--batch-size", type=int, default=16)
@click.option("--relevance-norm", type=click.Choice(["symmetric", "absolute", "unaligned"]), default="symmetric")
@click.option("--cmap", type=click.Choice(sorted(CMAPS)), default="coldnhot")
@click.option("--level", type=float, default=1.0, help="Reach of the color map.")
@click.option("--seed", type=int, default=0, help="Seed of the random parameters.")
def main(
    dataset_root: Path,
    relevance_format: str,
    attributor_name: str,
    composite_name: str | None,
    model_name: str,
    parameters: Path | None,
    n_outputs: int,
    size: int,
    batch_size: int,
    relevance_norm: str,
    cmap: str,
    level: float,
    seed: int,
) -> None:
    """Save a heat map of the predicted class for each image in DATASET_ROOT.

    RELEVANCE_FORMAT is the path of a heat map with the field {sample}, such as 'maps/{sample}.png'.
    """
    torch.manual_seed(seed)
    transform: Transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    model = load_model(model_name, parameters, n_outputs)
    composite = None
    if composite_name is not None:
        composite = COMPOSITES[composite_name](canonizers=[MODELS[model_name]()])
    classes = torch.eye(n_outputs)

    with ATTRIBUTORS[attributor_name](model, composite) as attributor:
        for paths, images in batches(dataset_root, batch_size, transform):
            predicted = model(images).argmax(dim=1)
            _, relevance = attributor(images, classes[predicted])
            maps = relevance.detach().sum(dim=1)
            for path, label, heatmap in zip(paths, predicted.tolist(), maps, strict=True):
                out = Path(relevance_format.format(sample=path.stem))
                out.parent.mkdir(parents=True, exist_ok=True)
                shown = heatmap.abs() if relevance_norm == "absolute" else heatmap
                low, high = bounds(shown, relevance_norm)
                save(out, imgify(shown.numpy(), vmin=low, vmax=high, cmap=cmap, level=level), cmap, level)
                click.echo(f"{path.name}: class {label} -> {out}")


if __name__ == "__main__":
    main()
