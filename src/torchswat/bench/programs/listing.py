"""The programs that are timed, as data: what is not in this list is not timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from torchswat import models
from torchswat.bench.programs.compiled import CompiledStep
from torchswat.bench.programs.kinds import NewSizes, TrainingStep
from torchswat.bench.programs.networks import UserResNet18, cnn, hugging_face, mlp
from torchswat.bench.programs.overhead import SingleLayer, StepOverhead
from torchswat.models.resnet import BasicBlock, ResNet

Shape = tuple[int, int, int, int]
Program = TrainingStep | CompiledStep | SingleLayer | StepOverhead | NewSizes


def _ours(name: str, size: int = 32, form: str = "cifar") -> tuple[partial, tuple[int, int, int]]:
    return partial(models.create, name, form=form, num_classes=10), (3, size, size)


def _digits_of_28() -> Iterator[Program]:
    for batch, once, periodic in ((64, 0.8, 0.95), (512, 1.0, 1.1)):
        shape = (batch, 1, 28, 28)
        yield TrainingStep(f"mlp-x{batch}", mlp, shape, {"dense": once})
        yield TrainingStep(f"mlp-x{batch}-period10", mlp, shape, {"dense": periodic}, {"period": 10})
    yield TrainingStep("cnn-x64", cnn, (64, 1, 28, 28), {"dense": 1.6})


def _resnet20() -> Iterator[Program]:
    build, image = _ours("resnet20")
    for batch, asked in ((16, 1.0), (128, 1.6)):
        yield TrainingStep(f"resnet20-x{batch}", build, (batch, *image), {"dense": asked})


_PLAIN_VIT = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
_SMALL_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_STAGES = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}

DEFAULT: dict[str, tuple[str, Mapping[str, Any], Shape, float, float]] = {
    "resnet50": ("ResNet", {}, (16, 3, 64, 64), 1.3, 1.1),
    "convnext": ("ConvNext", {}, (8, 3, 64, 64), 1.15, 1.1),
    "mobilenetv2": ("MobileNetV2", {}, (16, 3, 96, 96), 1.0, 0.95),
    "vit": ("ViT", {**_PLAIN_VIT, "image_size": 32, "patch_size": 4}, (32, 3, 32, 32), 1.2, 1.1),
}
"""Hugging Face's default configurations: family, settings, batch, and the speeds over dense that are asked, in
float32 and under bfloat16 autocast."""

TINY: dict[str, tuple[str, Mapping[str, Any]]] = {
    "resnet": ("ResNet", {**_STAGES, "embedding_size": 16, "layer_type": "basic"}),
    "convnext": ("ConvNext", _STAGES),
    "mobilenetv2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "vit": ("ViT", {**_SMALL_VIT, "image_size": 32, "patch_size": 8}),
}
"""Small configurations, for 64 images of 32x32."""


def _hugging_face() -> Iterator[Program]:
    for name, (family, settings, batch, asked, narrow) in DEFAULT.items():
        build = partial(hugging_face, family, **settings)
        yield TrainingStep(f"hf-{name}", build, batch, {"dense": asked})
        yield TrainingStep(
            f"hf-{name}-bfloat16", build, batch, {"dense": narrow, "float32": 0.95}, autocast=True
        )
    for name, (family, settings) in TINY.items():
        build = partial(hugging_face, family, **settings)
        yield TrainingStep(f"hf-tiny-{name}", build, (64, 3, 32, 32), {"dense": 0.85})


def _large() -> Iterator[Program]:
    both = {"against": 0.99, "against unfused": 0.92}
    for name, batch, size, form, asked in (
        ("resnet18", 128, 32, "cifar", both),
        ("vgg16", 128, 32, "cifar", {"against": 0.99}),
        ("densenet121", 64, 32, "cifar", {"against": 0.97}),
        ("wrn28-10", 32, 32, "cifar", {"against": 0.97}),
        ("resnet50", 16, 224, "imagenet", {"against": 0.97}),
    ):
        build, image = _ours(name, size, form)
        yield TrainingStep(f"{name}-x{batch}", build, (batch, *image), asked, is_long=True)
    yield TrainingStep("user-resnet18-x128", UserResNet18, (128, 3, 32, 32), {"against": 0.99}, is_long=True)


def _compiled() -> Iterator[Program]:
    for name in ("resnet18", "resnet20"):
        build, image = _ours(name)
        yield CompiledStep(f"compiled-{name}-x128", build, (128, *image))


_BATCHES: tuple[Shape, ...] = tuple((n, 1, 28, 28) for n in range(1, 61))
_IMAGES: tuple[Shape, ...] = tuple((8, 1, size, size) for size in range(16, 76))


def _costs() -> Iterator[Program]:
    yield SingleLayer("layer-overhead", partial(nn.Conv2d, 8, 8, 3), (4, 8, 6, 6), {"microseconds": 40})
    yield SingleLayer("layer-overhead-conv2d", partial(nn.Conv2d, 4, 4, 3), (1, 4, 4, 4))
    yield SingleLayer("layer-overhead-linear", partial(nn.Linear, 8, 8), (8, 8))
    build = partial(ResNet, BasicBlock, (3, 3, 3), shortcut="padding")
    yield StepOverhead("step-overhead-resnet20-x16", build, 16, (16, 3, 32, 32))
    for what, training in (("training", True), ("evaluation", False)):
        for kind, sizes in (("batch", _BATCHES), ("image", _IMAGES)):
            yield NewSizes(f"new-{kind}-sizes-{what}", cnn, sizes, training, {"dense": 1 / 1.3})


PROGRAMS: dict[str, Program] = {
    program.name: program
    for group in (_resnet20, _digits_of_28, _hugging_face, _large, _compiled, _costs)
    for program in group()
}
"""All programs by name; the numbers are what the engine is asked for, at a sparsity of 0.8."""
