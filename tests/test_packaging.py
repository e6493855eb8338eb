"""What an installation holds, what importing it costs, and that it works where there is no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import torchswat

ROOT = Path(__file__).parents[1]
NATIVE = re.compile(r"torchswat/engine/_native[^/]*\.(so|pyd)")


def run(*command: str | Path, **options) -> str:
    """Run `command` in a process of its own; what it prints."""
    finished = subprocess.run(command, capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def project() -> dict:
    """The table [project] of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints(python: str) -> dict[str, Requirement]:
    """The lines of constraints.txt that hold for the version `python`."""
    environment = {**default_environment(), "python_version": python}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}


def test_importing_the_package_needs_torch_and_numpy_alone():
    heavy = {
        "PIL",
        "accelerate",
        "hypothesis",
        "matplotlib",
        "pydantic",
        "pytest",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
        "tensorboard",
        "typer",
        "yaml",
    }
    code = (
        "import sys, torchswat; [getattr(torchswat, name) for name in torchswat.__all__]; print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(torchswat.__file__).parents[1])}
    imported = {name.split(".")[0] for name in run(sys.executable, "-c", code, env=environment).split()}
    assert {"torch", "torchswat"} <= imported
    assert imported.isdisjoint(heavy)


def test_versions_agree(project):
    assert torchswat.__version__ == project["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {project['version']}" in citation.splitlines()


def test_types_are_announced(project):
    """Type checkers of users read the annotations where both are there."""
    assert (Path(torchswat.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in project["classifiers"]


def test_python_versions_agree(project):
    named = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if "Python :: 3." in line]
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    assert project["requires-python"] == ">=3.10,<3.14"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned_within_its_range(project, python):
    pins = constraints(python)
    extras = project["optional-dependencies"]
    asked = [Requirement(line) for lines in (project["dependencies"], *extras.values()) for line in lines]
    for requirement in asked:
        absent = requirement.marker and not requirement.marker.evaluate({"python_version": python})
        if requirement.name == "torchswat" or absent:
            continue
        (pin,) = pins[requirement.name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), requirement.name


def test_the_ranges_can_be_missed():
    """The check above fails where it should."""
    (pin,) = constraints("3.11")["torch"].specifier
    assert not Requirement("torch<2").specifier.contains(pin.version)


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build the checkout's wheel into `folder`, with what is installed here and nothing fetched."""
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ROOT,
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            folder,
        ),
        *("--config-settings", f"build-dir={folder / 'build'}"),
        env={**os.environ, **environment},
        cwd=folder,
    )
    (wheel,) = folder.glob("torchswat-*.whl")
    return wheel


def use_wheel(wheel: Path, code: str) -> str:
    """Run `code` where `wheel` is unpacked and the checkout cannot be seen; what it prints."""
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -I -S: no current folder, no environment variables and no .pth files, so no editable installation.
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    prelude = f"import sys; sys.path += {paths!r}\n"
    where = "\nimport torchswat; assert torchswat.__file__.startswith(sys.path[-3]), torchswat.__file__"
    return run(sys.executable, "-I", "-S", "-c", prelude + code + where, cwd=site)


TRAIN_A_STEP = """
import importlib.util, torch, torchswat
model = torchswat.sparsify_(torchswat.models.create("resnet-digits"), sparsity=0.8)
model(torch.randn(4, 1, 8, 8)).logsumexp(1).sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
print("native" if importlib.util.find_spec("torchswat.engine._native") else "plain torch")
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")
def test_the_wheel_brings_the_native_engine_and_no_sources(tmp_path):
    wheel = build_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert any(NATIVE.fullmatch(name) for name in names)
    assert "torchswat/py.typed" in names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".o", ".a"))]
    assert not [
        name
        for name in names
        if name.split("/")[0] not in ("torchswat", wheel.name.rsplit("-", 3)[0] + ".dist-info")
    ]
    assert use_wheel(wheel, TRAIN_A_STEP).split("\n")[0] == "native"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")
def test_the_wheel_in_an_environment_of_its_own(tmp_path):
    """As a library and as a command, with the packages of this environment and one OpenMP runtime."""
    import torch

    packages = Path(torch.__file__).parents[1]
    said = run(sys.executable, ROOT / "tests" / "try_wheel.py", build_wheel(tmp_path), "--packages", packages)
    assert f"library {torchswat.__version__}" in said and "command line: swat" in said


@pytest.mark.slow
def test_without_a_compiler_the_wheel_works_in_plain_torch(tmp_path):
    wheel = build_wheel(tmp_path, CXX="no-such-compiler")
    assert not any(NATIVE.fullmatch(name) for name in zipfile.ZipFile(wheel).namelist())
    assert use_wheel(wheel, TRAIN_A_STEP).split("\n")[0] == "plain torch"


@pytest.mark.slow
def test_without_a_compiler_the_build_says_so(tmp_path):
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    assert cmake, "cmake is among the development requirements"
    finished = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path],
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "no C++ compiler found; installing without the native engine" in " ".join(finished.stderr.split())


def test_makefile_refuses_a_python_that_is_too_old(tmp_path):
    old = tmp_path / "python-of-old"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 8, 0, 0, 0); $2"\n'
    )
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "src/torchswat/engine/native").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "CMakeLists.txt"):
        (tmp_path / name).touch()
    finished = subprocess.run(["make", "venv", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "torchswat needs Python 3.10 to 3.13" in finished.stderr
    assert not (tmp_path / ".venv").exists()
