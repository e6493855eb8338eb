"""Where a run continues: at the newest checkpoint that is whole, whatever became of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from torchswat.errors import InvalidData, MissingData
from torchswat.training.checkpoint import Checkpoint, Progress, checkpoint_path, list_checkpoints
from torchswat.training.run_folder import RunFolder


@dataclass(frozen=True)
class Recovery:
    """What was found in the folder of a run.

    Attributes
    ----------
    checkpoint : Path or None
        The one to continue from; None where the run starts at its beginning.
    progress : Progress
        That of the checkpoint, with the best checkpoint that is still there.
    notes : list of str
        What the user should know.
    damaged : tuple of Path
        Newer checkpoints, which cannot be read.
    """

    checkpoint: Path | None
    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    damaged: tuple[Path, ...] = ()

    def set_aside(self) -> None:
        """Rename the damaged checkpoints: as the newest ones, they would be kept instead of the new ones."""
        for path in self.damaged:
            path.replace(path.with_name(f"{path.name}.damaged"))


def recover(folder: RunFolder) -> Recovery:
    """Find the newest checkpoint that is whole, and the best one.

    Raises
    ------
    InvalidData
        No checkpoint is whole, or the run had come further than its first one and none is there.
    """
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder.checkpoints)):
        progress = _progress(path)
        if progress is None:
            damaged.append(path)
            continue
        notes = []
        if damaged:
            notes.append(
                f"{_names(damaged)} cannot be read (damaged or truncated) and will be renamed to *.damaged: "
                f"continuing from {path.name}, after step {progress.step}"
            )
        progress, note = _with_existing_best(folder, path, progress)
        return Recovery(path, progress, [*notes, *note], tuple(damaged))
    epochs = len(folder.metrics())
    # After the first epoch its row is written, then its checkpoint: one row alone can be a killed run.
    if damaged or epochs > 1 or (epochs == 1 and not folder.checkpoints.is_dir()):
        found = f"{_names(damaged)} cannot be read" if damaged else "there is no checkpoint"
        raise InvalidData(
            f"the run in {folder.path} cannot be continued: {epochs} epoch(s) are recorded, but {found} in "
            f"{folder.checkpoints}. Bring back an intact copy of a checkpoint, or train again in another "
            f"folder: torchswat train --recipe {folder.path / 'recipe.yaml'} --output NEW_FOLDER"
        )
    return Recovery(None, notes=["no checkpoint had been written: the run starts at its beginning"])


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that can be read, oldest first; all of them are read."""
    return [path for path in list_checkpoints(folder) if _progress(path) is not None]


def _progress(path: Path) -> Progress | None:
    """Where a checkpoint stands; None where it is damaged or not there."""
    try:
        return Checkpoint.load(path).progress
    except (InvalidData, MissingData):
        return None


def _with_existing_best(folder: RunFolder, path: Path, progress: Progress) -> tuple[Progress, list[str]]:
    """Replace the best checkpoint by the best of those that are whole, where it is damaged or gone."""
    best = checkpoint_path(folder.checkpoints, progress.best_step)
    if not progress.best_step or best == path or _progress(best) is not None:
        return progress, []
    accuracies = {row.step: row.test_accuracy for row in folder.metrics() if row.step <= progress.step}
    steps = {checkpoint_path(folder.checkpoints, step): step for step in accuracies}
    left = [steps[each] for each in whole_checkpoints(folder.checkpoints) if each in steps]
    if not left:
        note = f"the best checkpoint so far, {best.name}, is damaged or gone, and there is no other"
        return replace(progress, best_accuracy=-1.0, best_step=0), [note]
    step = max(left, key=lambda step: accuracies[step])
    note = f"the best checkpoint so far, {best.name}, is damaged or gone: now it is that of step {step}"
    return replace(progress, best_accuracy=accuracies[step], best_step=step), [note]


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
