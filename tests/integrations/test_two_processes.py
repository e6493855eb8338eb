"""Both callbacks on two real processes: the same masks on both, one checkpoint for both, every number logged once."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import csv
import gc
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, by DDP, it would hold the process group
from torch import Tensor, multiprocessing, nn

import torchswat
from torchswat.schedules import Cubic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
PROCESSES = 2


def _run(rank: int, port: int, check: Callable[[Path], None], folder: Path) -> None:
    """Run a check in one of the processes, with the variables that torchrun sets."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    variables |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": 0,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    try:
        check(folder)
        dist.barrier()
    except Exception:
        traceback.print_exc()  # the other process, which loses its peer, may be the one that is reported
        raise
    finally:
        gc.collect()  # the trainers, which hold the process group, whose threads must end before Python does
        dist.destroy_process_group()


def on_two_processes(check: Callable[[Path], None], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    multiprocessing.spawn(_run, (port, check, folder), nprocs=PROCESSES)


def of_both(value: Any) -> list[Any]:
    """Return the `value` of each process."""
    found: list[Any] = [None] * PROCESSES
    dist.all_gather_object(found, value)
    return found


def assert_the_same_on_both(model: nn.Module, found: dict[str, Tensor]) -> None:
    """Masks, iterations, weights and moments are equal; statistics of a process's own last batch are left out."""
    trained = (key for key in found if key.startswith(("model", "optimizer")) and "running" not in key)
    same = {key: found[key] for key in trained}
    for name, layer in torchswat.sparse_layers(model):
        same[f"mask {name}"] = layer.selected_weights(sparsity=0.5)
        same[f"iteration {name}"] = found[f"sparse {name}.state"][0]
    one, other = of_both(same)
    assert one.keys() == other.keys() and len(one) > 10
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


SETTINGS = {
    "schedule": {"sparsity": Cubic(0.8, 7), "period": 3},
    "random masks": {"algorithm": "random", "sparsity": 0.5},
}


def lightning_goes_on(folder: Path) -> None:
    from test_lightning import STEPS, STEPS_BEFORE, LightningCallback, everything, fit

    options = {"devices": PROCESSES, "strategy": "ddp"}
    for name, settings in SETTINGS.items():
        at = folder / name
        trainer = fit(at / "whole", LightningCallback(**settings), STEPS, **options)
        whole = everything(trainer)
        assert_the_same_on_both(trainer.lightning_module, whole)
        fit(at / "part", LightningCallback(**settings), STEPS_BEFORE, **options)
        saved = at / "part" / "last.ckpt"
        resumed = everything(fit(at / "rest", LightningCallback(**settings), STEPS, saved, **options))
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def lightning_logs_once(folder: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger
    from test_lightning import STEPS, LightningCallback, fit

    callback = LightningCallback(sparsity=0.75, example=torch.zeros(2, 3, 8, 8))
    logger = CSVLogger(folder, "csv")
    trainer = fit(folder, callback, STEPS, logger=logger, devices=PROCESSES, strategy="ddp")
    dist.barrier()
    (file,) = folder.rglob("metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["torchswat/weight_density"]]
    assert [int(row["step"]) for row in rows] == list(range(1, trainer.global_step, 2))
    assert all(float(row["torchswat/macs_saving"]) > 2 for row in rows)


def trainer_goes_on(folder: Path) -> None:
    from test_transformers import STEPS, STEPS_BEFORE, everything, fit

    options = {"ddp_backend": "gloo"}
    for name, settings in SETTINGS.items():
        at = folder / name
        trainer = fit(at / "whole", settings, **options)
        whole = everything(trainer)
        assert_the_same_on_both(trainer.model, whole)
        fit(at / "part", settings, STEPS_BEFORE, **options)
        saved = at / "part" / f"checkpoint-{STEPS_BEFORE}"
        resumed = everything(fit(at / "rest", settings, STEPS, saved, **options))
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def trainer_logs_once(folder: Path) -> None:
    from test_transformers import fit

    trainer = fit(
        folder, {"sparsity": 0.75, "example": {"images": torch.zeros(2, 3, 8, 8)}}, ddp_backend="gloo"
    )
    logged = [each["step"] for each in trainer.state.log_history if "torchswat/macs_saving" in each]
    assert of_both(logged) == [[2, 4, 6, 8], []]


@pytest.mark.parametrize("check", [trainer_goes_on, trainer_logs_once])
def test_trainer(check, tmp_path):
    pytest.importorskip("transformers", reason="no transformers (extra: transformers)")
    on_two_processes(check, tmp_path)


@pytest.mark.parametrize("check", [lightning_goes_on, lightning_logs_once])
def test_lightning(check, tmp_path):
    pytest.importorskip("lightning", reason="no lightning (extra: lightning)")
    on_two_processes(check, tmp_path)
