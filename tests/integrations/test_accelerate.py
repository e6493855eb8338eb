"""Accelerate's own checkpoints: a training goes on bit for bit, and prepared optimizers count steps."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchswat
from torchswat.schedules import Cubic

pytest.importorskip("accelerate", reason="no accelerate (extra: train)")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

STEPS_BEFORE, STEPS = 4, 8


@pytest.fixture(autouse=True)
def states():
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class SparseState:
    """What `register_for_checkpointing` takes, as on the page on Accelerate."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return torchswat.sparse_state(self.model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torchswat.load_sparse_state_(self.model, state)


def train(
    folder: Path, settings: dict[str, Any], until: int, resume: Path | None = None
) -> dict[str, Tensor]:
    """Train with new objects to a step; return weights, optimizer, sparse state and outputs."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=2, mixed_precision=settings.get("precision")
    )
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 5))
    )
    torchswat.sparsify_(model, **settings["sparse"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    torchswat.count_steps_(model, optimizer)
    if settings.get("registered"):
        accelerator.register_for_checkpointing(SparseState(model))
    if resume is not None:
        accelerator.load_state(str(resume))
    for step in range(0 if resume is None else STEPS_BEFORE, until):
        for half in range(2):
            draw = torch.Generator().manual_seed(2 * step + half)
            images, labels = torch.randn(8, 3, 8, 8, generator=draw), torch.randint(5, (8,), generator=draw)
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(images), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(str(folder))
    assert {layer.sparse.iteration for _, layer in torchswat.sparse_layers(model)} == {until}
    found = {**model.state_dict(), **torchswat.sparse_state(model)}
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": x for name, x in state.items()}
    with torch.no_grad():
        return {**found, "output": model.eval()(images)}


@pytest.mark.parametrize(
    "settings",
    [
        {"sparse": {"sparsity": Cubic(0.8, 6), "period": 3, "save_state": True}},
        {"sparse": {"sparsity": 0.6, "scope": "chw", "period": 3}, "registered": True},
        {"sparse": {"sparsity": Cubic(0.8, 6), "save_state": True}, "precision": "bf16"},
    ],
    ids=["in the state_dict", "registered", "bfloat16"],
)
def test_a_resumed_training_is_the_uninterrupted_one(settings, tmp_path):
    whole = train(tmp_path / "whole", settings, STEPS)
    train(tmp_path / "part", settings, STEPS_BEFORE)
    resumed = train(tmp_path / "rest", settings, STEPS, tmp_path / "part")
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []


def test_without_the_saved_state_the_resume_is_another_training(tmp_path):
    """The comparison above fails where it should."""
    settings = {"sparse": {"sparsity": 0.6, "scope": "chw", "period": 3}}
    whole = train(tmp_path / "whole", settings, STEPS)
    train(tmp_path / "part", settings, STEPS_BEFORE)
    with pytest.raises(AssertionError):  # the iterations began anew
        train(tmp_path / "rest", settings, STEPS, tmp_path / "part")
    assert whole["output"].isfinite().all()
