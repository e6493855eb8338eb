"""`LightningCallback` under Lightning's own Trainer: steps counted, resumes bit for bit, numbers logged."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchswat
from torchswat.errors import InvalidValue, UnknownName
from torchswat.integrations import LightningCallback
from torchswat.schedules import Cubic, Steps

pytest.importorskip("lightning", reason="no lightning (extra: lightning)")
import lightning.pytorch as lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
]
BATCHES, STEPS_BEFORE, STEPS = 4, 8, 16  # two epochs, and four


class Network(lightning.LightningModule):
    """Batch norm, dropout (which draws), a layer that stays dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.2), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 5)),
        )
        self.example_input_array = torch.zeros(2, 3, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader() -> DataLoader:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(BATCHES * 8, 3, 8, 8, generator=draw)
    return DataLoader(TensorDataset(images, torch.randint(5, (len(images),), generator=draw)), 8)


def fit(
    folder: Path, callback: LightningCallback, steps: int, resume: Path | None = None, **options: Any
) -> lightning.Trainer:
    """Train to `steps` passes with new objects; the checkpoint is ``folder/last.ckpt``."""
    options = {"logger": False, "accumulate_grad_batches": 1, **options}
    saves = ModelCheckpoint(folder, filename="last", save_top_k=1, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        max_epochs=steps // BATCHES,
        callbacks=[callback, saves],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        **options,
    )
    module = Network()
    torch.manual_seed(7)
    if resume is not None:  # Lightning leaves random states to the user
        torch.set_rng_state(torch.load(resume.with_name(f"{trainer.global_rank}.rng")))
    trainer.fit(module, loader(), ckpt_path=resume)
    torch.save(torch.get_rng_state(), folder / f"{trainer.global_rank}.rng")
    return trainer


def everything(trainer: lightning.Trainer) -> dict[str, Tensor]:
    """Return weights, buffers, optimizer, sparse state and outputs by name."""
    module = trainer.lightning_module
    found = {f"model {name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": x for name, x in state.items() if isinstance(x, Tensor)}
    found |= {f"sparse {name}": tensor for name, tensor in torchswat.sparse_state(module).items()}
    with torch.no_grad():
        found["output"] = module.eval()(loader().dataset.tensors[0])
    return found


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "schedule": ({"sparsity": Cubic(0.8, 12), "period": 3}, {}),
    "rows": ({"sparsity": 0.6, "scope": "chw", "period": 3}, {}),
    "random masks": ({"algorithm": "random", "sparsity": 0.5}, {}),
    "accumulation and clipping": (
        {"sparsity": Cubic(0.8, 6), "period": 3},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    ),
    "bfloat16": ({"sparsity": Cubic(0.8, 12), "skip": ("first",)}, {"precision": "bf16-mixed"}),
    "in the state_dict": ({"sparsity": Cubic(0.8, 12), "save_state": True}, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_training_is_the_uninterrupted_one(name, tmp_path):
    settings, options = SETTINGS[name]
    whole = everything(fit(tmp_path / "whole", LightningCallback(**settings), STEPS, **options))
    fit(tmp_path / "part", LightningCallback(**settings), STEPS_BEFORE, **options)
    saved = tmp_path / "part" / "last.ckpt"
    resumed = everything(fit(tmp_path / "rest", LightningCallback(**settings), STEPS, saved, **options))
    assert differing(whole, resumed) == []


def test_without_the_saved_state_the_resume_is_another_training(tmp_path):
    """The comparison above fails where it should."""
    settings = {"sparsity": Cubic(0.8, 12), "period": 3}
    whole = everything(fit(tmp_path / "whole", LightningCallback(**settings), STEPS))
    fit(tmp_path / "part", LightningCallback(**settings), STEPS_BEFORE)
    saved = tmp_path / "part" / "last.ckpt"
    checkpoint = torch.load(saved, weights_only=False)
    del checkpoint["torchswat_sparse_state"]
    torch.save(checkpoint, saved)
    resumed = everything(fit(tmp_path / "rest", LightningCallback(**settings), STEPS, saved))
    assert "model network.0.weight" in differing(whole, resumed)


def test_a_checkpoint_of_a_dense_training_is_where_a_sparse_one_begins(tmp_path):
    fit(tmp_path / "dense", LightningCallback("dense"), STEPS_BEFORE)
    callback = LightningCallback(sparsity=0.8)
    trainer = fit(tmp_path / "sparse", callback, STEPS, tmp_path / "dense" / "last.ckpt")
    layers = [layer for _, layer in torchswat.sparse_layers(trainer.lightning_module)]
    assert [layer.sparse.iteration for layer in layers] == [STEPS - STEPS_BEFORE] * 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedules_count_optimizer_steps(accumulate, tmp_path):
    callback = LightningCallback(sparsity=Steps(((0, 0.0), (5, 0.5))))
    trainer = fit(tmp_path, callback, STEPS, accumulate_grad_batches=accumulate)
    for _, layer in torchswat.sparse_layers(trainer.lightning_module):
        assert layer.sparse.iteration == trainer.global_step == STEPS // accumulate
    before = torchswat.sparse_state(trainer.lightning_module)
    trainer.optimizers[0].step()
    assert torchswat.sparse_state(trainer.lightning_module).keys() == before.keys()
    assert layer.sparse.iteration == STEPS // accumulate, "the callback still counts after the training"


def test_the_loggers_get_the_numbers(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    trainer = fit(
        tmp_path,
        LightningCallback(sparsity=0.75, log_layers=True, example=torch.zeros(2, 3, 8, 8)),
        STEPS,
        logger=loggers,
    )
    with Path(loggers[0].log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS, 2))
    for row in rows:
        assert float(row["torchswat/sparsity"]) == 0.75
        assert float(row["torchswat/weight_density"]) == pytest.approx(0.25, abs=0.01)
        assert float(row["torchswat/weight_threshold/network.5"]) > 0
        assert float(row["torchswat/macs_saving"]) > 2 and float(row["loss"]) > 0
    last = dict(torchswat.sparse_layers(trainer.lightning_module))["network.0"].sparse.selectors["activation"]
    assert float(rows[-1]["torchswat/activation_density/network.0"]) == pytest.approx(last.density)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(loggers[1].log_dir).Reload()
    assert len(board.Scalars("torchswat/activation_threshold")) == STEPS // 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb")
def test_weights_and_biases_gets_the_numbers_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="no wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="test")
    fit(tmp_path, LightningCallback(sparsity=0.75), BATCHES, logger=logger)
    assert logger.experiment.summary["torchswat/weight_density"] == pytest.approx(0.25, abs=0.01)
    logger.experiment.finish()
    assert list(tmp_path.rglob("*.wandb"))


def test_a_model_that_its_owner_made_sparse_is_left_as_it_is(tmp_path):
    class Owned(Network):
        def __init__(self) -> None:
            super().__init__()
            torchswat.fuse_(torchswat.sparsify_(self.network, sparsity=0.5))

    trainer = lightning.Trainer(
        max_steps=3, callbacks=[LightningCallback()], logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Owned()
    trainer.fit(module, loader())
    assert module.network[0].sparse.iteration == 3 and module.network[0].sparse.sparsity == 0.5
    with pytest.raises(InvalidValue, match="of other settings than the callback's"):
        LightningCallback(sparsity=0.8).setup(trainer, Owned(), "fit")


def test_what_cannot_be_is_said_before_the_training():
    with pytest.raises(UnknownName, match="did you mean 'period'"):
        LightningCallback(periode=3)
    with pytest.raises(InvalidValue, match="no Conv2d or Linear layer"):
        LightningCallback(sparsity=0.5).setup(None, nn.ReLU(), "fit")
