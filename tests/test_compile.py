"""torch.compile and torch.export: of functions made of the operations, and of models as users have them."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import reference
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.grad import conv2d_input, conv2d_weight

from torchswat import desparsify_, models, prune_, sparsify_
from torchswat.engine import ops

INPUT, WEIGHT, STRIDE, PADDING = [4, 6, 7, 8], [5, 6, 3, 3], [2, 1], [1, 1]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]

# What torch's compiler warns of in itself: behind a break of the graph it looks at every attribute.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:.*torch.jit.*is deprecated:DeprecationWarning",
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def step(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select, pack and multiply: the three products of a layer, from plain tensors to plain tensors."""
    x = ops.to_inner(x)
    forward = ops.pack_weight(weight, None, 0.7, INPUT, STRIDE, PADDING, ops.FORWARD)
    backward = ops.pack_weight(weight, weight.abs() >= 0.7, 0.0, INPUT, STRIDE, PADDING, ops.GRAD_INPUT)
    compressed = ops.compress(x, None, 0.5)
    sizes = WEIGHT, STRIDE, PADDING
    output = ops.conv2d_packed(x, *forward, None, *sizes)
    grad_input = ops.conv2d_packed_grad_input(gradient, *backward, INPUT, *sizes)
    grad_weight = ops.conv2d_compressed_grad_weight(*compressed, gradient, INPUT, *sizes)
    return ops.to_channels_last(output) * 2, grad_input + 1, grad_weight


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_of_the_operations_compile_to_one_graph(backend):
    x, weight, gradient = torch.randn(INPUT), torch.randn(WEIGHT), torch.randn(4, 5, 4, 8)
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    geometry = STRIDE, PADDING
    sparse_x, sparse_weight = x * (x.abs() >= 0.5), weight * (weight.abs() >= 0.7)
    expected = (
        torch.conv2d(x, sparse_weight, None, *geometry) * 2,
        conv2d_input(x.shape, sparse_weight, gradient, *geometry) + 1,
        conv2d_weight(sparse_x, weight.shape, gradient, *geometry),
    )
    for _ in range(2):
        for actual, wanted in zip(compiled(x, weight, gradient), expected, strict=True):
            reference.check_close(actual, wanted, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_of_layout_are_differentiable_when_compiled(backend):
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    compiled = torch.compile(
        lambda x: (ops.to_channels_last(ops.to_inner(x).sin()) * 2).sum(), backend=backend, fullgraph=True
    )
    compiled(x).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().cos())


def gradients(function: nn.Module, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = function(x).square().mean()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found} | {name: b.clone().float() for name, b in model.named_buffers()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sparse_model_trains_compiled_as_it_does_eagerly(backend):
    model = sparsify_(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 4)),
        ),
        "swat",
        0.8,
    )
    check_training(model, backend, torch.randn(8, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_resnet8_trains_compiled_as_it_does_eagerly(backend):
    check_training(sparsify_(models.create("resnet8"), "swat", 0.8), backend, torch.randn(8, 3, 16, 16))


def check_training(model: nn.Module, backend: str, x: Tensor) -> None:
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend)
    for _ in range(3):
        expected, actual = gradients(eager, eager, x), gradients(compiled, model, x)
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            reference.check_close(value, expected[name], 1e-4)
    assert counters["stats"]["unique_graphs"] > 0  # what stands between the sparse layers was compiled
    layers = [m for m in model.modules() if hasattr(m, "sparse")]
    assert layers and all(layer.sparse.iteration == 3 for layer in layers)


# ---- export ------------------------------------------------------------------------------------------------


def test_a_pruned_model_exports():
    model = sparsify_(models.create("resnet8", width=4), "swat", 0.8)
    x = torch.randn(4, 3, 8, 8)
    model(x).sum().backward()
    model = desparsify_(prune_(model)).eval()
    exported = torch.export.export(model, (x,)).module()
    reference.check_close(exported(x), model(x), 1e-6)


class Packed(nn.Module):
    """Inference with packed weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        packed = ops.pack_weight(weight, None, 0.7, INPUT, STRIDE, PADDING, ops.FORWARD)
        for name, tensor in zip(("starts", "values", "offsets"), packed, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.starts, self.values, self.offsets
        x = ops.conv2d_packed(ops.to_inner(x), *packed, None, WEIGHT, STRIDE, PADDING)
        return ops.to_channels_last(x.relu())


def test_operations_export():
    x, weight = torch.randn(INPUT), torch.randn(WEIGHT)
    exported = torch.export.export(Packed(weight), (x,))
    assert "torchswat.conv2d_packed" in exported.graph_module.code
    expected = torch.conv2d(x, weight * (weight.abs() >= 0.7), None, STRIDE, PADDING).relu()
    reference.check_close(exported.module()(x), expected, 1e-5)
