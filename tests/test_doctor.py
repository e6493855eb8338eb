"""``torchswat doctor``: facts of this machine, and what is concluded from the facts of others."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchswat import doctor
from torchswat.engine import info, plan

HEALTHY = {
    "processor": {
        "name": "X",
        "instruction set": "avx512",
        "flags": [],
        "cores": 2,
        "cores allowed": 2,
        "load": 0.1,
    },
    "torch": {
        **{"version": "2", "CPU capability": "AVX512", "BLAS": "mkl", "oneDNN": True, "OpenMP": True},
        **{"threads": 2, "CUDA build": None, "GPU": None},
    },
    "engine": {
        **{"engine": "native", "reason": "compiled, avx512", "isa": "avx512", "openmp": True, "threads": 2},
        **{"available": ["avx512", "avx2", "plain"], "OpenMP runtimes loaded": ["libgomp.so.1"]},
    },
    "allocator": {"C library": "glibc 2.36", "replaced by": ["jemalloc"], "can be tuned": False},
    "plan": {
        **{
            "TORCHSWAT_PLAN": None,
            "file": "plan.json",
            "changed": "2026-01-02 03:04",
            "this machine": "X | avx512",
        },
        **{"timings of this machine": 3, "timings of others": {}},
    },
    "data": {"folder": "data", "cifar10": "found"},
    "libraries": {"export": {"onnx": "1.17"}},
    "environment": {},
}


def found(**changes: dict) -> list[doctor.Finding]:
    """The findings on a machine that is healthy but for these values."""
    facts = copy.deepcopy(HEALTHY)
    for section, values in changes.items():
        facts[section].update(values)
    return list(doctor.findings(facts))


def test_nothing_is_found_where_nothing_is_wrong():
    assert found() == []


@pytest.mark.parametrize(
    "changes, problem, remedy",
    [
        (
            {"engine": {"engine": "reference", "reason": "No module"}},
            "was not built (No module)",
            "C++17 compiler",
        ),
        (
            {"engine": {"engine": "reference"}, "environment": {"TORCHSWAT_ENGINE": "reference"}},
            "TORCHSWAT_ENGINE=reference",
            "Unset",
        ),
        ({"engine": {"engine": None, "reason": "no ISA"}}, "cannot run: no ISA", "correct that variable"),
        ({"engine": {"openmp": False}}, "without OpenMP: it runs on one thread, torch on 2", "libomp"),
        (
            {"engine": {"isa": "avx2"}, "environment": {"TORCHSWAT_ISA": "avx2"}},
            "TORCHSWAT_ISA=avx2: the engine runs avx2, and avx512 is available",
            "Unset",
        ),
        (
            {"engine": {"isa": "avx2", "available": ["avx2", "plain"]}},
            "AVX2 and no AVX-512",
            "results for AVX2",
        ),
        (
            {"engine": {"isa": "plain", "available": ["plain"]}},
            "without avx512, which the processor",
            "sources",
        ),
        (
            {"engine": {"OpenMP runtimes loaded": ["libgomp.so.1", "libomp.so"]}},
            "Several OpenMP",
            "same source",
        ),
        ({"torch": {"CPU capability": "DEFAULT"}}, "no vector instructions", "ATEN_CPU_CAPABILITY"),
        ({"torch": {"oneDNN": False}}, "without oneDNN", "wheel"),
        ({"torch": {"OpenMP": False}}, "torch was built without OpenMP", "wheel"),
        ({"torch": {"CUDA build": "12.9"}}, "CUDA 12.9, and no GPU", "CPU build"),
        ({"torch": {"CUDA build": "12.9", "GPU": "H"}}, "On H sparse products are simulated", "CPU"),
        ({"torch": {"threads": 1}}, "1 of 2 threads", "set_num_threads(2)"),
        (
            {"torch": {"threads": 8}, "environment": {"OMP_NUM_THREADS": "8"}},
            "8 threads (OMP_NUM_THREADS=8), and this process may use 2",
            "OMP_NUM_THREADS=2",
        ),
        ({"processor": {"load": 2.5}}, "over the last minute 2.5", "wait"),
        (
            {"allocator": {"replaced by": [], "can be tuned": True}},
            "In a program of your own",
            "tune_allocator()",
        ),
        ({"allocator": {"replaced by": [], "C library": "not glibc"}}, "not glibc", "jemalloc"),
        ({"plan": {"timings of this machine": 0}}, "Nothing is tuned", "torchswat.tune"),
        (
            {"plan": {"timings of this machine": 0, "timings of others": {"Y | avx2": 4}}},
            "measured elsewhere (Y | avx2), and this is X | avx512",
            "torchswat.tune",
        ),
        ({"plan": {"TORCHSWAT_PLAN": "dense"}}, "every product runs dense", "Unset"),
        ({"plan": {"TORCHSWAT_PLAN": "model"}}, "the cost model alone decides", "Unset"),
        ({"libraries": {"export": {"onnx": None}}}, "Not installed: onnx", 'pip install "torchswat[export]"'),
        ({"data": {"cifar10": "missing"}}, "No data set is found in data", "--data-root"),
    ],
)
def test_each_problem_has_its_remedy(changes, problem, remedy):
    (finding,) = found(**changes)
    assert problem in finding.problem and remedy in finding.remedy


def test_the_libraries_are_those_of_the_extras():
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    from packaging.requirements import Requirement

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    named = {extra: tuple(Requirement(line).name for line in extras[extra]) for extra in doctor.LIBRARIES}
    assert named == doctor.LIBRARIES


def start(*arguments: str, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; `prelude` runs first."""
    code = f"import sys\n{prelude}\nsys.argv = {['torchswat', *arguments]!r}\nfrom torchswat.cli import main; main()"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCHSWAT_")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**inherited, **environment}
    )


def test_the_facts_of_this_machine():
    done = start("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert facts["torch"]["version"] == torch.__version__
    assert facts["engine"]["engine"] == info()["engine"]
    assert facts["plan"]["this machine"] == plan.machine()
    assert {"digits", "folder"} <= set(facts["data"]) and facts["data"]["digits"] == "built in"
    assert facts["processor"]["cores allowed"] <= facts["processor"]["cores"]


def test_in_words(tmp_path):
    done = start("doctor", "--data-root", str(tmp_path))
    assert done.returncode == 0 and done.stderr == ""
    assert "What is slow, and why" in done.stdout and f"No data set is found in {tmp_path}" in done.stdout
    assert done.stdout.count("  Remedy: ") == done.stdout.count("\n- ") > 0


@pytest.mark.parametrize(
    "environment, problem",
    [
        ({"TORCHSWAT_ENGINE": "reference"}, "TORCHSWAT_ENGINE=reference: plain torch runs"),
        ({"TORCHSWAT_ENGINE": "fast"}, "unknown engine in TORCHSWAT_ENGINE 'fast'"),
        ({"TORCHSWAT_ISA": "avx1024"}, "'avx1024' is not available"),
        ({"TORCHSWAT_PLAN": "sparse"}, "every product runs sparse"),
        ({"OMP_NUM_THREADS": "1"}, "torch runs on 1 of"),
    ],
)
def test_variables_that_slow_it_down(environment, problem):
    if "TORCHSWAT_ISA" in environment and info()["engine"] != "native":
        pytest.skip("the native engine is not built here")
    done = start("doctor", **environment)
    assert done.returncode == 0 and problem in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    "asked, problem", [("auto", "was not built"), ("native", "TORCHSWAT_ENGINE=native, but")]
)
def test_without_the_native_engine(asked, problem):
    """The module cannot be imported, as where there was no compiler."""
    missing = "sys.modules['torchswat.engine._native'] = None"
    done = start("doctor", prelude=missing, TORCHSWAT_ENGINE=asked)
    assert done.returncode == 0 and problem in done.stdout and done.stderr == ""


def test_without_optional_libraries():
    """Nothing but the libraries of the command line itself is needed to hear what is missing."""
    names = ("yaml", "accelerate", "safetensors", "matplotlib", "sklearn", "PIL", "tensorboard")
    done = start("doctor", prelude=f"sys.modules.update(dict.fromkeys({names!r}))")
    assert done.returncode == 0 and "What is slow, and why" in done.stdout, done.stderr


def test_a_plan_of_another_machine(tmp_path):
    file = tmp_path / "plan.json"
    timing = {"forward": [1.0, 2.5], "grad_input": [3.0, 2.0], "grad_weight": [1.0, 4.0]}
    file.write_text(json.dumps({"another processor": {"shape": timing}}))
    done = start("doctor", TORCHSWAT_PLAN=str(file))
    assert done.returncode == 0 and "measured elsewhere (another processor)" in done.stdout
