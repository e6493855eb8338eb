"""`TrainerCallback` under Hugging Face's own Trainer: steps counted, resumes bit for bit, numbers logged."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchswat
from torchswat.errors import InvalidValue, UnknownName
from torchswat.integrations import TrainerCallback
from torchswat.schedules import Cubic, Steps

transformers = pytest.importorskip("transformers", reason="no transformers (extra: transformers)")

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
STEPS_BEFORE, STEPS = 5, 9


class Network(nn.Module):
    """Any module that returns a loss is enough for Trainer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.2), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 5)),
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(images)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {"images": torch.randn(3, 8, 8, generator=draw), "labels": torch.randint(5, (), generator=draw)}
        for _ in range(40)
    ]


def make_trainer(folder: Path, steps: int = STEPS, model: nn.Module | None = None, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 0.01, "save_steps": STEPS_BEFORE,
            "logging_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "lr_scheduler_type": "constant", "seed": 5, **options,
        },
    )  # fmt: skip
    return transformers.Trainer(model or Network(), arguments, train_dataset=examples())


def fit(
    folder: Path, settings: dict[str, Any], steps: int = STEPS, resume: Path | None = None, **options: Any
) -> Any:
    trainer = make_trainer(folder, steps, **options)
    trainer.add_callback(TrainerCallback(trainer, **settings))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def everything(trainer: Any) -> dict[str, Tensor]:
    """Return weights, buffers, optimizer, sparse state and outputs by name."""
    found = {f"model {name}": tensor for name, tensor in trainer.model.state_dict().items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": x for name, x in state.items()}
    found |= {f"sparse {name}": tensor for name, tensor in torchswat.sparse_state(trainer.model).items()}
    with torch.no_grad():
        images = torch.stack([one["images"] for one in examples()])
        found["output"] = trainer.model.eval()(images)["logits"]
    return found


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "schedule": ({"sparsity": Cubic(0.8, 7), "period": 3}, {}),
    "rows": ({"sparsity": 0.6, "scope": "chw", "period": 3}, {}),
    "random masks": ({"algorithm": "random", "sparsity": 0.5}, {}),
    "accumulation and clipping": (
        {"sparsity": Cubic(0.8, 7), "period": 3},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
    ),
    "bfloat16": ({"sparsity": Cubic(0.8, 7), "skip": ("first",)}, {"bf16": True}),
    "callbacks restored": (
        {"sparsity": Cubic(0.8, 7), "period": 3},
        {"restore_callback_states_from_checkpoint": True},
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "schedule" else pytest.mark.slow) for name in SETTINGS],
)
def test_a_resumed_training_is_the_uninterrupted_one(name, tmp_path):
    settings, options = SETTINGS[name]
    whole = everything(fit(tmp_path / "whole", settings, **options))
    fit(tmp_path / "part", settings, STEPS_BEFORE, **options)
    saved = tmp_path / "part" / f"checkpoint-{STEPS_BEFORE}"
    assert differing(whole, everything(fit(tmp_path / "rest", settings, STEPS, saved, **options))) == []


@pytest.mark.slow
def test_without_the_saved_state_the_resume_is_another_training(tmp_path):
    """The comparison above fails where it should."""
    settings = {"sparsity": Cubic(0.8, 7), "period": 3}
    whole = everything(fit(tmp_path / "whole", settings))
    fit(tmp_path / "part", settings, STEPS_BEFORE)
    saved = tmp_path / "part" / f"checkpoint-{STEPS_BEFORE}"
    state = json.loads((saved / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["SparseState"]
    (saved / "trainer_state.json").write_text(json.dumps(state))
    resumed = everything(fit(tmp_path / "rest", settings, STEPS, saved))
    assert "model network.0.weight" in differing(whole, resumed)


def test_files_of_weights_are_those_of_the_plain_model(tmp_path):
    from safetensors.torch import load_file

    fit(tmp_path, {"sparsity": 0.8})
    saved = load_file(tmp_path / f"checkpoint-{STEPS_BEFORE}" / "model.safetensors")
    assert sorted(saved) == sorted(Network().state_dict())


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_schedules_count_optimizer_steps(accumulate, tmp_path):
    settings = {"sparsity": Steps(((0, 0.0), (4, 0.5)))}
    trainer = fit(tmp_path, settings, gradient_accumulation_steps=accumulate)
    assert {layer.sparse.iteration for _, layer in torchswat.sparse_layers(trainer.model)} == {STEPS}
    densities = {
        entry["step"]: entry["torchswat/weight_density"]
        for entry in trainer.state.log_history
        if "torchswat/weight_density" in entry
    }
    assert densities == {2: 1, 4: 1, 6: 0.5, 8: 0.5}
    trainer.train()  # a second training counts from where the first one ended, and once a step
    assert {layer.sparse.iteration for _, layer in torchswat.sparse_layers(trainer.model)} == {2 * STEPS}


@pytest.mark.slow
def test_a_model_made_anew_is_made_sparse(tmp_path):
    arguments = make_trainer(tmp_path).args
    trainer = transformers.Trainer(args=arguments, model_init=Network, train_dataset=examples())
    trainer.add_callback(TrainerCallback(trainer, sparsity=0.5))
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert {layer.sparse.iteration for _, layer in torchswat.sparse_layers(trainer.model)} == {STEPS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*logging_dir.*:FutureWarning")
def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    example = {"images": torch.zeros(2, 3, 8, 8)}
    settings = {"sparsity": 0.75, "example": example, "log_layers": True}
    trainer = fit(tmp_path, settings, report_to=["tensorboard"])
    (events,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    board = EventAccumulator(str(events)).Reload()
    densities = board.Scalars("train/torchswat/weight_density/network.5")
    assert [event.step for event in densities] == [2, 4, 6, 8]
    assert all(event.value == pytest.approx(0.25, abs=0.001) for event in densities)
    assert [event.step for event in board.Scalars("train/loss")] == [2, 4, 6, 8]
    counted = torchswat.cost(trainer.model, example).total("macs").saving
    assert board.Scalars("train/torchswat/macs_saving")[-1].value == pytest.approx(counted, rel=0.05)


@pytest.mark.slow
def test_a_sparse_model_is_left_as_it_is_and_other_settings_are_refused(tmp_path):
    model = Network()
    torchswat.fuse_(torchswat.sparsify_(model, sparsity=0.5))
    trainer = make_trainer(tmp_path, 3, model)
    trainer.add_callback(TrainerCallback(trainer))
    trainer.train()
    assert {layer.sparse.iteration for _, layer in torchswat.sparse_layers(model)} == {3}
    with pytest.raises(InvalidValue, match="of other settings than the callback's"):
        TrainerCallback(trainer, sparsity=0.8)
    with pytest.raises(UnknownName, match="did you mean 'scope'"):
        TrainerCallback(trainer, scop="chw")


@pytest.mark.slow
def test_a_dense_baseline_needs_no_other_script(tmp_path):
    trainer = fit(tmp_path, {"algorithm": "dense"})
    assert not any("torchswat" in name for entry in trainer.state.log_history for name in entry)


def test_training_goes_on_sparsely_from_a_dense_checkpoint(tmp_path):
    dense = make_trainer(tmp_path / "dense", STEPS_BEFORE)
    dense.train()
    saved = tmp_path / "dense" / f"checkpoint-{STEPS_BEFORE}"
    trainer = fit(tmp_path / "sparse", {"sparsity": 0.5}, STEPS, saved)
    iterations = {layer.sparse.iteration for _, layer in torchswat.sparse_layers(trainer.model)}
    assert iterations == {STEPS - STEPS_BEFORE}
