"""What is measured: bytes of real storages, and times that are kept."""

from __future__ import annotations

from torchswat.experiments import measure
from torchswat.experiments.measure import measured_steps


def test_what_was_measured_is_kept(tmp_path, monkeypatch):
    first = measured_steps("resnet8", "cifar", (0.5, 0.8), batch_size=4, repeats=1, folder=tmp_path)
    assert first["dense"]["ms"] > 0 and first["0.8"]["ms"] > 0 and 0 <= first["selection_share"] < 1
    assert first["0.8"]["weights"] < 0.5 * first["dense"]["weights"]
    assert "git_commit" in first["circumstances"]
    monkeypatch.setattr(measure, "race", None)
    assert measured_steps("resnet8", "cifar", (0.5, 0.8), batch_size=4, repeats=1, folder=tmp_path) == first
