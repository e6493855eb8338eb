"""What all tests share: fixed seeds, a fast hypothesis profile, and where the real images are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=50,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")

# A test must neither choose kernels by time nor write measurements into a user's cache.
os.environ.setdefault("TORCHSWAT_PLAN", "sparse")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start every test from the same random numbers."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real images, or a skipped test that says why."""
    root = os.environ.get("TORCHSWAT_DATA")
    if root is None:
        pytest.skip("no real images: TORCHSWAT_DATA names no folder")
    if not Path(root).is_dir():
        pytest.skip(f"no real images: TORCHSWAT_DATA is {root}, which is no folder")
    return Path(root)
