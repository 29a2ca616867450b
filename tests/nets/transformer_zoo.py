"""Small vision transformers with random weights, of the libraries that users have them from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
import transformers
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

transformers.logging.set_verbosity_error()

_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8, "num_labels": 7,
}  # fmt: skip
_VISION = {name: value for name, value in _SMALL.items() if name != "num_labels"}


@dataclass(frozen=True)
class Family:
    """A kind of vision transformer.

    Attributes:
        make: builds a small one with seven outputs.
        norm: path of the module that gives the last attention its input.
        prefix: tokens before the patches.
        size: height and width of its images; patches have 8 x 8 pixels.
        pooled: whether the head reads patches.
        ablates: whether it can do without a token.
    """

    make: Callable[[], nn.Module]
    norm: str
    prefix: int = 1
    size: tuple[int, int] = (32, 32)
    pooled: bool = False
    ablates: bool = True


def _torchvision(**options: Any) -> Callable[[], nn.Module]:
    return lambda: VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=7, **options)


def _timm(name: str, size: tuple[int, int] = (32, 48), **options: Any) -> Callable[[], nn.Module]:
    small = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 7, "img_size": size}
    return lambda: timm.create_model(name, pretrained=False, **{**small, **options})


def _hugging_face(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**(options or _SMALL)))


_STEM = [ConvStemConfig(8, 3, 2), ConvStemConfig(16, 3, 2), ConvStemConfig(32, 3, 2)]
WIDE = (32, 48)
FAMILIES: dict[str, Family] = {
    "torchvision": Family(_torchvision(), "encoder.layers.encoder_layer_2.ln_1"),
    "torchvision stem": Family(_torchvision(conv_stem_configs=_STEM), "encoder.layers.encoder_layer_2.ln_1"),
    "timm ViT": Family(_timm("vit_tiny_patch16_224"), "blocks.2.norm1", size=WIDE),
    "timm DeiT distilled": Family(_timm("deit_tiny_distilled_patch16_224"), "blocks.2.norm1", 2, WIDE),
    "timm DeiT III": Family(_timm("deit3_small_patch16_224"), "blocks.2.norm1", size=WIDE),
    "timm DINOv2 registers": Family(_timm("vit_small_patch14_reg4_dinov2"), "blocks.2.norm1", 5, WIDE),
    "timm pooled": Family(
        _timm("vit_base_patch16_clip_quickgelu_224", global_pool="avg"), "blocks.2.norm1", size=WIDE, pooled=True
    ),
    "timm SigLIP": Family(_timm("vit_base_patch16_siglip_224", mlp_ratio=2), "norm", 0, WIDE),
    "timm EVA-02": Family(
        _timm("eva02_tiny_patch14_224"), "blocks.2.norm1", size=WIDE, pooled=True, ablates=False
    ),
    "timm BEiT": Family(_timm("beit_base_patch16_224"), "blocks.2.norm1", size=WIDE, pooled=True, ablates=False),
    "timm CaiT": Family(_timm("cait_xxs24_224", (32, 32)), "blocks_token_only.1.norm1", ablates=False),
    "Hugging Face ViT": Family(
        _hugging_face("ViTForImageClassification", "ViTConfig"), "vit.layers.2.layernorm_before"
    ),
    "Hugging Face DeiT": Family(
        _hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig"), "deit.layers.2.layernorm_before", 2
    ),
    "Hugging Face DINOv2": Family(
        _hugging_face("Dinov2ForImageClassification", "Dinov2Config"),
        "dinov2.encoder.layer.2.norm1", 1, WIDE, pooled=True,
    ),
    "Hugging Face DINOv2 registers": Family(
        _hugging_face("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig"),
        "dinov2_with_registers.encoder.layer.2.norm1", 5, WIDE, pooled=True,
    ),
    "Hugging Face DINOv3": Family(
        _hugging_face("DINOv3ViTModel", "DINOv3ViTConfig", **_VISION, num_register_tokens=4),
        "model.layer.2.norm1", 5, WIDE, ablates=False,
    ),
    "Hugging Face SigLIP": Family(
        _hugging_face("SiglipForImageClassification", "SiglipConfig", vision_config=_VISION, num_labels=7),
        "vision_model.encoder.layers.2.layer_norm1", 0, pooled=True,
    ),
    "Hugging Face CLIP": Family(
        _hugging_face("CLIPVisionModelWithProjection", "CLIPVisionConfig", **_VISION, projection_dim=7),
        "vision_model.encoder.layers.2.layer_norm1",
    ),
}  # fmt: skip


def make(name: str) -> nn.Module:
    """The model of a family, with weights so large that no output is constant, in evaluation mode.

    Built once; each call gives another copy, and random numbers go on as they would after building it.
    """
    model, state = _built(name)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@cache
def _built(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = FAMILIES[name].make().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
            elif "gamma" in path or "lambda" in path:  # layer scales start near 0
                parameter.fill_(0.5)
    return model, torch.get_rng_state()
