"""The compiled module, for the tests of its kernels: once for each instruction set that runs here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

NAME = "torchswat.engine._native"
BUILT = importlib.util.find_spec(NAME) is not None


def instruction_sets() -> list[str]:
    """Return the names of the instruction sets to test; one placeholder where nothing is built."""
    if not BUILT:
        return ["none"]
    return importlib.import_module(NAME).available()


@pytest.fixture(params=instruction_sets())
def native(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The compiled module, forced to one instruction set for the duration of a test."""
    if not BUILT:
        pytest.skip("the native engine is not built here (no compiler at installation)")
    module = importlib.import_module(NAME)
    before = module.isa()
    module.force(request.param)
    yield module
    module.force(before)
