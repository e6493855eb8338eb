"""Two real processes: counters and masks are the same on both, and sharded weights are pruned."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import torchswat
from torchswat.errors import InvalidValue
from torchswat.schedules import Cubic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
PROCESSES = 2


def on_two_processes(check: Callable[[int], None], folder: Path) -> None:
    multiprocessing.spawn(_run, (check, str(folder / "rendezvous")), nprocs=PROCESSES)


def _run(rank: int, check: Callable[[int], None], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=PROCESSES)
    try:
        check(rank)
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


def check_sharded(rank: int) -> None:
    """Under FSDP2 `prune_` sets the entries to zero that it sets in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

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


@pytest.mark.parametrize("check", [check_uneven_inputs, check_random_masks, check_sharded])
def test_on_two_processes(check, tmp_path):
    on_two_processes(check, tmp_path)
