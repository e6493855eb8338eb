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
    "desparsify_",
    "fuse_",
    "load",
    "models",
    "prune_",
    "save",
    "schedules",
    "select",
    "sparsify_",
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


def test_import_needs_torch_and_numpy_alone():
    """A process that could not import anything else would still import the package."""
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import torchswat; "
        "print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "torchswat" in loaded and not loaded & HEAVY
