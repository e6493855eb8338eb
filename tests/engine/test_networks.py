"""Whole networks on the compiled engine against plain torch: the same losses, the same gradients."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy

import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import BUILT
from torch import Tensor, nn

from torchswat import models, sparsify_
from torchswat.convert import sparse_layers
from torchswat.engine import layout
from torchswat.engine.loader import engine
from torchswat.selection import Selector, select

pytestmark = pytest.mark.skipif(not BUILT, reason="the native engine is not built here")


# ---- a whole step, with the same masks on both sides -------------------------------------------------------


class Recorded(Selector):
    """A selector that notes its masks, or takes those that another one noted.

    Two entries that rounding tells apart differently would be kept on one side only, and that is no error.
    """

    def __init__(self, masks: list[Tensor], replay: bool) -> None:
        super().__init__()
        self.masks, self.replay = masks, replay

    @property
    def in_operation(self) -> bool:
        return False

    def __call__(
        self, tensor: Tensor, sparsity: float, iteration: int, name: str = "tensor", remember: bool = True
    ) -> Tensor:
        if self.replay:
            return layout.as_chwn(mask) if (mask := self.masks[iteration]).dim() == 4 else mask
        self.masks.append(select(tensor, sparsity).contiguous())
        return self.masks[-1]


def step(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return loss, gradients and statistics after a step forward and backward."""
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found} | {
        name: b.double() for name, b in model.named_buffers() if b.is_floating_point()
    }


def worst_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative error (of norms) of all that a step gives."""
    assert actual.keys() == expected.keys()
    scales = {name: float(value.norm()) for name, value in expected.items()}
    least = 1e-5 * max(scales.values())  # the gradient of a bias in front of a batch norm is rounding alone
    return max(float((actual[n].double() - expected[n]).norm()) / max(scales[n], least) for n in actual)


def check_step(model: nn.Module, size: tuple[int, ...], sparsity: float) -> None:
    """Complain unless a SWAT step on the engine is as near to float64 as plain torch in float32 is.

    Deep networks on few pictures magnify rounding, and a ReLU may open on one side only: no bound is right.
    """
    model = sparsify_(model, "swat", sparsity)
    for module in model.modules():  # drawn masks would differ too
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    for layers in zip(*(sparse_layers(m) for m in (exact, plain, model)), strict=True):
        for operand in layers[0][1].sparse.selectors:
            masks: list[Tensor] = []
            for _, layer in layers:
                layer.sparse.selectors[operand] = Recorded(masks, replay=layer is not layers[0][1])
    x, y = torch.randn(size), torch.randint(0, 10, size[:1])
    with engine("reference"):
        expected = step(exact, x.double(), y)
        error_of_plain = worst_error(step(plain, x, y), expected)
    with engine("native"):
        error = worst_error(step(model, x, y), expected)
    assert error <= 6 * error_of_plain + 1e-5, f"error {error:.3g}, of plain torch {error_of_plain:.3g}"
    assert error < 0.05


@pytest.mark.parametrize("plan", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("resnet8", None, (17, 3, 16, 16)),
        ("resnet18", 16, (5, 3, 16, 16)),
        pytest.param("vgg16", None, (4, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param("densenet121", None, (6, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param("resnet50", 16, (6, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param("wrn28-10", None, (2, 3, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_a_step_of_a_network_agrees_with_float64(monkeypatch, name, width, size, plan):
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    model = models.create(name) if width is None else models.create(name, width=width)
    check_step(model, size, 0.8)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_a_step_at_any_sparsity(sparsity):
    check_step(models.create("resnet8", width=8), (6, 3, 8, 8), sparsity)


# ---- a training --------------------------------------------------------------------------------------------


def losses(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    found = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_the_first_fifty_losses_agree_with_the_reference():
    """With exact selection and one thread (issue 3, "Shown by"); pictures with something to learn.

    At a larger learning rate plain torch in float32 leaves plain torch in float64 as far behind: an entry
    that rounding puts on the other side of a threshold makes another step, and the next ones magnify it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = sparsify_(models.create("resnet8"), "swat", 0.8)
        twin = copy.deepcopy(model)
        patterns = torch.randn(10, 3, 16, 16)
        labels = [torch.randint(0, 10, (16,)) for _ in range(50)]
        batches = [(patterns[y] + 0.5 * torch.randn(16, 3, 16, 16), y) for y in labels]
        with engine("native"):
            ours = losses(model, batches)
        with engine("reference"):
            theirs = losses(twin, batches)
    finally:
        torch.set_num_threads(before)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert sum(ours[-5:]) < 0.97 * sum(ours[:5])  # something was learnt


# ---- the layers as users have them -------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["sparse", "dense"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_outputs_may_be_changed_in_place(monkeypatch, plan, kernel):
    """As an in-place ReLU or a residual sum does, with no batch norm between."""
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    x = torch.randn(4, 3, 8, 8)
    model = sparsify_(nn.Sequential(nn.Conv2d(3, 4, kernel), nn.ReLU(True), nn.Conv2d(4, 4, 1)), "swat", 0.5)
    twin = copy.deepcopy(model)
    twin[1].inplace = False
    grads = []
    for one in (model, twin):
        y = one(x)
        (y.add_(1) if one is model else y + 1).square().sum().backward()
        grads.append([p.grad for p in one.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("batch", "width"), [(1, 3), (4, 1), (4, 3), (1, 1)])
def test_outputs_of_linear_layers_may_be_changed_in_place(batch, width):
    model = sparsify_(nn.Sequential(nn.Linear(6, width), nn.ReLU(True), nn.Linear(width, 2)), "swat", 0.5)
    x = torch.randn(batch, 6)
    model(x).sum().backward()
    with engine("reference"):
        expected = copy.deepcopy(model)(x)
    reference.check_close(model(x), expected, 1e-6)


@pytest.mark.parametrize("plan", ["sparse", "dense"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_results_are_chwn_and_no_views(monkeypatch, plan, kernel, stride):
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    layer = sparsify_(nn.Sequential(nn.Conv2d(3, 5, kernel, stride, kernel // 2)), "swat", 0.5)
    x = layout.copy_to_chwn(torch.randn(4, 3, 8, 8)).requires_grad_()
    y = layer(x)
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    for result in (y, grad_x):
        assert layout.is_chwn(result)
    assert not y._is_view()


def test_what_the_engine_does_not_do_agrees_too():
    """Dilation and other paddings run in plain torch, in one network with groups and the rest."""
    layers = [
        *(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, dilation=2)),
        *(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(8, 8, 2, padding="same", bias=False),
        ),
        *(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)),
    ]
    check_step(nn.Sequential(*layers), (6, 3, 12, 12), 0.7)


@pytest.mark.parametrize("plan", ["sparse", "dense"])
def test_one_channel_on_a_narrow_map(monkeypatch, plan):
    """With the strides of channels_last, torch 2.13 gets this wrong on more than one thread."""
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    layer = nn.Conv2d(1, 6, (1, 7), (1, 2), (0, 3), bias=False)
    x, weight = torch.randn(2, 1, 2, 1), layer.weight.detach().double()
    expected = torch.conv2d(x.double(), weight, None, layer.stride, layer.padding)
    reference.check_close(sparsify_(nn.Sequential(layer), "swat", 0.0)(x), expected, 1e-5)
