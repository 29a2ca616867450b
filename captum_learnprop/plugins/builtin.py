"""Our own parts, registered the way a plugin registers its own; every factory is lazy."""

from __future__ import annotations

from collections.abc import Iterable

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
        "zennit_rules.composites:LearnedEpsilonGammaBox",
        "LRP with trainable rules at linear layers and gates at activations",
    )
    yield CompositeRecord(
        "learned_transformer",
        "zennit_rules.composites:LearnedTransformer",
        "trainable rules of norms, attention, products and activations, started at the gradient",
    )
    yield CompositeRecord(
        "learned_attnlrp",
        "zennit_rules.composites:LearnedAttnLRP",
        "the same, started at AttnLRP",
    )
    yield CompositeRecord(
        "deep_taylor",
        "zennit_rules.composites:DeepTaylor",
        "z+ at every linear layer and the box rule at the first",
    )
    yield CompositeRecord(
        "rect_grad",
        "zennit_rules.composites:RectGradComposite",
        "strongest contributions alone, with a soft threshold",
    )
    yield CompositeRecord(
        "learned_deeplift",
        "zennit_rules.composites:LearnedDeepLift",
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
    where = "captum_learnprop.attribution"
    yield MethodRecord("cdam", f"{where}.cdam:CDAM", "class-discriminative attention map of a vision transformer")
    yield MethodRecord("smooth_cdam", f"{where}.cdam:SmoothCDAM", "mean of CDAMs at noisy tokens")
    yield MethodRecord("integrated_cdam", f"{where}.cdam:IntegratedCDAM", "integrated gradients in token space")
    yield MethodRecord(
        "attention_map", f"{where}.attention_maps:AttentionMap", "what the class token attends to in the last layer"
    )
    yield MethodRecord(
        "attention_rollout", f"{where}.attention_maps:AttentionRollout", "attention multiplied over layers"
    )
    yield MethodRecord(
        "generic_attention", f"{where}.attention_maps:GenericAttention", "relevance through attention of all layers"
    )
    yield MethodRecord(
        "token_ablation", f"{where}.token_ablation:TokenAblation", "fall of the output without each token"
    )
    yield MethodRecord("saliency", "captum.attr:Saliency", "gradient of the output (Captum)")
    yield MethodRecord("input_x_gradient", "captum.attr:InputXGradient", "input times gradient (Captum)")
    yield MethodRecord("integrated_gradients", "captum.attr:IntegratedGradients", "path integral of gradients (Captum)")
    yield MethodRecord("guided_backprop", "captum.attr:GuidedBackprop", "guided backpropagation (Captum)")
    yield MethodRecord("deconvolution", "captum.attr:Deconvolution", "Deconvnet (Captum)")


@hookimpl
def learnprop_metrics() -> Iterable[MetricRecord]:
    """Metrics of ``captum_learnprop.evaluation``."""
    where = "captum_learnprop.evaluation"
    yield MetricRecord("deletion", f"{where}.faithfulness:deletion", "output while the most relevant input is removed")
    yield MetricRecord("insertion", f"{where}.faithfulness:insertion", "output while the most relevant input is added")
    yield MetricRecord(
        "average_precision",
        f"{where}.localization:average_precision",
        "attribution as a detector of the true region",
    )
    yield MetricRecord("pointing_game", f"{where}.localization:pointing_game", "does the maximum hit the true region")
    yield MetricRecord("class_auc", f"{where}.localization:class_auc", "the asked object's pixels against the others'")
    yield MetricRecord("relevance_mass", f"{where}.localization:relevance_mass", "share of the mass on the true region")
    yield MetricRecord(
        "relevance_rank_accuracy",
        f"{where}.localization:relevance_rank_accuracy",
        "share of the highest pixels on the true region",
    )
    yield MetricRecord("grid_pointing", f"{where}.localization:grid_pointing", "share of the mass in the own cell")
    yield MetricRecord("difull", f"{where}.difull:difull_score", "mass in the only cell that a head can see")
    yield MetricRecord("morf_lerf_area", f"{where}.faithfulness:morf_lerf_area", "area between both removal orders")
    yield MetricRecord(
        "box_sensitivity", f"{where}.box_sensitivity:box_sensitivity", "sum in random boxes against the output's fall"
    )
    yield MetricRecord("compactness", f"{where}.box_sensitivity:compactness", "share of values near zero")
    yield MetricRecord("road", f"{where}.road:road", "output while relevant pixels are replaced by their neighbours")
    yield MetricRecord("conservation", f"{where}.conservation:conservation", "share of relevance reaching the input")
    where = f"{where}.randomization"
    yield MetricRecord("full_randomization", f"{where}:full_randomization", "similarity to maps of re-initialised nets")
    yield MetricRecord("complexity_rise", f"{where}:complexity_rise", "entropy gained by re-initialisation (eMPRT)")
    yield MetricRecord("random_logit", f"{where}:random_logit", "similarity to the map of another class")


@hookimpl
def learnprop_models() -> Iterable[ModelRecord]:
    """Sources of models for ``--model``."""
    where = "captum_learnprop.models"
    yield ModelRecord("torchvision", f"{where}:torchvision_model", "classification models, as torchvision:<name>")
    yield ModelRecord("digits_cnn", f"{where}:digits_cnn", "the small digit classifier that ships with the package")
    yield ModelRecord(
        "reference",
        f"{where}:reference_net",
        "shipped nets, as reference:<vgg|resnet|inception>-<digits|patch|parts> or reference:vit-digits",
    )
