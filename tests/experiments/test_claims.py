"""The claims: complete, well formed, and judged as they should be."""

from __future__ import annotations

import json

import pytest

from torchswat.experiments.claims import (
    NOT_REPRODUCED,
    NOT_RUN,
    REDUCED,
    REPRODUCED,
    Finding,
    claims,
    judged,
    verdict,
    write_claims,
)
from torchswat.experiments.registry import EXPERIMENTS


def test_every_claim_belongs_to_an_experiment_and_names_its_source():
    for name, claim in claims().items():
        assert isinstance(name, str) and isinstance(claim.figure, str), name  # YAML reads 4.50 as a number
        assert claim.figure in EXPERIMENTS and claim.text and claim.source, name
        assert name.startswith(claim.figure), name


def test_every_figure_of_the_paper_is_there():
    asked = {"2a", "2b", "2c", "3", "4", "5", "6a", "6b", "7", "8a", "8b", "9a", "9b", "9c", "9d", "9e"}
    assert asked | {"inference", "lemma-b1", "top-k-cost"} <= {claim.figure for claim in claims().values()}


@pytest.mark.parametrize(
    "holds, scale, exact, expected",
    [
        (True, "cpu", True, REPRODUCED),
        (True, "smoke", True, REPRODUCED),
        (True, "paper", False, REPRODUCED),
        (True, "cpu", False, REDUCED),
        (True, "smoke", False, NOT_RUN),
        (False, "smoke", False, NOT_RUN),
        (False, "cpu", False, NOT_REPRODUCED),
        (False, "cpu", True, NOT_REPRODUCED),
        (None, "cpu", True, NOT_RUN),
    ],
)
def test_verdicts(holds, scale, exact, expected):
    assert verdict(Finding("2a.order", holds, ""), scale, exact) == expected


def test_a_claim_without_a_finding_was_not_run():
    rows = judged("9a", [Finding("9a.80", True, "36.4")], "cpu", exact=True)
    assert {row["name"]: row["verdict"] for row in rows} == {
        "9a.80": REPRODUCED,
        "9a.90": NOT_RUN,
        "9a.random": NOT_RUN,
    }
    with pytest.raises(AssertionError, match=r"9a\.81"):
        judged("9a", [Finding("9a.81", True, "")], "cpu", exact=True)


def test_the_list_as_a_file(tmp_path):
    write_claims(tmp_path / "claims.json")
    rows = json.loads((tmp_path / "claims.json").read_text())
    assert {row["name"] for row in rows} == set(claims())
