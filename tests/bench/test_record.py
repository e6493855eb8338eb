"""What a result carries, and that nothing of it is lost in the file."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from torchswat.bench.record import Record, circumstances
from torchswat.errors import CheckpointError


def test_the_file_holds_everything(tmp_path):
    record = Record(
        "step", circumstances(seed=3, repeats=7), [{"step_ms": 1.5, "samples": {"a": [1.0, 2.0]}}], [], []
    )
    path = tmp_path / "new" / "step.json"
    record.write(path)
    assert Record(**json.loads(path.read_text())) == record
    assert [file.name for file in path.parent.iterdir()] == ["step.json"]  # no temporary file is left


def test_circumstances(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("SECRET", "not for a file")
    facts = circumstances(seed=3, repeats=7)
    assert (facts["seed"], facts["repeats"], facts["environment"]["ONEDNN_MAX_CPU_ISA"]) == (3, 7, "AVX2")
    assert "SECRET" not in facts["environment"]
    for name in (
        "processor",
        "cores",
        "threads",
        "torch",
        "numpy",
        "python",
        "git_commit",
        "engine",
        "started",
    ):
        assert name in facts
    assert asdict(Record("step", facts, [], [], []))["circumstances"] == facts


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        Record("step", {}, [], [], []).write(tmp_path / "file" / "step.json")


def test_it_does_not_tell_where_somebody_keeps_his_pictures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHSWAT_DATA", "/home/somebody")
    monkeypatch.setenv("TORCHSWAT_ISA", "avx2")
    found = circumstances(seed=0, repeats=1)["environment"]
    assert "TORCHSWAT_DATA" not in found and found["TORCHSWAT_ISA"] == "avx2"
