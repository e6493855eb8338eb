"""The paper's claims, and what can be said of each after it was tried.

The file ``claims.yaml`` is the only place that holds numbers out of the paper; everything else is computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from torchswat.training.checkpoint import write_atomically

REPRODUCED = "reproduced"
REDUCED = "reproduced at reduced scale"
NOT_REPRODUCED = "not reproduced"
NOT_RUN = "not run"
VERDICTS = (REPRODUCED, REDUCED, NOT_REPRODUCED, NOT_RUN)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes
    ----------
    name, figure : str
        What it is called here; the figure that shows it.
    text, source : str
        The claim in our words; where the paper makes it.
    values : dict
        The paper's own numbers.
    tolerance : float
        How far an exact figure may be off and still count as reproduced.
    """

    name: str
    figure: str
    text: str
    source: str
    values: Mapping[Any, float] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What an experiment found about a claim: whether it holds (None: it could not be tried), and how."""

    claim: str
    holds: bool | None
    observed: str


def all_hold(parts: Iterable[bool | None]) -> bool | None:
    """Return whether all parts of a claim hold: one that does not settles it, one that is unknown leaves it open.

    Examples
    --------
    >>> all_hold([True, None]), all_hold([False, None]), all_hold([True, True])
    (None, False, True)
    """
    known = list(parts)
    if False in known:
        return False
    return None if None in known else True


@cache
def claims() -> dict[str, Claim]:
    """Return all claims by name.

    Examples
    --------
    >>> claims()["9a.80"].values["degrees"]
    36.4
    """
    text = resources.files("torchswat.experiments").joinpath("claims.yaml").read_text(encoding="utf-8")
    return {name: Claim(name, **entry) for name, entry in yaml.safe_load(text).items()}


def verdict(finding: Finding | None, scale: str, exact: bool) -> str:
    """Return the verdict on a claim.

    A run at smoke scale shows that the machinery works and says nothing about the paper.

    Examples
    --------
    >>> verdict(Finding("9a.80", True, "36.4"), scale="cpu", exact=True)
    'reproduced'
    >>> verdict(Finding("2a.order", True, ""), scale="cpu", exact=False)
    'reproduced at reduced scale'
    """
    if finding is None or finding.holds is None or (scale == "smoke" and not exact):
        return NOT_RUN
    if not finding.holds:
        return NOT_REPRODUCED
    return REPRODUCED if exact or scale == "paper" else REDUCED


def judged(figure: str, findings: list[Finding], scale: str, exact: bool) -> list[dict[str, Any]]:
    """Return every claim of a figure with what was found and the verdict, as plain values."""
    found = {finding.claim: finding for finding in findings}
    rows = []
    for claim in claims().values():
        if claim.figure != figure:
            continue
        finding = found.pop(claim.name, None)
        values = {str(key): value for key, value in claim.values.items()}
        said = {
            "verdict": verdict(finding, scale, exact),
            "holds": finding.holds if finding else None,
            "observed": finding.observed if finding else "",
        }
        rows.append({**asdict(claim), "values": values, **said})
    assert not found, f"findings on claims that figure {figure} does not have: {list(found)}"
    return rows


def write_claims(path: Path) -> None:
    """Write all claims as JSON, so that a report can name those that were never tried."""
    rows = [
        {**asdict(claim), "values": {str(k): v for k, v in claim.values.items()}}
        for claim in claims().values()
    ]
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())
