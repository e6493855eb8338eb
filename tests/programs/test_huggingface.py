"""Networks of Hugging Face from small configurations with random weights, against the emulation."""

from __future__ import annotations

import pytest
from comparing import Setting, check_network
from torch import nn

transformers = pytest.importorskip("transformers", reason="no transformers (extra: transformers)")

STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
BATCH = (8, 3, 32, 32)
NETWORKS: dict[str, tuple[str, dict]] = {
    "ResNet of basic blocks": ("ResNet", {**STAGES, "embedding_size": 8, "layer_type": "basic"}),
    "ResNet of bottlenecks": (
        "ResNet",
        {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 8, "layer_type": "bottleneck"},
    ),
    "ConvNext": ("ConvNext", STAGES),
    "MobileNetV2": ("MobileNetV2", {"depth_multiplier": 0.35, "classifier_dropout_prob": 0.0}),
    "ViT": (
        "ViT",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
    "RegNet": (
        "RegNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    ),
}


def build(name: str) -> nn.Module:
    family, options = NETWORKS[name]
    config = getattr(transformers, f"{family}Config")(num_labels=10, **options)
    return getattr(transformers, f"{family}ForImageClassification")(config)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_as_the_paper_says(name: str, setting: Setting):
    check_network(lambda: build(name), BATCH, setting)
