"""Methods: Captum ``Attribution`` subclasses by rules, by masks and by tokens."""

from zennit_rules._moved import keep_old_names

keep_old_names(
    __name__,
    {
        "attention_maps": "captum_learnprop.attribution.tokens.attention_maps",
        "attention_weights": "captum_learnprop.attribution.tokens.attention_weights",
        "captum_rules": "captum_learnprop.attribution.rules.captum_rules",
        "cdam": "captum_learnprop.attribution.tokens.cdam",
        "concepts": "captum_learnprop.attribution.tokens.concepts",
        "deep_lift": "captum_learnprop.attribution.rules.deep_lift",
        "extremal": "captum_learnprop.attribution.extremal.inputs",
        "extremal_rows": "captum_learnprop.attribution.extremal.rows",
        "given_rules": "captum_learnprop.attribution.rules.given_rules",
        "guided_backprop": "captum_learnprop.attribution.rules.guided_backprop",
        "layer_extremal": "captum_learnprop.attribution.extremal.layers",
        "learned": "captum_learnprop.attribution.rules.learned",
        "lrp": "captum_learnprop.attribution.rules.lrp",
        "mask_parts": "captum_learnprop.attribution.extremal.mask_parts",
        "mask_search": "captum_learnprop.attribution.extremal.mask_search",
        "mask_spaces": "captum_learnprop.attribution.extremal.mask_spaces",
        "perturbations": "captum_learnprop.attribution.extremal.perturbations",
        "rect_grad": "captum_learnprop.attribution.rules.rect_grad",
        "stock_lrp": "captum_learnprop.attribution.rules.attach",
        "streams": "captum_learnprop.attribution.extremal.random_streams",
        "token_ablation": "captum_learnprop.attribution.tokens.ablation",
        "token_attribution": "captum_learnprop.attribution.tokens.token_attribution",
        "tokens": "captum_learnprop.attribution.tokens.layout",
    },
)
