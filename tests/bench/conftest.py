"""A convolution and a network so small that a benchmark of them takes no time."""

from __future__ import annotations

import pytest

from torchswat.bench import inference, products, step

TINY = products._shape(16, 4, 16, 8, kernel=3)


@pytest.fixture
def tiny(monkeypatch) -> str:
    """The name of a tiny convolution, and of a tiny network, in the lists of what can be timed."""
    monkeypatch.setitem(products.SHAPES, "tiny", TINY)
    monkeypatch.setitem(step.NETWORKS, "tiny", step.Network("resnet-digits", "digits", 16, {0.8: 1.0}))
    monkeypatch.setitem(inference.CASES, "tiny", inference.Case("resnet-digits", "digits", 4, {0.8: 1.0}))
    return "tiny"
