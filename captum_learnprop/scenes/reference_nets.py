"""Small trained nets, shipped for benchmarks, demonstrations and tests on the scenes.

Each architecture asks something else of a method: a plain stack of modules (``"vgg"``), additions and ReLU modules
that are used twice (``"resnet"``), concatenated branches and ReLU calls that are no modules (``"inception"``). The
vision transformer (``"vit"``) knows the digits only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.net_form import IMAGES, Form
from zennit_rules._moved import renamed

FORMAT_VERSION = "2"
"""Version of the weights files: names of the tensors and of the metadata."""

OUTPUT_OF_TASK = {"digits": "sigmoid", "patch": "softmax", "parts": "softmax"}
"""How the logits of a task become probabilities: digits do not exclude each other, patches and figures do."""

TASK_OF_FAMILY = {"digits": "digits", "pairs": "digits", "grid": "digits", "patch": "patch", "parts": "parts"}
"""Which task's nets know the classes of a scene family."""

WIDTH_OF_TASK = {"digits": 1.0, "patch": 0.5, "parts": 0.5}
"""Factor on the number of channels of the shipped nets."""


class Normalize(nn.Module):
    """``(x - 0.5) / 0.25`` for images in [0, 1]: part of the net, so that users explain the image itself."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns images in [-2, 2], of the shape they had, from images in [0, 1]."""
        return (images - 0.5) / 0.25


class VggLike(nn.Module):
    """Six convolutions with batch norm and ReLU, four max-pools, two linear layers; 274 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``. Every operation is a module used once.

    Args:
        width: factor on the number of channels.
        form: what it takes and gives; the shapes above are those of the default.
    """

    def __init__(self, width: float = 1.0, form: Form = IMAGES) -> None:
        super().__init__()
        a, b, c, d = (round(width * channels) for channels in (16, 32, 64, 96))
        self.normalize = Normalize()
        self.features = nn.Sequential(
            *_convolution(form.channels, a, form),
            form.max_pool(2),
            *_convolution(a, b, form),
            *_convolution(b, b, form),
            form.max_pool(2),
            *_convolution(b, c, form),
            *_convolution(c, c, form),
            form.max_pool(2),
            *_convolution(c, d, form),
            form.max_pool(2),
        )
        positions = (form.size // 16) ** form.dims
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(d * positions, d), nn.ReLU(), nn.Linear(d, form.classes)
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, 10)`` of images ``(B, 3, 64, 64)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.features(self.normalize(images)))
        return logits


class ResNetLike(nn.Module):
    """A stem and three stages of two basic blocks, then the mean over positions; 273 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``. As in torchvision, each block adds its
    input to its output and uses its one ReLU module twice.

    Args:
        width: factor on the number of channels.
        form: what it takes and gives; the shapes above are those of the default.
    """

    def __init__(self, width: float = 1.0, form: Form = IMAGES) -> None:
        super().__init__()
        a, b, c = (round(width * channels) for channels in (20, 40, 80))
        self.normalize = Normalize()
        self.stem = nn.Sequential(*_convolution(form.channels, a, form), form.max_pool(2))
        self.stages = nn.Sequential(
            BasicBlock(a, a, form=form), BasicBlock(a, a, form=form),
            BasicBlock(a, b, stride=2, form=form), BasicBlock(b, b, form=form),
            BasicBlock(b, c, stride=2, form=form), BasicBlock(c, c, form=form),
        )  # fmt: skip
        self.pool = form.mean_pool()
        self.classifier = nn.Linear(c, form.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, 10)`` of images ``(B, 3, 64, 64)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.pool(self.stages(self.stem(self.normalize(images)))).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """``relu(x + bn(conv(relu(bn(conv(x))))))`` with one ReLU module; a stride halves height and width.

    Args:
        inputs: channels that come in.
        outputs: channels that leave.
        stride: 1, or 2 with a convolution in the shortcut.
        form: says how many axes there are.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, form: Form = IMAGES) -> None:
        super().__init__()
        self.conv1 = form.conv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = form.norm(outputs)
        self.relu = nn.ReLU()
        self.conv2 = form.conv(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = form.norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(form.conv(inputs, outputs, 1, stride, bias=False), form.norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, outputs, H / stride, W / stride)``, not negative, of ``(B, inputs, H, W)``."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.relu(self.shortcut(x) + residual)
        return out


class InceptionLike(nn.Module):
    """A stem and four blocks of four concatenated branches, then the mean over positions; 149 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``. As in torchvision, ReLU and max-pools
    are functions: no module marks them.

    Args:
        width: factor on the number of channels.
        form: what it takes and gives; the shapes above are those of the default.
    """

    def __init__(self, width: float = 1.0, form: Form = IMAGES) -> None:
        super().__init__()
        stem, *branches = (round(width * channels) for channels in (16, 20, 24, 32, 40))
        self.form = form
        self.normalize = Normalize()
        self.stem = Convolution(form.channels, stem, 3, form)
        self.reduce = Convolution(stem, 2 * stem, 3, form)
        inputs = 2 * stem
        blocks = []
        for branch in branches:
            blocks.append(InceptionBlock(inputs, branch, form))
            inputs = 4 * branch
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(inputs, form.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, 10)`` of images ``(B, 3, 64, 64)`` in [0, 1]."""
        x = self.form.max_pooled(self.stem(self.normalize(images)), 2)
        x = self.form.max_pooled(self.reduce(x), 2)
        for index, block in enumerate(self.blocks):
            if index == 2:
                x = self.form.max_pooled(x, 2)
            x = block(x)
        logits: Tensor = self.classifier(x.mean(self.form.axes))
        return logits


class InceptionBlock(nn.Module):
    """Four branches of ``branch`` channels each, side by side: 1x1, 3x3, two 3x3, and a max-pool with a 1x1.

    Args:
        inputs: channels that come in.
        branch: channels of one branch.
        form: says how many axes there are.
    """

    def __init__(self, inputs: int, branch: int, form: Form = IMAGES) -> None:
        super().__init__()
        self.form = form
        self.point = Convolution(inputs, branch, 1, form)
        self.single_reduce = Convolution(inputs, branch, 1, form)
        self.single = Convolution(branch, branch, 3, form)
        self.double_reduce = Convolution(inputs, branch, 1, form)
        self.double_first = Convolution(branch, branch, 3, form)
        self.double_second = Convolution(branch, branch, 3, form)
        self.pool = Convolution(inputs, branch, 1, form)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, 4 * branch, H, W)``, not negative, of ``(B, inputs, H, W)``."""
        branches = [
            self.point(x),
            self.single(self.single_reduce(x)),
            self.double_second(self.double_first(self.double_reduce(x))),
            self.pool(self.form.max_pooled(x, 3, stride=1, padding=1)),
        ]
        return torch.cat(branches, 1)


class Convolution(nn.Module):
    """A convolution and batch norm, then ``F.relu``.

    Args:
        inputs: channels that come in.
        outputs: channels that leave.
        kernel: side of the window, odd: height and width stay.
        form: says how many axes there are.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, form: Form = IMAGES) -> None:
        super().__init__()
        self.conv = form.conv(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = form.norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, outputs, H, W)``, not negative, of ``(B, inputs, H, W)``."""
        return F.relu(self.bn(self.conv(x)))


class ViTLike(nn.Module):
    """torchvision's vision transformer: a stem of convolutions, 8 x 8 patches and a class token in five blocks.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``; 629 thousand parameters.

    Args:
        width: factor on the number of channels.
        form: what it takes and gives; the shapes above are those of the default.
    """

    def __init__(self, width: float = 1.0, form: Form = IMAGES) -> None:
        super().__init__()
        if form.dims != 2 or form.channels != 3:
            raise LearnpropError(f"the vision transformer takes colour images, got {form}")
        dimension = 4 * round(24 * width)
        stem = [ConvStemConfig(dimension // share, kernel_size=3, stride=2) for share in (4, 2, 1)]
        self.normalize = Normalize()
        self.transformer = VisionTransformer(
            image_size=form.size, patch_size=8, num_layers=5, num_heads=4, hidden_dim=dimension, mlp_dim=4 * dimension,
            num_classes=form.classes, conv_stem_configs=stem,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, 10)`` of images ``(B, 3, 64, 64)`` in [0, 1]."""
        logits: Tensor = self.transformer(self.normalize(images))
        return logits


def _convolution(inputs: int, outputs: int, form: Form) -> list[nn.Module]:
    return [form.conv(inputs, outputs, 3, padding=1, bias=False), form.norm(outputs), nn.ReLU()]


ARCHITECTURES: dict[str, type[VggLike] | type[ResNetLike] | type[InceptionLike]] = {
    "vgg": VggLike,
    "resnet": ResNetLike,
    "inception": InceptionLike,
}
"""Net classes by the name that `load` and the weights files use."""

TRANSFORMERS: dict[str, type[ViTLike]] = {"vit": ViTLike}
"""The same for nets that know `TRANSFORMER_TASK` only."""

TRANSFORMER_TASK = "digits"


def load(
    architecture: str, task: str, *, device: torch.device | str = "cpu", path: str | Path | None = None
) -> nn.Module:
    """Returns a trained net in evaluation mode, float32: images ``(B, 3, 64, 64)`` in [0, 1] to logits ``(B, 10)``.

    Args:
        architecture: ``"vgg"``, ``"resnet"``, ``"inception"`` or ``"vit"``.
        task: ``"digits"``, ``"patch"`` or ``"parts"`` (``"vit"``: digits alone); `TASK_OF_FAMILY` tells which one
            a scene family needs.
        device: where the parameters are put.
        path: a weights file of this architecture and task, written by ``examples/train_reference_nets.py``;
            None is the shipped one.

    Raises:
        LearnpropError: there is no such architecture or task, or the file is damaged or holds another net.
        FileNotFoundError: there is no such file.
    """
    tensors, metadata = _read(architecture, task, path)
    name = f"a net {architecture}-{task}"
    if metadata.get("format_version") != FORMAT_VERSION:
        raise LearnpropError(
            f"weights file has format version {metadata.get('format_version')!r}, this version of "
            f"captum-learnprop reads {FORMAT_VERSION!r}; train anew with examples/train_reference_nets.py"
        )
    if (metadata.get("architecture"), metadata.get("task")) != (architecture, task):
        found = f"{metadata.get('architecture')}-{metadata.get('task')}"
        raise LearnpropError(f"weights file does not hold {name} but {found}")
    try:
        net = {**ARCHITECTURES, **TRANSFORMERS}[architecture](float(metadata.get("width", "nan")))
        net.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise LearnpropError(f"weights file does not hold {name}: {error}") from error
    return net.to(device).eval()


def weights_metadata(architecture: str, task: str, path: str | Path | None = None) -> dict[str, str]:
    """Returns how a net was trained: format version, architecture, task, width, seed, schedule, accuracies.

    Args:
        architecture: as for `load`.
        task: as for `load`.
        path: a weights file; None is the shipped one.

    Raises:
        LearnpropError: there is no such architecture or task, or the file cannot be read.
        FileNotFoundError: no file is there.
    """
    return _read(architecture, task, path)[1]


def weights_file(architecture: str, task: str) -> Path:
    """Returns the path of the shipped weights, which ``examples/train_reference_nets.py`` wrote.

    Raises:
        LearnpropError: there is no such architecture or task.
    """
    tasks = (TRANSFORMER_TASK,) if architecture in TRANSFORMERS else tuple(OUTPUT_OF_TASK)
    for kind, name, known in (("architecture", architecture, (*ARCHITECTURES, *TRANSFORMERS)), ("task", task, tasks)):
        if name not in known:
            raise LearnpropError(f"unknown {kind} {name!r} of a reference net; choose one of {', '.join(known)}")
    return Path(__file__).parent / "assets" / f"{architecture}_{task}.safetensors"


def _read(architecture: str, task: str, path: str | Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    shipped = weights_file(architecture, task)
    path = shipped if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}; train one with examples/train_reference_nets.py")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise LearnpropError(f"weights file {str(path)!r} cannot be read: {error}") from error


__getattr__ = renamed(__name__, {"WeightsError": "LearnpropError"})
