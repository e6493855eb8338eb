"""torch.compile and torch.export of models as users have them, and of the operations by themselves."""

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

from torchswat import desparsify_, models, prune_, sparsify_
from torchswat.convert import sparse_layers, sparse_state
from torchswat.engine import ops
from torchswat.schedules import Cubic, Steps

BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
COMPILED = ["swat", "saw", "forward-weight"]

# What torch's compiler warns of in itself.
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


# ---- operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_of_layout_are_differentiable_when_compiled(backend):
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    compiled = torch.compile(lambda x: (ops.as_chwn(x).sin() * 2).sum(), backend=backend, fullgraph=True)
    compiled(x).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().cos())


# ---- models ------------------------------------------------------------------------------------------------


def network(**settings) -> nn.Sequential:
    layers = [
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1, groups=2)),
        *(nn.Flatten(), nn.Linear(72, 4)),
    ]
    return sparsify_(nn.Sequential(*layers), **{"sparsity": 0.8, **settings})


def gradients(function: nn.Module, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = function(x).square().mean()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: b.clone() for name, b in model.named_buffers() if b.is_floating_point()}
    return {"loss": loss.detach(), **found, **buffers}


def check_training(model: nn.Module, backend: str, x: Tensor, steps: int = 3, relative: float = 1e-4) -> None:
    """Compare a compiled training with one in eager mode: gradients, statistics, densities, iterations."""
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    twins = [
        (model, torch.optim.SGD(model.parameters(), lr=0.01)),
        (eager, torch.optim.SGD(eager.parameters(), lr=0.01)),
    ]
    for _ in range(steps):
        expected, actual = gradients(eager, eager, x), gradients(compiled, model, x)
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            reference.check_close(value, expected[name], relative)
        for _, optimizer in twins:
            optimizer.step()
    assert counters["stats"]["unique_graphs"] == 1
    for (name, ours), (_, theirs) in zip(sparse_layers(model), sparse_layers(eager), strict=True):
        assert ours.sparse.iteration == theirs.sparse.iteration == steps
        for operand, selector in ours.sparse.selectors.items():
            other = theirs.sparse.selectors[operand]
            assert selector.density == pytest.approx(other.density, abs=0.02), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("algorithm", COMPILED)
def test_a_sparse_model_trains_compiled_as_it_does_eagerly(backend, algorithm):
    check_training(network(algorithm=algorithm), backend, torch.randn(8, 3, 8, 8))


@pytest.mark.parametrize(
    "settings", [{"period": 3, "warmup": 1}, {"exact": False}, {"method": "sample"}], ids=str
)
def test_settings_train_compiled_as_they_do_eagerly(settings):
    check_training(network(**settings), "aot_eager", torch.randn(8, 3, 8, 8), steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_resnet8_trains_compiled_as_it_does_eagerly(backend):
    check_training(sparsify_(models.create("resnet8"), "swat", 0.8), backend, torch.randn(8, 3, 16, 16))


@pytest.mark.parametrize("schedule", [Cubic(0.8, steps=4), Steps(((0, 0.0), (1, 0.5), (3, 0.75)))], ids=str)
def test_a_schedule_compiles_once(schedule):
    """Five sparsities and no recompilation: a graph that is traced again raises."""
    torch._dynamo.config.error_on_recompile, before = True, torch._dynamo.config.error_on_recompile
    try:
        check_training(network(sparsity=schedule), "aot_eager", torch.randn(8, 3, 8, 8), steps=6)
    finally:
        torch._dynamo.config.error_on_recompile = before


def test_an_evaluation_compiles_and_leaves_the_state_alone():
    model = network()
    x = torch.randn(8, 3, 8, 8)
    model(x).sum().backward()
    model.eval()
    before = sparse_state(model)
    with torch.no_grad():
        reference.check_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x), 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), sparse_state(model).values(), strict=True))


def test_sizes_may_be_symbolic():
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (8, 5, 13):
        compiled(torch.randn(n, 3, 8, 8)).sum().backward()
    assert model[0].sparse.iteration == 3
    assert model[0].sparse.selectors["weight"].density == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "meprop"}, "algorithm 'meprop', which torch.compile cannot follow"),
        ({"algorithm": "dsg"}, "algorithm 'dsg', which torch.compile cannot follow"),
        ({"algorithm": "forward-activation"}, "which torch.compile cannot follow"),
        ({"algorithm": "random"}, "random masks that torch.compile cannot follow"),
        ({"scope": "chw"}, "scope, method or random masks that torch.compile cannot follow"),
        ({"method": "sort"}, "scope, method or random masks that torch.compile cannot follow"),
        ({"sparsity": lambda iteration: 0.5}, "is a function that torch.compile cannot follow"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_says_so(settings, words):
    compiled = torch.compile(network(**settings), backend="eager", fullgraph=True)
    with pytest.raises(Exception) as caught:  # Dynamo wraps it in an error of its own
        compiled(torch.randn(2, 3, 8, 8))
    chain, error = "", caught.value
    while error is not None:
        chain, error = chain + str(error), error.__cause__ or error.__context__
    assert words in chain


# ---- export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_a_pruned_model_exports(strict):
    model = sparsify_(models.create("resnet8", width=4), "swat", 0.8)
    x = torch.randn(4, 3, 8, 8)
    model(x).sum().backward()
    model = desparsify_(prune_(model)).eval()
    exported = torch.export.export(model, (x,), strict=strict).module()
    reference.check_close(exported(x), model(x), 1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_a_sparse_layer_exports_as_one_operation(strict):
    model, x = network().eval(), torch.randn(8, 3, 8, 8)
    model[1] = nn.Identity()  # batch norm's own kernels are no part of this test
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=strict)
        found = exported.module()(x)
    assert exported.graph_module.code.count("torchswat.sparse_forward") == 4
    reference.check_close(found, model(x), 1e-5)
