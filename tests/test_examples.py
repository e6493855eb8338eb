"""Every file of examples/ runs as a user runs it: a process of its own, a few steps, and the loss goes down."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import torchswat

EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
}  # fmt: skip

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)


def run(folder: Path, *command: object, launcher: tuple[str, ...] = (), **environment: str) -> str:
    """Run ``python COMMAND`` in `folder`; return what it prints."""
    package = str(Path(torchswat.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TORCHSWAT_PLAN": "model"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **settings, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(output: str) -> tuple[float, float]:
    """Return the loss at the beginning and at the end, which every example prints."""
    before, after = re.findall(r"loss ([\d.]+) -> ([\d.]+)", output)[-1]
    return float(before), float(after)


def check_learned(output: str) -> None:
    before, after = losses(output)
    assert after < 0.9 * before, output


def percent(output: str, what: str) -> float:
    found = re.search(rf"{what}\D* ([\d.]+) %", output)
    assert found, output
    return float(found[1])


def test_the_loss_that_does_not_go_down_is_noticed():
    with pytest.raises(AssertionError):
        check_learned("loss 2.303 -> 2.301")


def test_every_example_is_listed_short_and_tested():
    names = {file.name for file in EXAMPLES.glob("*.py")}
    listed = re.findall(r"^\| \[`(\w+\.py)`\]", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(names) == sorted(listed) and len(names) >= 10
    for name in names:
        lines = (EXAMPLES / name).read_text().splitlines()
        assert len(lines) <= 66, f"{name} is longer than a screen"
        assert f'"{name}"' in Path(__file__).read_text(), f"no test runs {name}"


def test_plain_loop(tmp_path):
    output = run(tmp_path, EXAMPLES / "plain_loop.py", "--steps", 40)
    check_learned(output)
    network = torchswat.load(tmp_path / "network.safetensors")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert percent(output, "accuracy of the pruned network") > 30


def test_gradient_accumulation(tmp_path):
    output = run(tmp_path, EXAMPLES / "gradient_accumulation.py", "--steps", 30)
    check_learned(output)
    kept = [float(x) for x in re.findall(r"step \d+: .* weights kept ([\d.]+)", output)]
    assert len(kept) == 3 and kept[0] > kept[1] == kept[2] == pytest.approx(0.2, abs=0.001)


def test_accelerate_goes_on_from_its_checkpoint(tmp_path):
    pytest.importorskip("accelerate")
    script = EXAMPLES / "accelerate_loop.py"
    check_learned(run(tmp_path, script, "--steps", 20))
    assert "after 24 steps, weights kept: 0.2" in run(tmp_path, script, "--steps", 4, "--resume")


@needs_gloo
def test_torchrun(tmp_path):
    output = run(tmp_path, EXAMPLES / "torchrun_ddp.py", "--steps", 20, launcher=LAUNCHERS["torchrun"])
    check_learned(output)
    assert "2 processes have the same weights: True" in output


@needs_gloo
@pytest.mark.slow
def test_a_process_that_dies_is_restarted_and_nothing_is_lost(tmp_path):
    """The weights are those of a training without the accident, bit for bit."""
    script, found = EXAMPLES / "torchrun_ddp.py", {}
    # without this variable torch's agent hands the addresses of dead processes to new ones (pytorch issue 135712)
    variable = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    for name, options in {"whole": (), "restarted": ("--die-at", 25)}.items():
        launcher = (*LAUNCHERS["torchrun"], "--max-restarts", "1")
        checkpoint = tmp_path / f"{name}.pt"
        command = (script, "--steps", 30, "--checkpoint", checkpoint, *options)
        output = run(tmp_path, *command, launcher=launcher, **variable)
        assert f"from step {20 if options else 0} on" in output
        found[name] = torch.load(checkpoint)
    assert found["whole"].keys() == found["restarted"].keys()
    assert found["whole"]["losses"] == found["restarted"]["losses"]
    for part in ("model", "sparse"):
        for name, tensor in found["whole"][part].items():
            assert torch.equal(tensor, found["restarted"][part][name]), name


@needs_gloo
@pytest.mark.slow
def test_accelerate_launch_with_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    script, launcher = EXAMPLES / "accelerate_loop.py", LAUNCHERS["accelerate"]
    check_learned(run(tmp_path, script, "--steps", 30, launcher=launcher))
    output = run(tmp_path, script, "--steps", 4, "--resume", launcher=launcher)
    assert "after 34 steps, weights kept: 0.2" in output


@pytest.mark.slow
def test_ema(tmp_path):
    output = run(tmp_path, EXAMPLES / "ema.py", "--steps", 60)
    check_learned(output)
    assert percent(output, "averaged weights, pruned:") > 60


@pytest.mark.slow
def test_finetune(tmp_path):
    output = run(tmp_path, EXAMPLES / "finetune.py", "--steps", 60)
    assert len(re.findall("loss", output)) == 2
    assert percent(output, "fine-tuned and pruned: accuracy") > percent(output, "dense: accuracy") - 5
    assert re.search(r"pruned: .* 7\d\.\d % of the parameters zero", output)


@pytest.mark.slow
def test_timm_style(tmp_path):
    output = run(tmp_path, EXAMPLES / "timm_style.py", "--epochs", 2)
    check_learned(output)
    assert percent(output, "epoch 1: .* accuracy") > 50


@pytest.mark.slow
def test_grad_cam(tmp_path):
    output = run(tmp_path, EXAMPLES / "grad_cam.py", "--steps", 60)
    check_learned(output)
    maps = [line.split(" | ") for line in output.splitlines() if " | " in line]
    assert len(maps) == 8 and all(len(left) == len(right) == 8 for left, right in maps)
    assert any("#" in right for _, right in maps), "no place is hottest"


@pytest.mark.slow
def test_onnx_runtime(tmp_path):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    output = run(tmp_path, EXAMPLES / "onnx_runtime.py", "--steps", 40)
    check_learned(output)
    agreement = re.search(r"outputs agree within ([\d.e-]+)", output)
    assert agreement and float(agreement[1]) < 1e-3


@pytest.mark.slow
def test_trainer_vit(tmp_path):
    transformers = pytest.importorskip("transformers")
    check_learned(run(tmp_path, EXAMPLES / "trainer_vit.py", "--steps", 60))
    plain = transformers.ViTForImageClassification.from_pretrained(tmp_path / "trainer-vit")
    nonzero = {layer.name: layer.nonzero for layer in torchswat.summary(plain).layers}
    attention = [x for name, x in nonzero.items() if "attention" in name and x is not None]
    assert attention and all(x == pytest.approx(0.5, abs=0.01) for x in attention)
    assert nonzero["classifier"] == 1


@pytest.mark.slow
def test_trainer_resnet(tmp_path):
    pytest.importorskip("transformers")
    script = EXAMPLES / "trainer_resnet.py"
    check_learned(run(tmp_path, script, "--steps", 20))
    output = run(tmp_path, script, "--steps", 40, "--resume")
    assert re.search(r"weights kept 0.57\d -> 0.2", output)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_lightning_module(tmp_path):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("no lightning (extra: lightning)")
    script = EXAMPLES / "lightning_module.py"
    run(tmp_path, script, "--steps", 30)
    checkpoint = next(tmp_path.rglob("*step=30.ckpt"))
    output = run(tmp_path, script, "--steps", 40, "--resume", checkpoint)
    assert float(re.search(r"'loss': ([\d.]+)", output)[1]) < 1.5
    assert float(re.search(r"'torchswat/macs_saving': ([\d.]+)", output)[1]) > 3
