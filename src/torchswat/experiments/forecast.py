"""What trainings are still to be made, and how long that will take, judged by those that were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torchswat.experiments.runs import epochs, is_finished
from torchswat.experiments.scales import Scale, Training
from torchswat.training.recipe import Recipe, load_recipe

Seconds = Callable[[Recipe], float | None]
"""From a recipe to the seconds of an epoch; None where that is not known."""


@dataclass(frozen=True)
class Forecast:
    """What is left of some trainings.

    Attributes
    ----------
    runs, finished : int
        How many there are, and how many have been run.
    epochs : int
        Of the others, those still to be trained.
    hours : float
        Of those epochs whose seconds are known, without evaluation.
    unknown : int
        Runs to be made of whose seconds nothing is known.
    """

    runs: int
    finished: int
    epochs: int
    hours: float
    unknown: int

    @property
    def time(self) -> str:
        """The hours in words.

        Examples
        --------
        >>> Forecast(9, 3, 48, 4.25, 2).time, Forecast(9, 3, 48, 0.0, 6).time, Forecast(3, 3, 0, 0.0, 0).time
        ('4.2 h, and 2 runs of unknown length', 'unknown', '0.0 h')
        """
        if not self.unknown:
            return f"{self.hours:.1f} h"
        runs = f"{self.unknown} run" + "s" * (self.unknown > 1)
        return f"{self.hours:.1f} h, and {runs} of unknown length" if self.hours else "unknown"


def forecast(
    trainings: Iterable[Training], scale: Scale, folder: Path, guesses: Sequence[Seconds] = ()
) -> Forecast:
    """Return what is left of `trainings`.

    Parameters
    ----------
    trainings : iterable of Training
        Runs that two of them share count once.
    scale : Scale
        At which they are made.
    folder : Path
        Of all runs. Seconds are the mean of epochs that runs of the same kind took there: alike in all but
        seed, length and schedule.
    guesses : sequence of callable
        Asked in turn where there is no such run.
    """
    known = _seconds_of_epochs(folder)
    by_path = {folder / each.folder_name(scale): each.recipe(scale) for each in trainings}
    pending = {path: recipe for path, recipe in by_path.items() if not is_finished(path)}
    left, hours, unknown = 0, 0.0, 0
    for path, recipe in pending.items():
        to_do = max(0, recipe.optimizer.epochs - len(epochs(path)))
        left += to_do
        answers = (guess(recipe) for guess in (lambda one: known.get(_kind(one)), *guesses))
        seconds = next((answer for answer in answers if answer is not None), None)
        if seconds is None:
            unknown += 1
        else:
            hours += to_do * seconds / 3600
    return Forecast(len(by_path), len(by_path) - len(pending), left, hours, unknown)


def _seconds_of_epochs(folder: Path) -> dict[str, float]:
    """The mean seconds of an epoch of each kind of run in a folder, finished or not."""
    seconds: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/recipe.yaml")):
        took = [row["seconds"] for row in epochs(path.parent)]
        if took:
            seconds.setdefault(_kind(load_recipe(path)), []).extend(took)
    return {kind: fmean(took) for kind, took in seconds.items()}


def _kind(recipe: Recipe) -> str:
    """All that an epoch's seconds depend on."""
    values = recipe.model_dump(mode="json", include={"model", "data", "sparse", "analysis", "precision"})
    values["data"].pop("root")
    return json.dumps(values, sort_keys=True)
