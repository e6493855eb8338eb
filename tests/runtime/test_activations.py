"""What follows a product in its step: which nodes are taken in, and that the answers stay what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchswat.runtime.activations import NAMES, Activation, activation_of
from torchswat.runtime.graph import Node
from torchswat.runtime.session import Session, Sessions
from torchswat.runtime.trace import trace

from .conftest import settle_

AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "silu": F.silu,
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
    "gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "leaky relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Product(nn.Module):
    """A layer, perhaps something added, and an activation."""

    def __init__(self, layer: nn.Module, after: Callable[[Tensor], Tensor], adds: bool) -> None:
        super().__init__()
        self.layer, self.after, self.adds = layer, after, adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.after(y + x if self.adds else y)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(6, 6, 3, padding=1), (6, 9, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6), (6, 9, 7)),
    "pointwise": (lambda: nn.Conv2d(6, 6, 1), (6, 9, 7)),
    "linear": (lambda: nn.Linear(12, 12), (5, 12)),
}


def steps_of(model: nn.Module, x: Tensor) -> tuple[Counter[str], np.ndarray]:
    """Return which operations were run as steps, and the answer."""
    graph, tensors = trace(model.eval(), x)
    seen: list[str] = []

    def watch(session: Session, node: Node, seconds: float) -> None:
        seen.append(node.operation)

    answer = Sessions(graph, tensors).run([x.numpy()], 1, watch)[0]
    return Counter(seen), answer


@torch.no_grad()
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("images", [2, 17])
def test_an_activation_is_a_part_of_the_product(layer: str, name: str, adds: bool, images: int):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model, x = Product(make(), AFTER[name], adds), torch.randn(images, *shape)
    for weight in model.parameters():
        weight.mul_(torch.rand_like(weight) < 0.3)
    steps, answer = steps_of(model, x)
    assert steps == {"FusedLinear" if layer == "linear" else "FusedConv": 1}
    expected = model(x).numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_read_twice_stays_apart():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return F.silu(y) - y

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(2, 3, 8, 8)
    steps, answer = steps_of(model, x)
    assert steps == {"FusedConv": 1, "Swish": 1, "Sub": 1}
    np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ends", [(1, 2, 0, 1), (0, 1, 0, 1), (2, 2, 2, 2)])
def test_zeros_around_the_input_of_a_convolution(ends: tuple[int, ...]):
    class Padded(nn.Module):
        def __init__(self, groups: int) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, 2, groups=groups)

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(self.layer(F.pad(x, ends)))

    torch.manual_seed(0)
    for groups in (1, 4):
        model, x = Padded(groups), torch.randn(3, 4, 9, 10)
        steps, answer = steps_of(model, x)
        assert steps == {"FusedConv": 1}
        np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3, 17])
def test_a_block_of_attention_runs_on_kernels_without_copies(images: int):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.all, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
            self.first = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            n, t, d = x.shape
            q, k, v = self.all(self.norm(x)).reshape(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
            return x + self.out(y)

    torch.manual_seed(0)
    model, x = Block(), torch.randn(images, 10, 8)
    for layer in (model.first, model.all, model.out):
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    graph, tensors = trace(model.eval(), x)
    runs_in: set[tuple[str, bool]] = set()
    answer = Sessions(graph, tensors).run(
        [x.numpy()], 1, lambda session, node, _: runs_in.add((node.operation, node.name in session.fixed))
    )[0]
    assert ("Attention", True) in runs_in and ("LayerNormalization", True) in runs_in
    assert not {name for name, _ in runs_in} & {"Reshape", "Transpose"}
    np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3, 17])
@pytest.mark.parametrize("kernel", [2, 3, (1, 2)])
def test_a_transposed_convolution_of_blocks(images: int, kernel: int | tuple[int, int]):
    torch.manual_seed(0)
    model = settle_(nn.Sequential(nn.ConvTranspose2d(5, 4, kernel, kernel), nn.BatchNorm2d(4), nn.SiLU()))
    x = torch.randn(images, 5, 7, 18)
    _, answer = steps_of(model, x)
    np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 6, 7), (7,), (6, 1), (5, 6, 7), ()])
def test_arithmetic_with_any_part_of_a_map(shape: tuple[int, ...]):
    class Arithmetic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(5, 5, 1)
            self.more = nn.Parameter(torch.rand(shape) + 1)

        def forward(self, x: Tensor) -> Tensor:
            y, more = torch.cumsum(self.layer(x), 1).relu() + 0 * x, self.more
            y = self.layer(y)
            gate = y.mean((2, 3), keepdim=True).sigmoid()
            more = more.reshape(5, 1, 1) if more.shape == (5,) else more
            return (1 - (y * gate - more) / (more + gate)) * more

    torch.manual_seed(0)
    model = Arithmetic()
    for images in (1, 3, 17):
        x = torch.randn(images, 5, 6, 7)
        _, answer = steps_of(model, x)
        np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_bounds_that_cross_or_depend_on_data_are_left_to_numpy():
    node = Node("Clip", ("x", "low", "high"), ("y",), {})
    values = {"low": np.float32(1), "high": np.float32(0)}
    assert activation_of(node, lambda name: np.asarray(values[name])) is None
    assert activation_of(node, lambda name: None) is None
    values["high"] = np.float32(2)
    assert activation_of(node, lambda name: np.asarray(values[name])) == Activation("Clip", 1.0, 2.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_has_a_body(name: str):
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    assert Activation(name, 0.1, 0.5)(x).shape == x.shape
