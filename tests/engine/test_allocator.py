"""The allocator keeps what it has: in a process of its own, since a setting cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from torchswat.engine import allocator

COUNT_FAULTS = """
import resource
from torchswat.engine.allocator import tune_allocator
tuned = {tune} and tune_allocator()
import torch
def touch():
    for _ in range(4):
        torch.ones(8_000_000)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(tuned, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(tune: bool) -> tuple[bool, int]:
    code = COUNT_FAULTS.format(tune=tune)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tuned, count = done.stdout.split()
    return tuned == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_large_blocks_are_not_faulted_in_again():
    tuned, few = faults(tune=True)
    _, many = faults(tune=False)
    assert tuned and few < many / 10


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.tune_allocator() is False
