"""The public names are pinned here, so that growth is a decision; `import torchswat` stays light."""

from __future__ import annotations

import subprocess
import sys

import torchswat

PUBLIC = [
    "BatchNormReLU2d",
    "Sparsity",
    "algorithms",
    "angle",
    "cost",
    "count_steps_",
    "desparsify_",
    "errors",
    "fuse_",
    "load",
    "load_sparse_state_",
    "models",
    "prune_",
    "save",
    "schedules",
    "select",
    "sparse_layers",
    "sparse_state",
    "sparsify_",
    "summary",
    "tune",
    "tune_allocator",
    "unfuse_",
]
HEAVY = {
    "accelerate",
    "matplotlib",
    "pandas",
    "PIL",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "yaml",
}


def test_the_public_names():
    assert torchswat.__all__ == PUBLIC
    assert all(hasattr(torchswat, name) for name in PUBLIC)


def test_every_public_name_is_documented():
    for name in PUBLIC:
        thing = getattr(torchswat, name)
        assert thing.__doc__ and ">>>" in thing.__doc__, f"{name} has no example"


def test_a_function_is_found_whatever_was_imported_before():
    """No module of the package has the name of a public function, which it would take the place of."""
    code = "import pkgutil, torchswat; print(*(m.name for m in pkgutil.iter_modules(torchswat.__path__)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in PUBLIC if name in run.stdout.split()} == {
        "algorithms",
        "errors",
        "models",
        "schedules",
    }


def test_import_needs_torch_and_numpy_alone():
    """A process that could not import anything else would still import the package."""
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import torchswat; "
        "print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "torchswat" in loaded and not loaded & HEAVY
