"""The thin backend for torch.compile: what it takes into a batch norm, and that numbers stay what they are."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat import backend, models, sparsify_

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many additions and ReLUs were taken, by graph."""
    found: list[int] = []
    fuse_graph_ = backend.fuse_graph_

    def fuse(graph: torch.fx.GraphModule) -> int:
        found.append(fuse_graph_(graph))
        return found[-1]

    monkeypatch.setattr(backend, "fuse_graph_", fuse)
    return found


class Block(nn.Module):
    """A residual block whose way of writing the sum and the ReLU is chosen."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2, self.way = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), way

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.way == "left":
            return (y + x).relu()
        if self.way == "right":
            return torch.relu(x + y)
        if self.way == "in place":
            y += x
            return y.relu_()
        if self.way == "read twice":
            return torch.relu(y + x) + y
        if self.way == "broadcast":
            return torch.relu(y + x.mean((2, 3), keepdim=True))
        if self.way == "later":
            return torch.relu(y + self.conv1(x))
        return F.relu(y, inplace=True)


WAYS = {"left": 3, "right": 3, "in place": 3, "read twice": 1, "broadcast": 1, "later": 3, "alone": 2}


def steps(model: nn.Module, call, x: Tensor) -> dict[str, Tensor]:
    for _ in range(2):
        model.zero_grad()
        output = call(x)
        (output * torch.arange(output.numel()).view(output.shape).sin()).sum().backward()
    found = {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    return {"output": output.detach(), **found, **dict(model.named_buffers())}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [3, 16])
def test_a_block_is_what_it_is_in_eager_mode(way, batch, taken):
    model = sparsify_(Block(way), sparsity=0.5)
    twin, x = copy.deepcopy(model), torch.randn(batch, 4, 6, 6)
    compiled = torch.compile(model, backend=backend.torchswat, fullgraph=True)
    ours, theirs = steps(model, compiled, x), steps(twin, twin, x)
    assert taken == [WAYS[way]]
    for name, value in ours.items():
        if name.endswith("sparse_state"):
            assert torch.equal(value[0], theirs[name][0])
        else:
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-3)


def test_a_network_of_ours(taken):
    model = sparsify_(models.create("resnet8", width=4), sparsity=0.8)
    twin, x = copy.deepcopy(model), torch.randn(16, 3, 16, 16)
    compiled = torch.compile(model, backend=backend.torchswat, fullgraph=True)
    ours, theirs = steps(model, compiled, x), steps(twin, twin, x)
    assert taken == [10]  # seven ReLUs behind nine batch norms, three of them behind sums
    torch.testing.assert_close(ours["output"], theirs["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", ["CHWN", "NCHW"])
def test_the_operation_of_batch_norm(relu, residual, layout):
    x = torch.randn(5, 3, 4, 7)
    if layout == "CHWN":
        x = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    norm = nn.BatchNorm2d(3).train()
    nn.init.normal_(norm.weight)
    added = torch.randn(5, 3, 4, 7) if residual else None
    operands = x, added, norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var
    torch.library.opcheck(torch.ops.torchswat.batch_norm, (*operands, norm.eps, 0.1, relu))
    leaves = [t.clone().requires_grad_() if t is not None else None for t in operands[:4]]
    y, *_, mean, variance = torch.ops.torchswat.batch_norm(*leaves, *operands[4:], norm.eps, 0.1, relu)
    expected = norm(leaves[0]) if added is None else norm(leaves[0]) + leaves[1]
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(variance, norm.running_var)
    gradient = torch.randn(y.shape)
    given = [t for t in leaves if t is not None]
    ours = torch.autograd.grad(y, given, gradient)
    plain = nn.functional.batch_norm(leaves[0], None, None, leaves[2], leaves[3], True)
    plain = plain if added is None else plain + leaves[1]
    theirs = torch.autograd.grad(plain.relu() if relu else plain, given, gradient)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.update(x=torch.randn(5, 3, 4)),
        lambda o: o.update(weight=torch.randn(2)),
        lambda o: o.update(running_mean=torch.zeros(4)),
        lambda o: o.update(residual=torch.randn(5, 3, 4, 8)),
        lambda o: o.update(x=torch.ones(5, 3, 4, 7, dtype=torch.int64)),
        lambda o: o.update(x=torch.randn(1, 3, 1, 1)),
    ],
)
def test_operands_that_do_not_fit_are_refused_in_words(change):
    operands = {
        "x": torch.randn(5, 3, 4, 7),
        "residual": None,
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
    }
    change(operands)
    with pytest.raises(ValueError, match=r"allowed (is|are)"):
        torch.ops.torchswat.batch_norm(*operands.values(), 1e-5, 0.1, True)
