"""Trainings of experiments: each run once, by several processes side by side, and continued where it stopped.

A run lives in a folder named after all that its result depends on, so figures share their runs and a second
``torchswat reproduce`` finds what the first one did.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import queue
from collections.abc import Iterable, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from torchswat.errors import InvalidData, TorchswatError
from torchswat.experiments.outcome import Trained
from torchswat.experiments.scales import Scale, Training
from torchswat.training.checkpoint import write_atomically
from torchswat.training.interrupt import Interrupted, StopRequest
from torchswat.training.recipe import Recipe, differing_keys
from torchswat.training.run_folder import RunFolder

_FAILED = "failed.json"
_RECORDS = ("recipe.yaml", "metrics.csv", "summary.json", "versions.json", "analysis.csv", _FAILED)
"""The files of a run that tell what it was and found; the others are checkpoints, events and drawings."""


def is_finished(folder: Path) -> bool:
    """Whether a run has ended, well or badly."""
    return (folder / "summary.json").exists() or (folder / _FAILED).exists()


def read(training: Training, folder: Path) -> Trained:
    """Return what a finished run found; its records suffice (`copy_records`)."""
    try:
        curve = tuple(row["test_accuracy"] for row in epochs(folder))
        if (folder / _FAILED).exists():
            failed = json.loads((folder / _FAILED).read_text())
            return Trained(training, folder, failed["chance"], failed["chance"], curve, failed["problem"])
        last = json.loads((folder / "summary.json").read_text())["last"]
        return Trained(training, folder, last["sparse"], last["pruned"], curve)
    except (ValueError, KeyError) as error:
        raise InvalidData(
            f"what the run in {folder} found cannot be read: {error!r}. Delete the folder."
        ) from None


def epochs(folder: Path) -> list[dict[str, float]]:
    """Return the rows of ``metrics.csv``, without what they leave empty; a line under way is left out."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
    except FileNotFoundError:
        return []
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def finished(trainings: Iterable[Training], scale: Scale, folder: Path) -> list[Trained]:
    """Return those of `trainings` that have been run, in their order.

    Raises
    ------
    InvalidData
        A run cannot be read, or was made by another recipe than the one its name stands for.
    """
    found = []
    for training in trainings:
        path = folder / training.folder_name(scale)
        if is_finished(path):
            _refuse_other_recipe(path, training.recipe(scale))
            found.append(read(training, path))
    return found


def _refuse_other_recipe(path: Path, recipe: Recipe) -> None:
    """A default that has changed since the run changes the recipe, but not the name of its folder."""
    changed = differing_keys(RunFolder.open(path).recipe(), recipe)
    if changed:
        raise InvalidData(
            f"the run in {path} is of another recipe: it differs in {', '.join(changed)}. Move the folder away, "
            "and the run is made again."
        )


def copy_records(trained: Iterable[Trained], target: Path) -> None:
    """Copy what tells of each run, but no checkpoints, into folders of the same names."""
    for each in trained:
        for name in _RECORDS:
            source = each.folder / name
            if source.exists():
                write_atomically(target / each.folder.name / name, source.read_bytes())


def copy_measured(source: Path, target: Path) -> None:
    """Copy what was timed beside the runs."""
    for path in sorted(source.glob("measured-*.json")):
        write_atomically(target / path.name, path.read_bytes())


def complete(
    trainings: Sequence[Training],
    scale: Scale,
    folder: Path,
    jobs: int,
    console: Console,
    among: Iterable[Training] = (),
) -> list[Trained]:
    """Run what has not been run yet, and return all of `trainings` in their order.

    Parameters
    ----------
    trainings : sequence of Training
        Each once.
    scale : Scale
        Decides their recipes.
    folder : Path
        Of all runs.
    jobs : int
        How many run side by side, each in a process of its own with its share of the cores.
    console : Console
        Gets a line for each run that ends and, on a terminal, a bar.
    among : iterable of Training, optional
        All trainings that the bar is over, where more are to follow.

    Raises
    ------
    Interrupted
        Ctrl-C or SIGTERM came; each run under way was saved and is continued by the next call.
    TorchswatError
        A training could not be started or was killed.
    """
    folders = {training: folder / training.folder_name(scale) for training in trainings}
    pending = {path: training.recipe(scale) for training, path in folders.items() if not is_finished(path)}
    if pending:
        every = {folder / one.folder_name(scale): one.recipe(scale) for one in {*trainings, *among}}
        _Workers(pending, every, min(jobs, len(pending)), console).work()
    return finished(trainings, scale, folder)


class _Workers:
    """Processes that take one run after another from a queue, and the bar above them."""

    def __init__(
        self, pending: dict[Path, Recipe], every: dict[Path, Recipe], jobs: int, console: Console
    ) -> None:
        self.pending, self.every, self.console = pending, every, console
        context = multiprocessing.get_context("spawn")  # a forked torch may hang on its threads
        self.tasks, self.results = context.Queue(), context.Queue()
        for path, recipe in pending.items():
            self.tasks.put((str(path), recipe.model_dump(mode="json")))
        for _ in range(jobs):
            self.tasks.put(None)
        threads = max(1, _cores() // jobs)
        self.processes: list[SpawnProcess] = [
            context.Process(target=_work, args=(self.tasks, self.results, threads), daemon=True)
            for _ in range(jobs)
        ]

    def work(self) -> None:
        """Run everything; leave no process behind."""
        total = sum(recipe.optimizer.epochs for recipe in self.every.values())
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()
        bar = Progress(
            *(*columns, TextColumn("epochs, ends in"), TimeRemainingColumn()),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with StopRequest() as stop, bar:
            task = bar.add_task(f"{len(self.every)} runs", total=total, completed=self._epochs_done())
            for process in self.processes:
                process.start()
            try:
                self._follow(stop, bar, task)
            finally:
                for process in self.processes:
                    if process.is_alive():
                        process.terminate()  # which lets it save
                for process in self.processes:
                    process.join()

    def _follow(self, stop: StopRequest, bar: Progress, task: Any) -> None:
        done = 0
        while done < len(self.pending):
            bar.update(task, completed=self._epochs_done())
            try:
                path, problem = self.results.get(timeout=0.5)
            except queue.Empty:
                if stop.requested:
                    raise Interrupted(
                        f"interrupted with {len(self.pending) - done} runs to go; the same command goes on"
                    ) from None
                self._look_for_killed()
                continue
            if problem is not None:
                raise TorchswatError(f"the run {path} could not be made: {problem}")
            done += 1
            said = f"[{done}/{len(self.pending)}] {Path(path).name}: {_accuracy(Path(path))}"
            bar.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def _epochs_done(self) -> int:
        return sum(map(_epochs_done, self.every))

    def _look_for_killed(self) -> None:
        for process in self.processes:
            if process.exitcode not in (None, 0) and self.results.empty():
                raise TorchswatError(
                    f"a training was killed (exit code {process.exitcode}; was there enough memory?). "
                    "The same command goes on from its last checkpoint; --jobs 1 needs less."
                )


def _cores() -> int:
    """How many cores this process may use, which can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _epochs_done(folder: Path) -> int:
    return len(epochs(folder))


def _accuracy(folder: Path) -> str:
    if (folder / _FAILED).exists():
        return "broke off: " + json.loads((folder / _FAILED).read_text())["problem"]
    return f"{json.loads((folder / 'summary.json').read_text())['last']['sparse']:.2f} %"


# ---- in a process of its own -------------------------------------------------------------------------------


def _work(tasks: Any, results: Any, threads: int) -> None:
    """Take runs until there are no more; errors are reported, not raised."""
    import torch

    from torchswat.engine.allocator import tune_allocator

    tune_allocator()
    torch.set_num_threads(threads)
    while (task := tasks.get()) is not None:
        path, values = task
        try:
            train_or_continue(Path(path), Recipe.model_validate(values))
        except Interrupted:
            return
        except (TorchswatError, OSError) as error:
            results.put((path, str(error)))
            return
        results.put((path, None))


def train_or_continue(folder: Path, recipe: Recipe) -> None:
    """Train in `folder`, or continue there; a training that breaks off among NaN is a result too."""
    from torchswat.errors import NotFinite
    from torchswat.training.build import build_data
    from torchswat.training.loop import resume, train

    try:
        if (folder / "recipe.yaml").exists():
            resume(folder)
        else:
            train(recipe, folder)
    except NotFinite as error:
        chance = 100 / len(build_data(recipe).classes)
        failed = {"problem": str(error).partition(". ")[0], "chance": chance}
        write_atomically(folder / _FAILED, (json.dumps(failed, indent=1) + "\n").encode())
