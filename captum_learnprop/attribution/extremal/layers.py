"""LayerExtremalPerturbation: the channels, or the places, of a layer that suffice for a model's output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import LayerAttribution, PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from ...errors import LearnpropError
from ..checked_inputs import checked_inputs
from ..rewards import Reward
from ..shown import ShownAsCall
from ..suffix import Suffix
from .channel_crops import CROP, ChannelCrops, MostActive, batches_of_images
from .inputs import undisturbed
from .inversion import inverted
from .mask_spaces import SIGMA, STEP, FreeMasks, MaskSpace, SmoothMasks
from .options import DEFAULT_STEPS, SearchOptions
from .perturbations import Blur
from .rows import Rows, areas_of, checked_areas, mask_type

KINDS = ("channels", "spatial")

PERTURBATIONS = ("fade", "blur")

INVERSION_STEPS, SMOOTHNESS = 200, 0.05
"""Steps of an inversion, and the weight of differences of neighbouring pixels in it."""


@dataclass(frozen=True, repr=False)
class ChannelSummary:
    """How often the channels of a layer are in the mask of a class.

    Attributes:
        mean: Mean mask over samples, ``(A, C)``, in [0, 1].
        samples: Their number.
    """

    mean: Tensor
    samples: int

    def __repr__(self) -> str:
        areas, channels = self.mean.shape
        first = ", ".join(map(str, self.top(5)[0].tolist()))
        return f"ChannelSummary(samples={self.samples}, areas={areas}, channels={channels}, top=[{first}])"

    def top(self, count: int) -> Tensor:
        """The channels with the highest mean, ``(A, count)``; ties in the order of channels."""
        return self.mean.argsort(dim=1, descending=True, stable=True)[:, :count]


class LayerExtremalPerturbation(ShownAsCall, LayerAttribution, PerturbationAttribution):
    """The channels (or the places) of a layer's output that keep the model's output highest.

    A mask ``m (C,)`` multiplies the layer's output ``a``, ``m_c a_c`` (or fades it to ``baselines``), and is found as
    in `ExtremalPerturbation`; channels have no order, so each has a value of its own. The model is run once; after that
    only what follows the layer.

    Source: Fong, Patrick and Vedaldi, ICCV 2019, section on channels, as restated in its formulas; see
    `ExtremalPerturbation`.

    Args:
        model: The model that contains ``layer``; returned untouched from every call.
        layer: A module that is called once in a forward pass and returns one tensor ``(B, C, ...)``.

    Raises:
        LearnpropError: If ``model`` is no module.
    """

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise LearnpropError(f"LayerExtremalPerturbation needs an nn.Module, got {type(model).__name__}")
        if not isinstance(layer, nn.Module):
            raise LearnpropError(f"layer must be a module of the model, got {type(layer).__name__}")
        LayerAttribution.__init__(self, model, layer)
        self.model = model

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: masks are no contributions."""
        return False

    @log_usage()
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        masks: str = "channels",
        areas: float | Sequence[float] | Tensor = 0.1,
        variant: str = "preserve",
        reward: str | Reward = "logit",
        perturbation: str = "fade",
        baselines: float | Tensor | None = None,
        n_steps: int = DEFAULT_STEPS,
        step: float = STEP,
        sigma: float = SIGMA,
        internal_batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
        return_masks: bool = False,
    ) -> Any:
        """Masks of a layer's output.

        Args:
            inputs: ``(B, ...)`` tensor or tuple of them.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model.
            masks: ``"channels"`` or ``"spatial"``.
            areas: Share of the channels or places in (0, 1), or their number (an int of at least 1); or several.
            variant: ``"preserve"``, ``"delete"`` or ``"dual"``, as in `ExtremalPerturbation.attribute`.
            reward: A name or a function, as in `ExtremalPerturbation.attribute`.
            perturbation: ``"fade"`` (to ``baselines``), or ``"blur"``: a masked activation is that of the blurred
                input, so that masks choose what the layer sees of the detail.
            baselines: What a masked activation is; broadcasts to the layer's output; 0 by default.
            n_steps: Steps at most; rows whose mask no longer gets better leave earlier.
            step: Distance of the grid cells of spatial masks, as a fraction of the sides.
            sigma: Width of the kernel of spatial masks, as a fraction of the sides.
            internal_batch_size: Rows (sample and area) that run together; all by default.
            seed: Where the random numbers of models that draw begin; 0 by default.
            show_progress: Draw a progress bar.
            return_masks: Also return an `ExtremalMasks` with realised areas, rewards and steps.

        Returns:
            Channels: ``(B, C)`` for one area, ``(B, A, C)`` for a sequence. Places: ``(B, 1, *spatial)`` or
            ``(B, A, *spatial)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For options out of range, or a layer that is not called once.
        """
        if masks not in KINDS:
            raise LearnpropError(f"unknown masks {masks!r}; choose 'channels' or 'spatial'")
        if perturbation not in PERTURBATIONS:
            raise LearnpropError(f"unknown perturbation {perturbation!r} of a layer; choose 'fade' or 'blur'")
        if perturbation == "blur" and baselines is not None:
            raise LearnpropError("baselines are what perturbation='fade' ends at; leave them out, or 'blur'")
        options = SearchOptions(
            variant=variant, reward=reward, n_steps=n_steps, step=step, sigma=sigma,
            internal_batch_size=internal_batch_size, seed=seed,
        )  # fmt: skip
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        with undisturbed(self.model, options.seed):
            suffix = Suffix(self.model, self.layer, (*(x.detach() for x in tensors), *additional))
            activation = suffix.activation
            like = activation.new_empty(0, dtype=mask_type(activation))
            space = _space(masks, activation, options, like, suffix.name)
            wanted = _shares(areas, space, like)
            if perturbation == "blur":
                blurred = tuple(_blurred(x.detach()) for x in tensors)
                baselines = Suffix(self.model, self.layer, (*blurred, *additional)).activation
            fading = _filling(0.0 if baselines is None else baselines, activation)

            def masked(chosen: tuple[Tensor, ...], samples: Tensor, streams: Tensor) -> Tensor:
                return suffix.run(lambda a: _faded(a, chosen[0], fading[samples], masks), samples)

            rows = Rows(
                masked=masked,
                spaces=(space,),
                samples=len(activation),
                like=like,
                target=target,
                reward=options.reward_function,
                options=options,
            )
            areas_of_all = wanted.expand(len(activation), -1)
            found = rows.masks(areas_of_all, show_progress=show_progress, describe="extremal channels")
        _, several = areas_of(areas)
        (result,) = found.masks
        result = result if several or masks == "spatial" else result[:, 0]
        return (result, found) if return_masks else result

    def channel_saliency(self, inputs: Any, masks: Tensor, additional_forward_args: Any = None) -> Tensor:
        """``sum_c m_c a_c``: where the chosen channels are active.

        Args:
            inputs: ``(B, ...)`` tensor or tuple of them.
            masks: Masks of channels, ``(B, C)`` or ``(B, A, C)``.
            additional_forward_args: Further arguments of the model.

        Returns:
            ``(B, 1, *spatial)`` or ``(B, A, *spatial)``, in the layer's resolution; `LayerAttribution.interpolate`
            brings it to that of the input.

        Raises:
            LearnpropError: For masks of another shape, or a layer that is not called once.
        """
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        with undisturbed(self.model, None):
            activation = Suffix(self.model, self.layer, (*(x.detach() for x in tensors), *additional)).activation
        chosen = masks[:, None] if masks.dim() == 2 else masks
        if chosen.dim() != 3 or chosen.shape[::2] != activation.shape[:2]:
            raise LearnpropError(f"masks {tuple(masks.shape)} are none of the channels of {tuple(activation.shape)}")
        maps = torch.einsum("bac,bcn->ban", chosen.to(activation), activation.flatten(2))
        return maps.reshape(*maps.shape[:2], *activation.shape[2:])

    def summary(self, batches: Iterable[Any], target: Any, **options: Any) -> ChannelSummary:
        """Mean mask of channels over the samples of a class.

        Args:
            batches: Batches of inputs, as `attribute` takes them.
            target: Explained entry of the output, for all samples.
            options: Options of `attribute`.

        Returns:
            The mean ``(A, C)`` and the number of samples.

        Raises:
            LearnpropError: Without a batch.
        """
        total: Tensor | None = None
        samples = 0
        for inputs in batches:
            found = self.attribute(inputs, target, **{**options, "masks": "channels", "return_masks": False})
            found = found[:, None] if found.dim() == 2 else found
            part = found.double().sum(0)
            total = part if total is None else total + part
            samples += len(found)
        if total is None:
            raise LearnpropError("a summary needs at least one batch of inputs")
        return ChannelSummary((total / samples).float(), samples)

    def crops(
        self, batches: Iterable[Tensor], channels: Sequence[int] | Tensor, *, count: int = 6, crop: float = CROP
    ) -> ChannelCrops:
        """The parts of images in which channels are most active, such as those of `ChannelSummary.top`.

        Args:
            batches: Batches of images ``(B, C, H, W)``, as the model takes them.
            channels: Numbers of the channels, ``(N,)``.
            count: Crops of each channel, one of an image at most.
            crop: Side of a crop as a fraction of the image's sides; a layer's units often see more or less than that.

        Returns:
            The crops ``(N, K, C, h, w)``; `channel_figure` (in the file of that name) draws them.

        Raises:
            LearnpropError: For options out of range, without a batch, or for a layer without space.
        """
        numbers = channels.tolist() if isinstance(channels, Tensor) else list(channels)
        most = MostActive(numbers, count, crop)
        for images in batches_of_images(batches):
            tensors, additional = checked_inputs(self.model, images, None)
            with undisturbed(self.model, None):
                most.see(images, Suffix(self.model, self.layer, (tensors[0].detach(), *additional)).activation)
        return most.crops()

    def invert(
        self,
        inputs: Tensor,
        masks: Tensor | None = None,
        *,
        n_steps: int = INVERSION_STEPS,
        smoothness: float = SMOOTHNESS,
        seed: int = 0,
    ) -> Tensor:
        """Images that the layer sees as it sees the inputs under masks of channels: what the masks leave of them.

        Beside the inversion without masks it shows what goes with the channels that were left out. The search begins
        with weak noise around the mean colour, so that nothing of the input gets in but through the layer.

        Source: Mahendran and Vedaldi, CVPR 2015, on activations under extremal masks (Fong et al., ICCV 2019).

        Args:
            inputs: Images ``(B, C, *spatial)``.
            masks: Masks of channels, ``(B, C)``; None for the whole activation.
            n_steps: Steps of the search.
            smoothness: Weight of differences of neighbouring pixels.
            seed: Seed of the noise.

        Returns:
            ``(B, C, *spatial)``, in the range of each input's channels.

        Raises:
            LearnpropError: For masks of another shape, options out of range, or a layer that is not called once.
        """
        tensors, _ = checked_inputs(self.model, inputs, None)
        x = tensors[0].detach()
        if x.dim() < 3:
            raise LearnpropError(f"inversion is for inputs (B, C, *spatial), got {tuple(x.shape)}")
        with undisturbed(self.model, None):
            activation = Suffix(self.model, self.layer, (x,)).activation
            if masks is not None:
                if masks.shape != activation.shape[:2]:
                    raise LearnpropError(
                        f"masks {tuple(masks.shape)} are none of the channels of {tuple(activation.shape)}"
                    )
                activation = _faded(activation, masks, torch.zeros_like(activation), "channels")
            space = tuple(range(2, x.dim()))
            low, high, mean = x.amin(space, True), x.amax(space, True), x.mean(space, True)
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(x.shape[1:], generator=generator).to(x)
            return inverted(
                self._activation_of, activation, mean + 0.05 * (high - low) * noise, n_steps=n_steps,
                smoothness=smoothness, low=low, high=high,
            )  # fmt: skip

    def _activation_of(self, inputs: Tensor) -> Tensor:
        """The layer's output, differentiable."""
        found: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda module, args, output: found.append(output))
        try:
            self.model(inputs)
        finally:
            handle.remove()
        return found[0]

    def attribute_future(self) -> None:
        """Not implemented, as in captum's own methods."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")


def _space(masks: str, activation: Tensor, options: SearchOptions, like: Tensor, name: str) -> MaskSpace:
    if activation.dim() < 2 or not activation.is_floating_point():
        raise LearnpropError(
            f"layer {name!r} gives {activation.dtype} {tuple(activation.shape)}; it must be real numbers (B, C, ...)"
        )
    if masks == "channels":
        return FreeMasks((activation.shape[1],))
    if activation.dim() < 3:
        raise LearnpropError(f"layer {name!r} gives {tuple(activation.shape)}, which has no space; use 'channels'")
    return SmoothMasks(tuple(activation.shape[2:]), options.step, options.sigma, like)


def _shares(areas: Any, space: MaskSpace, like: Tensor) -> Tensor:
    """Areas of masks, of which whole numbers count values."""
    given, _ = areas_of(areas)
    size = torch.Size(space.shape).numel()
    for number in given:
        if isinstance(number, int) and not isinstance(number, bool) and not 1 <= number < size:
            raise LearnpropError(f"areas as numbers of channels or places are between 1 and {size - 1}, got {number}")
    shares = [one / size if isinstance(one, int) and not isinstance(one, bool) else one for one in given]
    return checked_areas(shares, like)


def _filling(baselines: float | Tensor, activation: Tensor) -> Tensor:
    filled = torch.as_tensor(baselines, dtype=activation.dtype, device=activation.device)
    try:
        return filled.detach().expand_as(activation)
    except RuntimeError as error:
        raise LearnpropError(
            f"baselines {tuple(filled.shape)} do not broadcast to the layer's output {tuple(activation.shape)}"
        ) from error


def _blurred(inputs: Tensor) -> Tensor:
    """Inputs ``(B, C, *spatial)`` as blurred as masks of inputs make them."""
    if inputs.dim() < 3 or not inputs.is_floating_point():
        raise LearnpropError(
            f"perturbation='blur' needs inputs (B, C, *spatial), got {inputs.dtype} {tuple(inputs.shape)}; use 'fade'"
        )
    return Blur(inputs)(inputs.new_zeros(len(inputs), *inputs.shape[2:]), torch.arange(len(inputs)).to(inputs.device))


def _faded(activation: Tensor, mask: Tensor, baseline: Tensor, masks: str) -> Tensor:
    if masks == "channels":
        weight = mask.reshape(*mask.shape, *[1] * (activation.dim() - 2))
    else:
        weight = mask[:, None]
    weight = weight.to(activation.dtype)
    return activation * weight + baseline * (1 - weight)
