"""Two real processes: counters and masks are the same on both, and sharded weights are pruned."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchswat
from torchswat.errors import InvalidValue
from torchswat.schedules import Cubic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
PROCESSES = 2


def _run(rank: int, checks: list[Callable[..., None]], folder: Path) -> None:
    """Run the checks one after another in one of the processes; starting them takes longest."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES)
    try:
        for check in checks:
            check(rank, folder) if check is check_fsdp_resumes else check(rank)
            dist.barrier()
    except Exception:
        traceback.print_exc()  # the other process, which loses its peer, may be the one that is reported
        raise
    finally:
        dist.destroy_process_group()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def same_on_both(tensor: Tensor) -> bool:
    copies = [torch.empty_like(tensor) for _ in range(PROCESSES)]
    dist.all_gather(copies, tensor.contiguous())
    return torch.equal(*copies)


def check_uneven_inputs(rank: int) -> None:
    """The process that runs out of data first stands where the other stands in the end."""
    torch.manual_seed(rank)
    model = torchswat.sparsify_(network(), sparsity=Cubic(0.8, 6), period=2)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    with Join([parallel]):
        for _ in range(3 + 3 * rank):
            optimizer.zero_grad()
            parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
    for state in torchswat.sparse_state(model).values():
        assert int(state[0]) == 6 and same_on_both(state)
    torchswat.prune_(model)
    assert same_on_both(model[3].weight.detach()) and (model[3].weight == 0).float().mean() > 0.5


def check_random_masks(rank: int) -> None:
    """Processes with seeds of their own draw the same masks, and so keep the same weights."""
    for algorithm in ("random", "saw-random"):
        torch.manual_seed(rank)
        model = torchswat.sparsify_(network(), algorithm, 0.5)
        parallel = DistributedDataParallel(model)
        torch.manual_seed(100 + rank)
        x = torch.randn(4, 3, 8, 8)
        masks = []
        for _ in range(2):
            parallel(x).sum().backward()
            masks.append(model[3].selected_weights(0.5))
            assert same_on_both(masks[-1]) and masks[-1].float().mean() == 0.5
        assert not torch.equal(*masks)
        assert same_on_both(model[3].weight.grad)


def check_blocks(rank: int) -> None:
    """Blocks are a function of the weights, so processes with data of their own keep the same ones."""
    torch.manual_seed(rank)
    model = torchswat.sparsify_(network(), sparsity=0.5, block=(2, 2), period=2)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    for _, layer in torchswat.sparse_layers(model):
        assert same_on_both(layer.selected_weights(0.5)) and same_on_both(layer.weight.detach())
        assert same_on_both(torch.tensor(layer.sparse.selectors["weight"].threshold))


def check_sharded(rank: int) -> None:
    """Under FSDP2 `prune_` sets the entries to zero that it sets in one process."""
    torch.manual_seed(0)
    model = torchswat.sparsify_(network(), sparsity=0.7)
    alone = torchswat.sparsify_(network(), sparsity=0.7)
    alone.load_state_dict(model.state_dict())
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model, mesh=mesh)
    x = torch.randn(4, 3, 8, 8)
    for each in (model, alone):
        each(x).square().mean().backward()
        torchswat.prune_(each)
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.full_tensor(), theirs)
        assert torch.allclose(ours.grad.full_tensor(), theirs.grad, atol=1e-6)
    assert type(torchswat.desparsify_(model)[3]) is nn.Linear
    assert torch.allclose(model.eval()(x), torchswat.desparsify_(alone).eval()(x), atol=1e-6)

    wrapped = torchswat.sparsify_(network(), sparsity=0.7)
    fully_shard(wrapped[3], mesh=mesh)
    torchswat.prune_(wrapped)
    assert (wrapped[3].weight.full_tensor() == 0).float().mean() == pytest.approx(0.7, abs=0.001)
    with pytest.raises(InvalidValue, match=r"layer '3' was wrapped by torch.distributed.fsdp.fully_shard"):
        torchswat.desparsify_(wrapped)


def joined_gradients(rank: int, scope: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of two processes with half a batch each, and of one with the whole batch."""
    torch.manual_seed(0)
    alone = torchswat.sparsify_(network(), sparsity=0.6, scope=scope)
    model = torchswat.sparsify_(network(), sparsity=0.6, scope=scope)
    model.load_state_dict(alone.state_dict())
    parallel, batch = DistributedDataParallel(model), torch.randn(8, 3, 8, 8)
    batch[:4] *= 3  # the halves differ in magnitude, so one threshold for both is not each half's own
    parallel(batch.tensor_split(PROCESSES)[rank]).square().mean().backward()
    alone(batch).square().mean().backward()
    return [p.grad for p in model.parameters()], [p.grad for p in alone.parameters()]


def check_chw_is_one_process(rank: int) -> None:
    """Each sample is selected by itself, so the masks do not depend on how a batch is shared out."""
    for ours, theirs in zip(*joined_gradients(rank, "chw"), strict=True):
        assert same_on_both(ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def check_nchw_is_not(rank: int) -> None:
    """The k largest of a process's share are not its share of the k largest of the batch (docs: distributed)."""
    ours, theirs = joined_gradients(rank, "nchw")
    assert all(same_on_both(gradient) for gradient in ours)
    weight = ours[0], theirs[0]
    assert float((weight[0] - weight[1]).norm() / weight[1].norm()) > 0.01


def check_accumulation(rank: int) -> None:
    """`no_sync` leaves out the communication: the gradients of the step and the masks are the same as with it."""
    found = []
    for silent in (True, False):
        torch.manual_seed(0)
        model = torchswat.sparsify_(network(), sparsity=Cubic(0.8, 3))
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
        torchswat.count_steps_(model, optimizer)
        draw = torch.Generator().manual_seed(rank)
        for _ in range(4):
            optimizer.zero_grad()
            for last in (False, False, True):
                with parallel.no_sync() if silent and not last else nullcontext():
                    parallel(torch.randn(4, 3, 8, 8, generator=draw)).square().mean().backward()
            optimizer.step()
        assert [layer.sparse.iteration for _, layer in torchswat.sparse_layers(model)] == [4, 4]
        for _, layer in torchswat.sparse_layers(model):
            assert same_on_both(layer.selected_weights(0.8)) and same_on_both(layer.weight.detach())
        found.append([p.detach() for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def sharded(layers: bool) -> nn.Sequential:
    """Return a sparse network under FSDP2, as one group of parameters, or with a group for each layer."""
    torch.manual_seed(0)
    model = torchswat.sparsify_(network(), sparsity=0.7, period=3)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for part in ([model[0], model[3]] if layers else []) + [model]:
        fully_shard(part, mesh=mesh)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(10 * step + dist.get_rank())
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=draw)).square().mean().backward()
        optimizer.step()


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def check_fsdp_trains_as_ddp(rank: int) -> None:
    """Sharding changes where weights lie; which of them are kept, and what the optimizer does, is the same."""
    torch.manual_seed(0)
    alone = torchswat.sparsify_(network(), sparsity=0.7)
    train(parallel := DistributedDataParallel(alone), momentum(parallel), range(4))
    for layers in (False, True):
        model = sharded(layers)
        for _, layer in torchswat.sparse_layers(model):
            for selector in layer.sparse.selectors.values():
                selector.period = 1  # DDP sends the thresholds of rank 0 in between, FSDP does not
        train(model, momentum(model), range(4))
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-4, atol=1e-6)


def check_fsdp_resumes(rank: int, folder: Path) -> None:
    """A distributed checkpoint with the sparse state of each process is gone on from bit for bit."""
    for layers in (False, True):
        whole = sharded(layers)
        optimizer, mine = momentum(whole), f"sparse of rank {rank}"
        train(whole, optimizer, range(4))  # thresholds are three iterations old when it is saved

        def state(model: nn.Module, optimizer: torch.optim.Optimizer, mine: str = mine) -> dict:
            weights, moments = get_state_dict(model, optimizer)
            return {"model": weights, "optimizer": moments, mine: torchswat.sparse_state(model)}

        save(state(whole, optimizer), checkpoint_id=folder / str(layers))
        train(whole, optimizer, range(4, 7))
        model = sharded(layers)
        resumed = momentum(model)
        saved = state(model, resumed)
        load(saved, checkpoint_id=folder / str(layers))
        set_state_dict(model, resumed, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        torchswat.load_sparse_state_(model, saved[mine])
        train(model, resumed, range(4, 7))
        for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours.full_tensor(), theirs.full_tensor())
        for name, words in torchswat.sparse_state(whole).items():
            assert torch.equal(words, torchswat.sparse_state(model)[name])


def check_fsdp_gives_a_plain_model(rank: int) -> None:
    """After `prune_` the whole state_dict is that of the plain model, with its zeros."""
    model = sharded(layers=True)
    train(model, momentum(model), range(2))
    torchswat.prune_(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        plain = network()
        plain.load_state_dict(whole)
        assert (plain[3].weight == 0).float().mean() == pytest.approx(0.7, abs=0.02)
    kernels = {layer.kernels for layer in torchswat.summary(model).layers if layer.state == "sparse"}
    assert not any("DTensor" in kernel for kernel in kernels)


def check_what_fsdp_cannot(rank: int) -> None:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = network()
    fully_shard(model[3], mesh=mesh)
    with pytest.raises(
        InvalidValue, match=r"layer '3' was wrapped .* Call sparsify_ on the model before fully_shard"
    ):
        torchswat.sparsify_(model)
    whole = network()
    fully_shard(whole, mesh=mesh)  # the layers keep their classes: both orders work
    train(torchswat.sparsify_(whole, sparsity=0.5), momentum(whole), range(1))
    with pytest.raises(InvalidValue, match=r"cannot be copied .*take a model of the same layers"):
        torchswat.cost(whole, torch.randn(2, 3, 8, 8))


DDP = [
    check_uneven_inputs,
    check_random_masks,
    check_blocks,
    check_chw_is_one_process,
    check_nchw_is_not,
    check_accumulation,
]
FSDP = [
    check_sharded,
    check_fsdp_trains_as_ddp,
    check_fsdp_resumes,
    check_fsdp_gives_a_plain_model,
    check_what_fsdp_cannot,
]


@pytest.mark.parametrize("checks", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_on_two_processes(checks, tmp_path):
    multiprocessing.spawn(_run, (checks, tmp_path), nprocs=PROCESSES)


def test_a_check_that_fails_on_one_process_fails(tmp_path, capfd):
    with pytest.raises(multiprocessing.ProcessRaisedException):
        multiprocessing.spawn(_run, ([check_that_fails], tmp_path), nprocs=PROCESSES)
    assert "in check_that_fails" in capfd.readouterr().err


def check_that_fails(rank: int) -> None:
    assert same_on_both(torch.ones(1)) and not same_on_both(torch.full((1,), rank))
    assert rank == 0
