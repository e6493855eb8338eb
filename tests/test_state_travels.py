"""What layers remember survives what programs do to models: copies, files, averages, casts, resumes."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from torchswat import prune_, sparsify_
from torchswat.algorithms import ALGORITHMS
from torchswat.convert import count_steps_, load_sparse_state_, sparse_layers, sparse_state
from torchswat.engine.state import density, threshold
from torchswat.schedules import Cubic, Steps

SCHEDULE = Cubic(0.8, steps=5, begin=1)


def plain() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5)
    )


def network(save_state: bool = True, **settings) -> nn.Sequential:
    settings = {"sparsity": SCHEDULE, "period": 2, **settings}
    return sparsify_(plain(), save_state=save_state, **settings)


def train(model: nn.Module, steps: range) -> list[Tensor]:
    """Train on a batch for each step; return the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        images, labels = torch.randn(4, 3, 6, 6, generator=draw), torch.randint(5, (4,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_state_dict(model: nn.Module, assign: bool = False, **settings) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = network(**settings)
    fresh.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    return fresh


def through_assignment(model: nn.Module, **settings) -> nn.Module:
    return through_a_state_dict(model, assign=True, **settings)


def through_sparse_state(model: nn.Module, **settings) -> nn.Module:
    fresh = network(**settings)
    fresh.load_state_dict(model.state_dict())
    load_sparse_state_(fresh, sparse_state(model))
    return fresh


def through_nothing_but_meta(model: nn.Module) -> nn.Module:
    """As a program does that moves a model to memory that is not there yet, and loads it then."""
    fresh = network().to("meta").to_empty(device="cpu")
    fresh.load_state_dict(model.state_dict())
    return fresh


WAYS = [copy.deepcopy, through_pickle, through_a_file, through_a_state_dict, through_assignment]
WAYS += [through_sparse_state, through_nothing_but_meta]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    states = sparse_state(one), sparse_state(other)
    return states[0].keys() == states[1].keys() and all(
        torch.equal(a, states[1][k]) for k, a in states[0].items()
    )


# ---- resumes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_training_goes_on_as_if_nothing_had_happened(way):
    whole, part = network(), network()
    expected = train(whole, range(7))
    train(part, range(4))
    resumed = way(part)
    assert same_state(resumed, part)
    for ours, theirs in zip(train(resumed, range(4, 7)), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert same_state(resumed, whole) and resumed[0].sparse.iteration == 7


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_a_file])
@pytest.mark.parametrize(
    "settings", [{"scope": "chw"}, {"algorithm": "random"}, {"algorithm": "meprop"}], ids=str
)
def test_copies_carry_thresholds_by_row_and_seeds_too(way, settings):
    whole, part = network(**settings), network(**settings)
    expected = train(whole, range(5))
    train(part, range(3))
    for ours, theirs in zip(train(way(part), range(3, 5)), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_selectors_and_layers_read_the_buffer_that_the_copy_has(way):
    part = network()
    train(part, range(3))
    resumed = way(part)
    before = sparse_state(part)
    train(resumed, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), sparse_state(part).values(), strict=True))
    for _, layer in sparse_layers(resumed):
        assert (
            layer.sparse.state is layer.sparse_state and layer.sparse_state is layer._buffers["sparse_state"]
        )
        for operand, selector in layer.sparse.selectors.items():
            assert selector.density == density(layer.sparse_state, operand)
            assert float(selector.threshold) == threshold(layer.sparse_state, operand)


# ---- the state_dict ----------------------------------------------------------------------------------------


def test_keys_are_those_of_the_plain_model_unless_asked_for():
    keys = list(plain().state_dict())
    assert list(network(save_state=False).state_dict()) == keys
    extra = [f"{name}.sparse_state" for name in "024"]
    assert sorted(set(network(save_state=True).state_dict()) - set(keys)) == extra


@pytest.mark.parametrize("save_state", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_a_plain_model_load(save_state, strict):
    model = network(save_state)
    train(model, range(3))
    found = model.load_state_dict(plain().state_dict(), strict=strict)
    assert not found.missing_keys and not found.unexpected_keys
    assert model[0].sparse.selectors["weight"].threshold is None
    assert model[0].sparse.iteration == 3


def test_a_state_of_another_form_is_refused_by_torch():
    state = network().state_dict()
    state["0.sparse_state"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.sparse_state"):
        network().load_state_dict(state)


# ---- averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("save_state", [False, True])
def test_an_averaged_model_evaluates_at_the_sparsity_of_the_training(use_buffers, save_state):
    """Its copy is made at the beginning; only with buffers does it follow."""
    model = network(save_state, sparsity=0.8)
    averaged = AveragedModel(model, use_buffers=use_buffers)
    for step in range(4):
        train(model, range(step, step + 1))
        averaged.update_parameters(model)
    averaged.eval()
    before = sparse_state(averaged)
    output = averaged(torch.ones(2, 3, 6, 6))
    assert output.isfinite().all()
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), sparse_state(averaged).values(), strict=True)
    )
    pruned = prune_(copy.deepcopy(averaged), sparsity=0.8)
    torch.testing.assert_close(pruned(torch.ones(2, 3, 6, 6)), output, rtol=1e-4, atol=1e-5)
    layer = averaged.module[2]
    assert int(layer.weight.count_nonzero()) > int(pruned.module[2].weight.count_nonzero()) == 10


def test_an_averaged_model_follows_the_schedule():
    model = network()
    averaged = AveragedModel(model)
    for step in range(7):
        train(model, range(step, step + 1))
        averaged.update_parameters(model)
    for _, layer in sparse_layers(averaged):
        assert layer.sparse.iteration == 7
        assert layer.sparse.sparsity_now(layer.sparse.last_iteration()) == pytest.approx(0.8)


def test_an_averaged_model_whose_buffers_are_averaged_takes_the_state_when_it_is_loaded():
    """torch averages integers like any buffer, and truncates: load the state before an evaluation (README.md)."""
    model = network()
    averaged = AveragedModel(model, use_buffers=True)
    for step in range(7):
        train(model, range(step, step + 1))
        averaged.update_parameters(model)
    assert averaged(torch.ones(2, 3, 6, 6)).isfinite().all()
    load_sparse_state_(averaged.module, sparse_state(model))
    assert same_state(averaged.module, model)
    prune_(averaged)
    assert int(averaged.module[2].weight.count_nonzero()) <= 12


# ---- casts and moves ---------------------------------------------------------------------------------------

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "share_memory": lambda model: model.share_memory(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_changes_no_word(cast):
    model = network()
    train(model, range(3))
    before = sparse_state(model)
    CASTS[cast](model)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), sparse_state(model).values(), strict=True))
    assert model[0].sparse.selectors["weight"].density == density(before["0.state"], "weight")
    images = torch.randn(2, 3, 6, 6).to(model[0].weight.dtype)
    model(images).sum().backward()
    assert model[0].sparse.iteration == 4


def test_a_model_made_on_meta_begins_anew():
    with torch.device("meta"):
        model = plain()
    sparsify_(model, sparsity=0.8)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert model[0].sparse.iteration == 1
    assert model[0].sparse.selectors["weight"].density == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_passes_on_meta_give_shapes(algorithm, training):
    model = network(sparsity=0.8, algorithm=algorithm, save_state=False).to("meta").train(training)
    output = model(torch.randn(2, 3, 6, 6, device="meta"))
    output.sum().backward()
    assert output.shape == (2, 5)
    assert all(weight.grad is not None and weight.grad.is_meta for weight in model.parameters())


# ---- iterations --------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """The network with its layers under gradient checkpointing."""

    def __init__(self, model: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_checkpointing_counts_an_iteration_once(reentrant, compiled):
    if compiled and reentrant:
        pytest.skip("torch.compile does not trace reentrant checkpoints")
    torch.compiler.reset()
    model, twin = network(sparsity=0.6), network(sparsity=0.6)
    run: Callable[[Tensor], Tensor] = Checkpointed(model, reentrant)
    if compiled:
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    for step in range(3):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step)).requires_grad_()
        for network_, call in ((model, run), (twin, twin)):
            network_.zero_grad()
            call(x).square().sum().backward()
    assert [layer.sparse.iteration for _, layer in sparse_layers(model)] == [3, 3, 3]
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", [1, 3])
def test_counted_steps_follow_the_optimizer(passes):
    model = network(sparsity=Steps(((0, 0.0), (2, 0.5), (4, 0.75))), period=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = count_steps_(model, optimizer)
    densities = []
    for _ in range(6):
        optimizer.zero_grad()
        for _ in range(passes):
            model(torch.randn(2, 3, 6, 6)).sum().backward()
        densities.append(round(model[2].sparse.selectors["weight"].density, 3))
        optimizer.step()
    assert densities == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert model[0].sparse.iteration == 6
    handle.remove()
    model(torch.randn(2, 3, 6, 6))
    assert model[0].sparse.iteration == 7


def test_a_step_that_a_scaler_skips_does_not_count():
    model = network(sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count_steps_(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflow in (False, True, False):
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 6, 6)).sum()
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert model[0].sparse.iteration == 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_evaluation_between_counted_steps_is_of_the_last_one():
    model = network(sparsity=Steps(((0, 0.0), (1, 0.5))), period=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count_steps_(model, optimizer)
    for _ in range(2):
        model(torch.randn(2, 3, 6, 6)).sum().backward()
        optimizer.step()
    x = torch.randn(2, 3, 6, 6)
    output = model.eval()(x)
    torch.testing.assert_close(prune_(copy.deepcopy(model))(x), output, rtol=1e-4, atol=1e-5)
    assert int(prune_(model)[2].weight.count_nonzero()) == 24
