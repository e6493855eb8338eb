"""The loop: what it learns, what it writes, how it stops, and that it trains as plain torch does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from torchswat import data, models
from torchswat.errors import InvalidData, InvalidValue, NotFinite, UnknownName
from torchswat.training.build import train_batches
from torchswat.training.checkpoint import Checkpoint, list_checkpoints
from torchswat.training.finish import prune_and_measure
from torchswat.training.loop import Trainer, resume, train
from torchswat.training.recipe import load_recipe
from torchswat.training.run_folder import RunFolder

from .conftest import write_recipe
from .test_resume import reached, results, wait_for

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611", "-m")
# Asked for several GPUs, accelerate's launcher starts several processes, which find that there are none.
ACCELERATE = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
)
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29612", "-m")


def test_dense_training_is_plain_torch_bit_for_bit(tiny, tmp_path):
    """The same steps written out: data order, schedule, momentum and weight decay are what they say."""
    recipe = tiny(sparse={"algorithm": "dense", "sparsity": 0.0, "skip": []})
    train(recipe, tmp_path / "run")

    torch.manual_seed(recipe.seed)
    model = models.create("resnet-digits", num_classes=10, in_channels=1, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    digits = data.load("digits")
    batches = data.Batches(
        digits.train.limit(192),
        32,
        shuffle=True,
        seed=recipe.seed,
        augment=digits.augmentation,
        drop_last=True,
    )
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < 2 else 0.05 * 0.1
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    saved = Checkpoint.load(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_the_demo_learns_to_read_digits_and_can_be_pruned(tmp_path):
    recipe = load_recipe("digits-demo", ["optimizer.epochs=5", "optimizer.milestones=[3]", "threads=1"])
    summary = train(recipe, tmp_path / "run")
    assert summary.best.sparse > 85
    assert summary.best.pruned == summary.best.sparse and summary.last.pruned == summary.last.sparse
    assert 4 < summary.cost["macs"]["dense"] / summary.cost["macs"]["measured"] < 5


def test_what_the_folder_holds(tiny, tmp_path):
    recipe, run = tiny(), tmp_path / "run"
    summary = train(recipe, run)
    assert RunFolder.open(run).recipe() == recipe
    rows = RunFolder.open(run).metrics()
    assert [row.epoch for row in rows] == [1, 2, 3] and [row.step for row in rows] == [6, 12, 18]
    assert [row.learning_rate for row in rows] == pytest.approx([0.05, 0.05, 0.005])
    assert json.loads((run / "summary.json").read_text())["best"]["epoch"] == summary.best.epoch
    assert all(0 < row.data_seconds < row.seconds for row in rows)
    assert summary.best.sparse == max(row.test_accuracy for row in rows)
    assert summary.last.sparse == rows[-1].test_accuracy
    assert (run / "curves.svg").stat().st_size and (run / "curves.png").stat().st_size
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "versions.json").read_text())[0]["torch"] == torch.__version__
    steps = {Checkpoint.load(path).progress.step for path in list_checkpoints(run / "checkpoints")}
    assert steps >= {16, 18} and len(steps) <= 3


def test_a_folder_with_a_run_is_not_overwritten(tiny, tmp_path):
    recipe = tiny(optimizer={"epochs": 1, "milestones": []})
    train(recipe, tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(InvalidValue, match="already holds a run"):
        train(recipe, tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_name_that_does_not_exist_leaves_no_folder_behind(tiny, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        train(tiny(model={"name": "resnet_18"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dense_end_is_told_in_the_final_table(tiny, tmp_path):
    """Pruned, the network of the sparse epochs has zeros and that of the last epoch has none."""
    recipe = tiny(sparse={"dense_from": 2})
    summary = train(recipe, tmp_path / "run")
    assert summary.title == "swat 80%, dense after 2 epochs"
    assert summary.last.dense and summary.last.epoch == 3 and summary.last.pruned == summary.last.sparse
    assert ("  pruned", f"{summary.last.pruned:.2f}% (dense)") in summary.rows()
    assert summary.cost["macs"]["measured"] == summary.cost["macs"]["dense"]
    digits = data.load("digits")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        saved = Checkpoint.load(path)  # the digits are more than the run was trained on
        accuracy, model = prune_and_measure(recipe, digits, saved, lambda model, views: 0.0)
        assert accuracy.dense == (saved.progress.step > 2 * 6)
        assert accuracy.dense == bool((model.layer2[0].conv1.weight != 0).all())


def test_averaged_weights_are_evaluated_beside_the_weights(tiny, tmp_path):
    summary = train(tiny(optimizer={"average": 0.8}), tmp_path / "run")
    rows = RunFolder(tmp_path / "run").metrics()
    assert all(row.average_accuracy is not None for row in rows)
    assert summary.last.average == summary.last.average_pruned == rows[-1].average_accuracy
    assert "  averaged, pruned" in dict(summary.rows())
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith("average_accuracy")


def test_learning_rates_follow_the_steps(tiny, tmp_path, monkeypatch):
    seen = []

    def step(self: Trainer, images, labels) -> None:
        take_step(self, images, labels)
        seen.append(self.optimizer.param_groups[0]["lr"])

    take_step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", step)
    recipe = tiny(optimizer={"schedule": "linear", "warmup": 1 / 3, "milestones": [], "lr": 0.06})
    train(recipe, tmp_path / "run")
    assert seen == pytest.approx(
        [*(0.01 * step for step in range(6)), *(0.005 * step for step in range(12, 0, -1))]
    )
    rows = RunFolder(tmp_path / "run").metrics()
    assert [row.learning_rate for row in rows] == pytest.approx([seen[5], seen[11], seen[17]])


def test_the_fast_recipe_learns(tmp_path):
    """On made-up images, narrower: with Muon, in bfloat16, and what it says of itself."""
    settings = ["data={name: synthetic, batch_size: 32, augment: false, options: {shape: [3, 16, 16]}}"]
    settings += ["model.width=4", "optimizer.epochs=2", "optimizer.first_epochs=1", "precision=bfloat16"]
    settings += ["optimizer.bias_lr=1", "optimizer.head_lr=5", "views=plain", "threads=1"]
    summary = train(load_recipe("cifar-fast", settings), tmp_path / "run")
    assert summary.last.sparse > 45 and not summary.last.dense
    assert summary.last.pruned == pytest.approx(summary.last.sparse, abs=2)


def test_a_learning_rate_that_explodes_names_the_place_and_keeps_the_checkpoint(tiny, tmp_path):
    run = tmp_path / "run"
    recipe = tiny(optimizer={"lr": 1e20, "milestones": []}, checkpoint={"every_steps": 1})
    with pytest.raises(
        NotFinite, match=r"training stopped at epoch 1, step \d+: .*(layer|conv|bn|fc|loss)"
    ) as caught:
        train(recipe, run)
    newest = list_checkpoints(run / "checkpoints")[-1]
    assert str(newest) in str(caught.value)
    assert all(torch.isfinite(tensor).all() for tensor in Checkpoint.load(newest).model.values())


@pytest.mark.parametrize("algorithm", ["dense", "swat"])
def test_a_nan_in_a_weight_names_the_layer(algorithm, tiny, tmp_path):
    trainer = Trainer(tiny(sparse={"algorithm": algorithm, "skip": []}), tmp_path / "run", None)
    trainer.begin()
    weight = trainer.model.get_parameter("layer1.0.conv2.weight")
    weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"layer1\.0\.conv2.*There is no checkpoint yet"):
        trainer.run()


def test_nothing_is_learnt_from_a_step_that_is_not_finite(tiny, tmp_path):
    trainer = Trainer(tiny(sparse={"algorithm": "dense"}), tmp_path / "run", None)
    trainer.begin()
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    images, labels = next(iter(train_batches(trainer.recipe, trainer.data)))
    with pytest.raises(NotFinite, match="the images of the batch"):
        trainer._step(images * float("inf"), labels)
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, before[name])


def test_batch_norm_may_be_left_out_of_weight_decay(tiny, tmp_path):
    for decay_norm, expected in ((True, {0.1}), (False, {0.1, 0.0})):
        recipe = tiny(optimizer={"weight_decay": 0.1, "decay_norm": decay_norm})
        trainer = Trainer(recipe, tmp_path / str(decay_norm), None)
        decays = {
            id(parameter): group["weight_decay"]
            for group in trainer.optimizer.param_groups
            for parameter in group["params"]
        }
        assert len(decays) == len(list(trainer.model.parameters()))
        of_norm = {
            decays[id(parameter)] for name, parameter in trainer.model.named_parameters() if "bn" in name
        }
        assert set(decays.values()) == expected and of_norm == {0.1 if decay_norm else 0.0}


def test_sparsity_by_layer_and_rising(tiny, tmp_path):
    recipe = tiny(sparse={"sparsity": {"layer1.*": 0.5, "layer2.*": 0.9}, "ramp": 12, "skip": []})
    trainer = Trainer(recipe, tmp_path, None)
    sparse = {name: layer.sparse for name, layer in trainer.model.named_modules() if hasattr(layer, "sparse")}
    assert set(sparse) == {name for name in sparse if name.startswith("layer")}
    one = sparse["layer2.0.conv1"]
    assert one.sparsity_now(0) == 0 and 0 < one.sparsity_now(6) < 0.9 == one.sparsity_now(12)
    trainer.begin()
    summary = trainer.run()
    assert summary.title == "swat by layer" and summary.last.pruned == summary.last.sparse


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(tiny(), run, None)
    trainer.begin()
    trainer.events = None
    wide = Trainer(tiny(model={"width": 16}), tmp_path / "wide", None)
    wide.begin()
    train(tiny(model={"width": 16}, optimizer={"epochs": 1, "milestones": []}), tmp_path / "other")
    (run / "checkpoints" / "step-000000006.safetensors").write_bytes(
        (tmp_path / "other" / "checkpoints" / "step-000000006.safetensors").read_bytes()
    )
    with pytest.raises(InvalidData, match=r"differs from the recipe in the checkpoint in model\.width"):
        resume(run)


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tiny, start, tmp_path):
    """Two real processes share the batches, write one folder, and go on bit for bit."""
    recipe = tiny(optimizer={"epochs": 5})
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    file = write_recipe(recipe, tmp_path)
    options = {"launcher": TORCHRUN, "start_new_session": True}
    process = start("train", "--recipe", file, "--output", killed, **options)
    wait_for(process, reached(killed, step=8))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    for arguments in (("train", "--resume", killed), ("train", "--recipe", file, "--output", whole)):
        process = start(*arguments, **options)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert output.count("test accuracy, last epoch") == 1
    assert results(killed) == results(whole)
    assert_all_images_counted(whole)
    with pytest.raises(InvalidValue, match="made by 2 process"):
        (whole / "summary.json").unlink()
        resume(whole)


@pytest.mark.slow
def test_two_processes_by_accelerate_launch(tiny, start, tmp_path):
    file = write_recipe(tiny(), tmp_path)
    process = start("train", "--recipe", file, "--output", tmp_path / "run", launcher=ACCELERATE)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.count("test accuracy, last epoch") == 1
    assert_all_images_counted(tmp_path / "run")


def assert_all_images_counted(run: Path) -> None:
    """Accuracies are shares of all 192 training and 100 test images, not of one process's half."""
    assert json.loads((run / "versions.json").read_text())[0]["processes"] == 2
    for row in RunFolder.open(run).metrics():
        assert row.train_accuracy * 1.92 == pytest.approx(round(row.train_accuracy * 1.92))
        assert row.test_accuracy == pytest.approx(round(row.test_accuracy))
