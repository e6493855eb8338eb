"""The files for clusters, as far as they can be checked without one: syntax, fields, and what they run on a machine."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

import torchswat

EXAMPLES = Path(__file__).parents[1] / "examples"
CLUSTERS = EXAMPLES / "clusters"
needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)

# The fields of the custom resource kubeflow.org/v1 PyTorchJob that a user writes, and those of a pod that stand in
# the file: a mapping is a mapping of fields, a list a list of such, a type a value.
POD = {
    "containers": [
        {
            "name": str, "image": str, "command": [str], "env": [{"name": str, "value": str}],
            "resources": {"limits": {"cpu": str, "memory": str}}, "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [
        {"name": str, "configMap": {"name": str}, "persistentVolumeClaim": {"claimName": str}},
    ],
}  # fmt: skip
REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"metadata": dict, "spec": POD}}
PYTORCH_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str},
    "spec": {
        "nprocPerNode": str,
        "elasticPolicy": {
            "rdzvBackend": str, "rdzvHost": str, "rdzvPort": int, "rdzvId": str, "minReplicas": int,
            "maxReplicas": int, "maxRestarts": int, "standalone": bool,
        },
        "runPolicy": {
            "cleanPodPolicy": str, "backoffLimit": int, "activeDeadlineSeconds": int,
            "ttlSecondsAfterFinished": int, "suspend": bool,
        },
        "pytorchReplicaSpecs": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}  # fmt: skip


def wrong_fields(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Yield where `value` has a field that `schema` does not, or a value of another type."""
    if isinstance(schema, dict) and isinstance(value, dict):
        for name, part in value.items():
            if name in schema:
                yield from wrong_fields(part, schema[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is unknown"
    elif isinstance(schema, list) and isinstance(value, list):
        for index, part in enumerate(value):
            yield from wrong_fields(part, schema[0], f"{where}[{index}]")
    elif not isinstance(schema, type) or type(value) is not schema:
        yield f"{where} is {value!r}"


def job() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "pytorchjob.yaml").read_text())


def environment(**more: str) -> dict[str, str]:
    package = str(Path(torchswat.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def executable(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def test_the_pytorch_job_has_fields_of_the_resource():
    found = job()
    assert list(wrong_fields(found, PYTORCH_JOB)) == []
    assert (found["apiVersion"], found["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = found["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert found["spec"]["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch", "the operator looks for a container of this name"
    assert [each["name"] for each in container["volumeMounts"]] == [each["name"] for each in pod["volumes"]]


def test_a_field_that_is_wrong_is_found():
    wrong = job()
    wrong["spec"]["nprocPerNode"] = 2
    wrong["spec"]["pytorchReplicaSpecs"]["Worker"]["replica"] = 2
    assert list(wrong_fields(wrong, PYTORCH_JOB)) == [
        ".spec.nprocPerNode is 2",
        ".spec.pytorchReplicaSpecs.Worker.replica is unknown",
    ]


@needs_gloo
@pytest.mark.slow
def test_the_command_of_the_pytorch_job_runs_here(tmp_path):
    """In the variables that the operator would set, for one pod; its mounts are folders."""
    (container,) = job()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    mounts = {"/script": str(EXAMPLES), "/checkpoints": str(tmp_path)}
    assert set(mounts) == {each["mountPath"] for each in container["volumeMounts"]}
    program, *arguments = container["command"]
    assert program == "torchrun"
    for mount, folder in mounts.items():
        arguments = [argument.replace(mount, folder) for argument in arguments]
    operator = {
        "PET_RDZV_BACKEND": job()["spec"]["elasticPolicy"]["rdzvBackend"],
        "PET_RDZV_ENDPOINT": f"localhost:{free_port()}",
        "PET_NNODES": "1:1",
        "PET_NPROC_PER_NODE": job()["spec"]["nprocPerNode"],
        "PET_MAX_RESTARTS": str(job()["spec"]["elasticPolicy"]["maxRestarts"]),
    }
    own = {each["name"]: each["value"] for each in container["env"]}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env=environment(**{**own, **operator, "OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes have the same weights: True" in done.stdout
    assert torch.load(tmp_path / "ddp.pt")["step"] == 60


def test_bash_reads_the_batch_script():
    subprocess.run(["bash", "-n", CLUSTERS / "slurm.sbatch"], check=True)
    options = [line for line in (CLUSTERS / "slurm.sbatch").read_text().splitlines() if "SBATCH" in line]
    assert "#SBATCH --ntasks-per-node=1" in options, "one torchrun a machine starts the processes"


@needs_gloo
@pytest.mark.slow
def test_the_batch_script_runs_here(tmp_path):
    """`srun` and `scontrol` are stand-ins for one machine: the script and torchrun are real."""
    executable(tmp_path / "srun", 'exec "$@"')
    executable(tmp_path / "scontrol", "echo localhost")
    executable(tmp_path / "torchrun", f'exec "{sys.executable}" -m torch.distributed.run "$@"')
    slurm = {
        "SLURM_SUBMIT_DIR": str(CLUSTERS), "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1",
        "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "7", "PORT": free_port(), "STEPS": "20",
        "CHECKPOINT": str(tmp_path / "ddp.pt"), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", CLUSTERS / "slurm.sbatch"], env=environment(**slurm), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes have the same weights: True" in done.stdout
    assert torch.load(tmp_path / "ddp.pt")["step"] == 20


def test_ray_is_imported_where_it_is_needed():
    """The file itself, and its training function, need no Ray."""
    tree = ast.parse((CLUSTERS / "ray_train.py").read_text())
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "import torchswat" in imported and not any("ray" in line for line in imported)


@pytest.mark.slow
def test_the_training_function_of_ray_runs_without_it(tmp_path):
    """It reports a loss that goes down, and goes on from a folder that it reported."""
    code = """
import runpy, shutil, sys, json
script, folder = sys.argv[1:]
train = runpy.run_path(script)["train"]
def report(metrics, kept):
    shutil.copytree(kept, f"{folder}/{metrics['step']}", dirs_exist_ok=True)
    print(json.dumps(metrics))
train({"steps": 30}, report)
print("again")
train({"steps": 30}, report, f"{folder}/19")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, CLUSTERS / "ray_train.py", tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    whole, again = (part.strip().splitlines() for part in done.stdout.split("again"))
    assert len(whole) == 4 and whole[-1] == again[-1], "the resumed training is another one"
    losses = [yaml.safe_load(line)["loss"] for line in whole]
    assert losses[-1] < 0.9 * losses[0]
