"""The same net in separate modules, for hand-made methods that need it.

Captum's DeepLift, guided backprop and Deconvnet and zennit's composites see modules only: a functional ReLU escapes
them, and a module that is called twice confuses them. LRP further wants batch norms merged into the layers before
them, and sums of branches as modules. A baseline that runs without these is not the method of its paper. `twin`
traces a copy of the model and writes it anew: every activation, pool and sum is a module of its own, batch norms are
merged, and the outputs are checked against the model's in float64.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from zennit.layer import Sum

from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

TOLERANCE = 1e-6
"""Largest difference of the outputs, in float64, relative to the largest output."""

EXAMPLE_SIZE = 64
"""Side of the images that a twin is checked with and passes are counted for."""

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    torch.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}
_MEANS = (torch.mean, "mean")
_SPATIAL = {2, 3}


@dataclass(frozen=True)
class Twin:
    """A model in separate modules.

    Attributes:
        network: same outputs as the model; parameters do not require gradients.
        features: names of modules of ``network`` whose output is the whole feature map at a resolution, the last
            of each, from fine to coarse: all branches and shortcuts have joined there.
        first: name of the first convolution.
        black: what a black image (0) is at the first convolution, ``(1, C, 1, 1)``: what precedes it (normalisation,
            say) is taken to work on each pixel alone.
        white: the same for a white image (1).
    """

    network: fx.GraphModule
    features: tuple[str, ...]
    first: str
    black: Tensor
    white: Tensor


def make_twin(model: nn.Module, example: Tensor, *, for_deep_lift: bool = False) -> Twin:
    """Returns a twin of a model: the same outputs, every activation, pool and sum a module of its own.

    Args:
        model: in evaluation mode; it is copied.
        example: ``(B, C, H, W)``, images in [0, 1] to check the outputs with.
        for_deep_lift: write max-pools in a form in which captum's DeepLift sums up to the difference of the outputs:
            the input is copied (the hooks of a ReLU and of a pool on one tensor disturb each other), and windows that
            overlap become tiles of their own (shares of windows with the same maximum would not add up).

    Raises:
        LearnpropError: the model cannot be traced, does not take the example, has no convolution, or the twin's outputs
            differ.
    """
    original = copy.deepcopy(model).double().eval()
    traced = copy.deepcopy(original)
    try:
        graph = fx.Tracer().trace(traced)
    except Exception as error:
        raise LearnpropError(
            f"{type(model).__name__} cannot be traced ({error}), so its functional or reused activations "
            "cannot be made modules"
        ) from error
    network = fx.GraphModule(traced, graph)
    example = example.detach().double()
    _check_runs(original, example)
    _mark_shapes(network, example)
    _Writer(network, for_deep_lift).run()
    _mark_shapes(network, example)
    features = _mark_features(network)
    network = _in_order_of_calls(network).eval().requires_grad_(False)
    _check_outputs(original, network, example)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    network.to(dtype)
    first = _first_convolution(network)
    black, white = _range(network, first, example.to(dtype))
    return Twin(network, features, first, black, white)


def twin_of(
    model: nn.Module, *, shape: tuple[int, ...] = (3, EXAMPLE_SIZE, EXAMPLE_SIZE), for_deep_lift: bool = False
) -> Twin:
    """Returns the model in separate modules, checked with images of noise.

    Args:
        model: The net, in evaluation mode; it is copied.
        shape: ``(C, H, W)`` of the images of noise, of which there are two, in [0, 1).
        for_deep_lift: Whether its max-pools are written for captum's DeepLift, as in `make_twin`.

    Raises:
        LearnpropError: The net cannot be taken apart, or its twin computes something else.
    """
    parameter = next(model.parameters(), torch.zeros(0))
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return make_twin(model, example.to(parameter), for_deep_lift=for_deep_lift)


class _Writer:
    """Rewrites the graph of a traced copy in place."""

    def __init__(self, network: fx.GraphModule, for_deep_lift: bool) -> None:
        self.network, self.graph, self.for_deep_lift = network, network.graph, for_deep_lift
        self.modules = dict(network.named_modules())
        self.count = 0

    def run(self) -> None:
        called: set[Any] = set()
        for node in list(self.graph.nodes):
            if node.op == "call_module":
                self._separate(node, called)
            elif node.op in ("call_function", "call_method"):
                self._as_module(node)
        for node in list(self.graph.nodes):
            self._merge_batch_norm(node)

    def _separate(self, node: fx.Node, called: set[Any]) -> None:
        """A module of its own for every call, and none that writes into its input."""
        module = self.modules[str(node.target)]
        if isinstance(module, nn.ReLU):
            self._replace(node, nn.ReLU(), node.args)
        elif self.for_deep_lift and isinstance(module, nn.MaxPool2d):
            self._replace(node, _pool_for_deep_lift(module), node.args)
        elif module in called or getattr(module, "inplace", False):
            module = copy.deepcopy(module)
            if getattr(module, "inplace", False):
                module.inplace = False
            self._replace(node, module, node.args)
        called.add(module)

    def _as_module(self, node: fx.Node) -> None:
        if node.target in _RELUS:
            self._replace(node, nn.ReLU(), node.args[:1])
        elif node.target in _SUMS and _is_plain_sum(node):
            self._replace_sum(node)
        elif node.target in _POOLS:
            kind, names = _POOLS[node.target]
            options = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
            pool = kind(**{name: value for name, value in options.items() if name in names})
            if self.for_deep_lift and isinstance(pool, nn.MaxPool2d):
                pool = _pool_for_deep_lift(pool)
            self._replace(node, pool, node.args[:1])
        elif node.target in _MEANS:
            self._replace_mean(node)

    def _replace_sum(self, node: fx.Node) -> None:
        with self.graph.inserting_before(node):
            stacked = self.graph.call_function(torch.stack, (list(node.args[:2]), -1))
        self._replace(node, Sum(dim=-1), (stacked,))

    def _replace_mean(self, node: fx.Node) -> None:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        if not isinstance(dims, (tuple, list)) or {d % 4 for d in dims if isinstance(d, int)} != _SPATIAL:
            return
        parts: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] + ([] if keep else [nn.Flatten()])
        before = node.args[:1]
        for part in parts[:-1]:
            with self.graph.inserting_before(node):
                before = (self.graph.call_module(self._add(part), before),)
        self._replace(node, parts[-1], before)

    def _merge_batch_norm(self, node: fx.Node) -> None:
        norm = self._module_of(node)
        before = node.args[0] if node.args else None
        layer = self._module_of(before)
        if not isinstance(before, fx.Node) or len(before.users) != 1 or node.op != "call_module":
            return
        if isinstance(norm, nn.BatchNorm2d) and isinstance(layer, nn.Conv2d):
            merged: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(norm, nn.BatchNorm1d) and isinstance(layer, nn.Linear):
            merged = fuse_linear_bn_eval(layer, norm)
        else:
            return
        node.replace_all_uses_with(before)
        self.graph.erase_node(node)
        self._replace(before, merged, before.args)

    def _module_of(self, node: Any) -> nn.Module | None:
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        return self.network.get_submodule(str(node.target))

    def _replace(self, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> None:
        with self.graph.inserting_before(node):
            new = self.graph.call_module(self._add(module), args)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _add(self, module: nn.Module) -> str:
        name = f"twin_{self.count}_{type(module).__name__.lower()}"
        self.count += 1
        self.network.add_module(name, module)
        return name


def _is_plain_sum(node: fx.Node) -> bool:
    """Two tensors of one shape, nothing else."""
    shapes = [one.meta.get("shape") for one in node.args if isinstance(one, fx.Node)]
    return len(node.args) == len(shapes) == 2 and shapes[0] == shapes[1] != () and not node.kwargs


class TiledMaxPool2d(nn.Module):
    """A max-pool with overlapping windows: every window is copied to a tile of its own, then pooled without overlap.

    Padding repeats the border, which lies in the same window: the maximum is the same.

    Args:
        pool: The pool whose place it takes.

    Raises:
        LearnpropError: the pool is dilated or has ``ceil_mode``.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
        if _pair(pool.dilation) != (1, 1) or pool.ceil_mode:
            raise LearnpropError("max-pools with overlapping windows and dilation or ceil_mode have no tiled form")
        self.pool = nn.MaxPool2d(self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maxima ``(B, C, H', W')`` of images ``(B, C, H, W)``, as the pool that was given gives them."""
        (rows, columns), (down, right) = self.padding, self.stride
        x = F.pad(x.clone(), (columns, columns, rows, rows), mode="replicate")
        windows = x.unfold(2, self.kernel[0], down).unfold(3, self.kernel[1], right)
        tiles = windows.permute(0, 1, 2, 4, 3, 5)
        batch, channels, height, h, width, w = tiles.shape
        pooled: Tensor = self.pool(tiles.reshape(batch, channels, height * h, width * w))
        return pooled


class Copy(nn.Module):
    """The same values in a tensor of their own."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns a differentiable copy, of the same shape."""
        return x.clone()


def _pool_for_deep_lift(pool: nn.MaxPool2d) -> nn.Module:
    return TiledMaxPool2d(pool) if _overlaps(pool) else nn.Sequential(Copy(), pool)


def _overlaps(pool: nn.MaxPool2d) -> bool:
    return any(step < size for step, size in zip(_pair(pool.stride), _pair(pool.kernel_size), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _mark_shapes(network: fx.GraphModule, example: Tensor) -> None:
    network.graph.lint()
    network.recompile()
    with torch.no_grad():
        _Shapes(network).run(example)


class _Shapes(fx.Interpreter):
    """Notes the shape of every node."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else ()
        return value


def _mark_features(network: fx.GraphModule) -> tuple[str, ...]:
    """Put an identity after the last node of each resolution that everything passes through."""
    nodes = list(network.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    last_use = [max((place[user] for user in node.users), default=-1) for node in nodes]
    chosen: dict[int, fx.Node] = {}
    open_until = -1
    inside = False
    for index, node in enumerate(nodes):
        inside = inside or _is_convolution(network, node)
        shape = node.meta.get("shape", ())
        joined = open_until <= index
        open_until = max(open_until, last_use[index])
        if inside and joined and len(shape) == 4 and shape[2] > 1 and _makes_features(network, node):
            chosen[shape[2]] = node
    names = []
    for size, node in sorted(chosen.items(), reverse=True):
        name = f"features_{size}"
        network.add_module(name, nn.Identity())
        with network.graph.inserting_after(node):
            identity = network.graph.call_module(name, (node,))
        node.replace_all_uses_with(identity)
        identity.args = (node,)
        names.append(name)
    return tuple(names)


def _makes_features(network: fx.GraphModule, node: fx.Node) -> bool:
    """Activations, sums and concatenations; neither pools nor bare convolutions."""
    if node.op == "call_module":
        kind = type(network.get_submodule(str(node.target))).__name__
        return kind in ("ReLU", "Sum", "SiLU", "GELU", "ReLU6", "LeakyReLU", "ELU", "Hardswish")
    return node.target in (torch.cat, torch.concat)


def _in_order_of_calls(network: fx.GraphModule) -> fx.GraphModule:
    """The same graph with modules registered flat, in the order of their calls.

    Zennit takes the module that was registered first for the first layer.
    """
    parts: dict[str, Any] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if not str(node.target).startswith("features_"):
                node.target = f"layer_{len(parts)}_{type(module).__name__.lower()}"
            parts[str(node.target)] = module
        elif node.op == "get_attr":
            parts[str(node.target)] = operator.attrgetter(str(node.target))(network)
    return fx.GraphModule(parts, network.graph)


def _check_runs(original: nn.Module, example: Tensor) -> None:
    try:
        with torch.no_grad():
            original(example)
    except Exception as error:
        raise LearnpropError(
            f"{type(original).__name__} does not take images {tuple(example.shape)}: {error}"
        ) from error


def _check_outputs(original: nn.Module, network: nn.Module, example: Tensor) -> None:
    with torch.no_grad():
        expected, got = original(example), network(example)
    if expected.shape != got.shape:
        raise LearnpropError(f"the twin's output is {tuple(got.shape)} instead of {tuple(expected.shape)}")
    difference = (expected - got).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    if not difference <= TOLERANCE:
        raise LearnpropError(
            f"the twin's outputs differ from the model's by {difference:.1e} of the largest; "
            "the model does something that depends on more than its input"
        )


def _first_convolution(network: fx.GraphModule) -> str:
    for node in network.graph.nodes:
        if _is_convolution(network, node):
            return str(node.target)
    raise LearnpropError("the model has no convolution")


def _is_convolution(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.Conv2d)


@torch.no_grad()
def _range(network: fx.GraphModule, first: str, example: Tensor) -> tuple[Tensor, Tensor]:
    """What black and white images are at the first convolution."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0][:, :, :1, :1])

    handle = network.get_submodule(first).register_forward_pre_hook(keep)
    try:
        network(torch.zeros_like(example[:1]))
        network(torch.ones_like(example[:1]))
    finally:
        handle.remove()
    return seen[0], seen[1]


__getattr__ = renamed(__name__, {"TwinError": "LearnpropError"})
