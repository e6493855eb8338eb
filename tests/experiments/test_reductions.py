"""Figures 7 and 8: the counts of a network against counts by hand."""

from __future__ import annotations

import pytest

from torchswat.experiments.outcome import Work
from torchswat.experiments.reductions import _ends, _total, counted
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES


@pytest.fixture
def one_network(monkeypatch):
    """Only ResNet-18: the others take seconds."""
    monkeypatch.setattr("torchswat.experiments.reductions.NETWORKS", {"resnet18": "RN18"})


@pytest.fixture
def work(tmp_path):
    return Work(SCALES["smoke"], [], tmp_path)


def test_resnet18_by_hand():
    account = counted("resnet18", 0.8)
    # He et al. 2016, table 1: 1.8 billion multiply-accumulates forward, as often again for each gradient
    assert account.total("forward").dense / 2 == pytest.approx(1.814e9, rel=1e-3)
    assert account.total("weights").dense == 4 * sum(
        p
        for p in (11_689_512 - 9_600 - 1_000,)  # without batch norms and the classifier's bias
    )
    assert _ends(account) == ("conv1", "fc")


def test_what_stays_dense_is_counted_dense():
    account = counted("resnet18", 0.8)
    first, _ = _ends(account)
    stem = next(layer for layer in account.layers if layer.name == first).macs.dense
    all_sparse, part = _total(account, "macs"), _total(account, "macs", (first,))
    assert part.formula - all_sparse.formula == pytest.approx(0.8 * stem)
    assert part.dense == all_sparse.dense


def test_operations_and_weights(one_network, work):
    for figure in ("7", "8a"):
        outcome = EXPERIMENTS[figure].make(work)
        assert all(finding.holds for finding in outcome.findings)
        assert [row["counted"] for row in outcome.rows] == pytest.approx([2, 10 / 3, 5])
        assert all(row["first_and_last_dense"] < row["counted"] for row in outcome.rows)
    assert all(row["with_positions"] < row["counted"] for row in outcome.rows), "positions are bytes too"


def test_three_columns_where_something_is_measured(one_network, work, monkeypatch):
    found = {"dense": {"ms": 10, "weights": 40, "activations": 30}}
    found |= {str(s): {"ms": 8, "weights": 16, "activations": 24} for s in (0.5, 0.7, 0.8)}
    monkeypatch.setattr("torchswat.experiments.reductions.measured", lambda network, work: found)
    for figure, factor in (("7", 1.25), ("8a", 2.5), ("8b", 1.25)):
        outcome = EXPERIMENTS[figure].make(work)
        assert all(row["measured"] == factor and row["paper"] and row["counted"] for row in outcome.rows)
        labels = [text.get_text() for text in outcome.figure.axes[-1].get_legend().get_texts()]
        assert labels[:2] == ["the paper", "counted"] and labels[-1] in ("seconds", "bytes")
        assert f"at 80 %: {factor:.2f}x" in outcome.findings[0].observed


def test_activations(one_network, work):
    outcome = EXPERIMENTS["8b"].make(work)
    assert [row["counted"] for row in outcome.rows] == pytest.approx([1.305, 1.487, 1.598], abs=1e-3)
    found = {finding.claim: finding.holds for finding in outcome.findings}
    assert found == {"8b.activations": False, "8b.footprint": True}


def test_the_accounts_add_up(one_network, work):
    rows = [row for row in EXPERIMENTS["5-accounts"].make(work).rows if row["sparsity"] == 0.8]
    total = counted("resnet18", 0.8).total("forward").dense / 2
    assert sum(row["forward_dense"] for row in rows) == pytest.approx(total)


def test_what_top_k_costs(one_network, work, monkeypatch):
    monkeypatch.setattr("torchswat.experiments.top_k_cost.NETWORKS", {"resnet18": "RN18"})
    outcome = EXPERIMENTS["top-k-cost"].make(work)
    every = {(r["method"], r["period"], r["sparsity"]): r["percent"] for r in outcome.rows}
    assert every["introselect", 20, 0.8] < every["introselect", 1, 0.8] < every["bfprt", 1, 0.8] < 2
    assert every["introselect", 1, 0.5] < every["introselect", 1, 0.8], "fewer operations to share it"
