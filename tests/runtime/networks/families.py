"""Vision families of Hugging Face, from small configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

WIDTHS: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "num_labels": 5}
TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 5,
}
PYRAMID = {**WIDTHS, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
DEPTHS = {**WIDTHS, "depths": [1, 1, 2, 1]}
MOBILE = {"depth_multiplier": 0.25, "num_labels": 5, "image_size": 64}

SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ResNet": ("ResNetConfig", "ResNetForImageClassification", {**DEPTHS, "embedding_size": 8}),
    "RegNet": (
        "RegNetConfig",
        "RegNetForImageClassification",
        {**DEPTHS, "embedding_size": 8, "groups_width": 8},
    ),
    "ConvNeXt": ("ConvNextConfig", "ConvNextForImageClassification", DEPTHS),
    "ConvNeXtV2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", DEPTHS),
    "MobileNetV1": ("MobileNetV1Config", "MobileNetV1ForImageClassification", MOBILE),
    "MobileNetV2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", MOBILE),
    "EfficientNet": (
        "EfficientNetConfig",
        "EfficientNetForImageClassification",
        {
            "image_size": 64,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "hidden_dim": 320,
            "num_labels": 5,
        },
    ),
    "ViT": ("ViTConfig", "ViTForImageClassification", TOKENS),
    "DeiT": ("DeiTConfig", "DeiTForImageClassification", TOKENS),
    "Swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 5,
        },
    ),
    "BEiT": ("BeitConfig", "BeitForImageClassification", {**TOKENS, "use_relative_position_bias": True}),
    "PVT": ("PvtConfig", "PvtForImageClassification", {**PYRAMID, "image_size": 64}),
    "PoolFormer": ("PoolFormerConfig", "PoolFormerForImageClassification", DEPTHS),
    "SegFormer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {**PYRAMID, "decoder_hidden_size": 16},
    ),
    "YOLOS": (
        "YolosConfig",
        "YolosForObjectDetection",
        {**TOKENS, "image_size": [64, 64], "num_detection_tokens": 5},
    ),
    "DPT": (
        "DPTConfig",
        "DPTForDepthEstimation",
        {
            **TOKENS,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
    ),
}


def maker(name: str) -> Callable[[], nn.Module]:
    """Return what makes one of `SETTINGS`."""

    def make() -> nn.Module:
        import transformers

        config, model, settings = SETTINGS[name]
        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return make
