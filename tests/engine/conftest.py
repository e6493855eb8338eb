"""The compiled module, for the tests of its kernels: once for each instruction set that runs here.

``make sanitize`` puts the folder of a module built with the sanitizers into TORCHSWAT_SANITIZED; it is then
tested in the place of the installed one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

NAME = "torchswat.engine._native"


def take_sanitized(folder: Path) -> None:
    """Import the module that lies in `folder` under the name of the installed one."""
    (file,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


if "TORCHSWAT_SANITIZED" in os.environ:
    take_sanitized(Path(os.environ["TORCHSWAT_SANITIZED"]))
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
