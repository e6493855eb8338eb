"""Which engine runs: what the environment and the code ask for, what is there, and what is said about it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import BUILT, NAME, instruction_sets

from torchswat.engine import compiled, info, loader
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue, MissingDependency, UnknownName

needs_native = pytest.mark.skipif(not BUILT, reason="the native engine is not built here")


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHSWAT_ENGINE", raising=False)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library as it is where no compiler was at hand."""

    def forget() -> None:
        loader._load.cache_clear()
        compiled._warn_once.cache_clear()

    monkeypatch.setitem(sys.modules, "torchswat.engine._native", None)
    monkeypatch.delattr("torchswat.engine._native", raising=False)
    forget()
    yield
    monkeypatch.undo()
    forget()


@needs_native
@pytest.mark.parametrize(("asked", "runs"), [("auto", True), ("native", True), ("reference", False)])
def test_the_environment_decides(monkeypatch, asked, runs):
    monkeypatch.setenv("TORCHSWAT_ENGINE", asked)
    assert (loader.native() is not None) == runs
    assert info()["engine"] == ("native" if runs else "reference")
    assert info()["isa"] in ([None] if not runs else info()["available"])


def test_an_unknown_engine_is_refused_with_the_nearest_name(monkeypatch):
    monkeypatch.setenv("TORCHSWAT_ENGINE", "referense")
    with pytest.raises(UnknownName, match="did you mean 'reference'"):
        loader.native()
    with pytest.raises(UnknownName, match="nativ"), engine("nativ"):
        pass


@needs_native
def test_the_code_has_the_last_word_and_gives_it_back(monkeypatch):
    monkeypatch.setenv("TORCHSWAT_ENGINE", "native")
    with pytest.raises(KeyError), engine("reference"):
        assert loader.native() is None
        with engine("auto"):
            assert loader.native() is not None
        assert loader.native() is None
        raise KeyError
    assert loader.native() is not None


@needs_native
def test_only_float32_on_the_cpu_is_for_the_kernels():
    x = torch.zeros(2)
    assert loader.native_for(x, None, x) is not None
    assert loader.native_for(x, x.double()) is None
    assert loader.native_for(x.to("meta")) is None


@needs_native
def test_kernels_of_activations_take_float32_or_bfloat16():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, dtype=dtype)
        assert loader.native_for_entries(x, None, x) is not None
        name = "relu_forward" if dtype == torch.float32 else "relu_forward_bf16"
        assert loader.kernel_for(loader.native(), "relu_forward", x) is getattr(loader.native(), name)
        other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
        for wrong in (x.to(other), x.half(), x.to("meta"), torch._neg_view(x)):  # pyright: ignore[reportPrivateImportUsage]
            assert loader.native_for_entries(x, wrong) is None
    assert loader.native_for(torch.zeros(2).bfloat16()) is None


def test_its_absence_is_said_once(absent):
    with pytest.warns(UserWarning, match="without its compiled engine") as record:
        assert loader.native() is None
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader.native() is None
        assert loader.native_for(torch.zeros(2)) is None
    found = info()
    assert found["engine"] == "reference" and found["available"] == [] and "_native" in found["reason"]


def test_its_absence_is_an_error_where_it_is_asked_for(absent, monkeypatch):
    monkeypatch.setenv("TORCHSWAT_ENGINE", "native")
    with pytest.raises(MissingDependency, match="the compiled engine is not there"):
        loader.native()


def test_nothing_is_said_where_the_reference_is_asked_for(absent, monkeypatch):
    monkeypatch.setenv("TORCHSWAT_ENGINE", "reference")
    assert loader.native() is None
    assert info()["reason"] == "asked for by TORCHSWAT_ENGINE"


# ---- threads -----------------------------------------------------------------------------------------------


@needs_native
def test_it_is_known_whether_the_kernels_have_threads():
    assert info()["openmp"] is importlib.import_module(NAME).openmp
    with engine("reference"):
        assert info()["openmp"] is None


@needs_native
def test_one_thread_for_lack_of_openmp_is_said_once(monkeypatch):
    module = importlib.import_module(NAME)
    monkeypatch.setattr(module, "openmp", False)
    loader._warn_of_one_thread.cache_clear()
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.set_num_threads(1)
            assert loader.native() is module  # torch has one as well
        torch.set_num_threads(3)
        with pytest.warns(UserWarning, match="built without OpenMP.*one thread where torch has 3") as said:
            assert loader.native() is module and loader.native() is module
        assert len(said) == 1 and info()["openmp"] is False
    finally:
        torch.set_num_threads(threads)
        loader._warn_of_one_thread.cache_clear()


# ---- instruction sets, in real processes -------------------------------------------------------------------

SCRIPT = "from torchswat.engine import info; print(info()['engine'], info()['isa'])"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(loader.__file__).parents[2])
    variables = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True)


@needs_native
@pytest.mark.parametrize("isa", instruction_sets())
def test_the_environment_forces_an_instruction_set(isa):
    assert run(TORCHSWAT_ISA=isa).stdout.split() == ["native", isa]


@needs_native
def test_an_instruction_set_that_is_not_there_is_refused():
    result = run(TORCHSWAT_ISA="avx9")
    last = result.stderr.splitlines()[-1]
    assert result.returncode and "InvalidValue: TORCHSWAT_ISA" in last and "avx9" in last and "plain" in last


@needs_native
def test_a_failed_choice_is_no_choice(monkeypatch):
    """The error is raised at every call and not remembered as an engine that is absent."""

    class Refusing:
        @staticmethod
        def isa() -> str:
            raise ValueError("TORCHSWAT_ISA: the instruction set 'avx9' is not available")

    monkeypatch.setattr("torchswat.engine._native", Refusing)
    loader._load.cache_clear()
    for _ in range(2):
        with pytest.raises(InvalidValue, match="avx9"):
            loader.native()
    monkeypatch.undo()
    assert loader.native() is not None
