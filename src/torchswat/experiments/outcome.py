"""What an experiment is, and what it leaves behind: data, a drawing, and a verdict on each claim."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from torchswat.drawing import caption_of, render, render_panels
from torchswat.experiments.claims import Finding, judged
from torchswat.experiments.scales import Scale, Training, reductions
from torchswat.training.checkpoint import write_atomically
from torchswat.training.run_folder import versions

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes
    ----------
    rows : list of dict
        The data of the figure: one flat table, whose rows may lack columns.
    findings : list of Finding
        On the claims of the figure.
    figure : Figure
        The drawing.
    remarks : list of str
        What a reader of the figure must know.
    table : list of dict
        What the data come to, where a few lines can say it: shown beside the figure.
    """

    rows: list[Row]
    findings: list[Finding]
    figure: Figure
    remarks: list[str] = field(default_factory=list)
    table: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """A training that has ended.

    Attributes
    ----------
    training : Training
        What was asked.
    folder : Path
        Of the run.
    accuracy, pruned : float
        Test accuracy in per cent after the last epoch, with sparse weights and as a pruned plain network;
        of a training that broke off, chance.
    curve : tuple of float
        Test accuracy after each epoch.
    problem : str
        Why it broke off; empty where it did not.
    """

    training: Training
    folder: Path
    accuracy: float
    pruned: float
    curve: tuple[float, ...]
    problem: str = ""

    def row(self) -> Row:
        """Return it as a line of a table."""
        asked = self.training
        return {
            "network": asked.network,
            "data": asked.data,
            "algorithm": asked.algorithm,
            "scope": asked.scope,
            "sparsity": asked.sparsity,
            **({"settings": " ".join(asked.settings)} if asked.settings else {}),
            "seed": asked.seed,
            "accuracy": self.accuracy,
            "pruned": self.pruned,
            "problem": self.problem,
            "run": self.folder.name,
        }


@dataclass(frozen=True)
class Work:
    """What an experiment is given.

    Attributes
    ----------
    scale : Scale
        At which it is made.
    trained : sequence of Trained
        Of the trainings that it asked for those that have been run, in that order.
    folder : Path
        Of all runs, where it may also keep what it timed.
    """

    scale: Scale
    trained: Sequence[Trained]
    folder: Path


@dataclass(frozen=True)
class Timing:
    """What an experiment times before it trains.

    Attributes
    ----------
    read : callable
        From the scale and the folder of all runs to what was timed; None where it was not.
    measure : callable
        The same, and times it where it was not.
    trainings : callable
        From the scale and what was timed to all trainings of the experiment.
    """

    read: Callable[[Scale, Path], Row | None]
    measure: Callable[[Scale, Path], Row]
    trainings: Callable[[Scale, Row], list[Training]]


@dataclass(frozen=True)
class Experiment:
    """One figure or claim of the paper.

    Attributes
    ----------
    figure : str
        What ``torchswat reproduce`` calls it.
    title : str
        What it shows.
    make : callable
        From what it is given to the outcome.
    trainings : callable or None
        The trainings that it needs at a scale; None where it needs none and its result is exact.
    timing : Timing or None
        What it times first, where it does and further trainings follow from that.
    """

    figure: str
    title: str
    make: Callable[[Work], Outcome]
    trainings: Callable[[Scale], list[Training]] | None = None
    timing: Timing | None = None

    @property
    def exact(self) -> bool:
        """Whether the result does not depend on the scale."""
        return self.trainings is None

    def needs(self, scale: Scale, folder: Path | None = None) -> list[Training]:
        """Return the trainings it needs, each once: all of the first seed, then all of the next.

        Parameters
        ----------
        scale : Scale
            At which it is made.
        folder : Path, optional
            Of all runs, for trainings that follow from what was timed there.
        """
        timed = self.timing.read(scale, folder) if self.timing and folder else None
        if self.timing and timed:
            found = self.timing.trainings(scale, timed)
        else:
            found = self.trainings(scale) if self.trainings else []
        return sorted(dict.fromkeys(found), key=lambda training: training.seed)

    def record(self, work: Work, folder: Path, command: str) -> Row:
        """Make the outcome and write it.

        ``data.csv``; ``figure.svg`` and ``figure.png``; ``panel-1.svg`` and so on, each panel without the
        caption, for narrow pages; ``result.json``.
        """
        outcome, scale = self.make(work), work.scale
        needed, there = self.needs(scale, work.folder), {each.training for each in work.trained}
        missing = [training.folder_name(scale) for training in needed if training not in there]
        result = {
            "figure": self.figure,
            "title": self.title,
            "scale": scale.name,
            "exact": self.exact,
            "claims": judged(self.figure, outcome.findings, scale.name, self.exact),
            "reductions": [] if self.exact else reductions(scale, needed),
            "remarks": outcome.remarks,
            "table": outcome.table,
            "caption": caption_of(outcome.figure),
            "missing": missing,
            "seeds": [] if self.exact else list(scale.seeds),
            "runs": [each.folder.name for each in work.trained],
            "command": command,
            "circumstances": versions(),
        }
        write_atomically(folder / "data.csv", _table(outcome.rows).encode())
        for kind in ("svg", "png"):
            write_atomically(folder / f"figure.{kind}", render(outcome.figure, kind, self.figure))
        for old in folder.glob("panel-*.svg"):
            old.unlink()
        for number, panel in enumerate(render_panels(outcome.figure, self.figure), 1):
            write_atomically(folder / f"panel-{number}.svg", panel)
        text = json.dumps(result, indent=1, default=float)
        write_atomically(folder / "result.json", f"{text}\n".encode())  # last: it says that all is there
        return result


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
