"""A trained network again, from the folder of its run or from one checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchswat.convert import desparsify_, has_weights_to_prune, prune_
from torchswat.errors import InvalidData, MissingData
from torchswat.progress import Progress, counted
from torchswat.training.build import load_model, test_batches
from torchswat.training.check_data import data_to_test
from torchswat.training.checkpoint import Checkpoint, checkpoint_path
from torchswat.training.evaluate import evaluate, means
from torchswat.training.processes import device
from torchswat.training.recipe import make_recipe
from torchswat.training.recover import whole_checkpoints
from torchswat.training.run_folder import RunFolder
from torchswat.training.views import check_views, known_views


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: the file itself, or the best one of the run in a folder.

    Raises
    ------
    MissingData
        There is neither.
    InvalidData
        The newest checkpoint of the run, which knows the best one, or the best one itself is damaged or gone.
    """
    if not path.is_dir():
        return path
    folder = RunFolder.open(path)
    wanted = folder.latest_checkpoint()
    if wanted is None:
        raise MissingData(f"the run in {path} has no checkpoint yet")
    try:
        progress = Checkpoint.load(wanted).progress  # the newest knows which one is the best
        if progress.best_step:
            wanted = checkpoint_path(folder.checkpoints, progress.best_step)
            Checkpoint.load(wanted)
    except (InvalidData, MissingData) as error:
        others = ", ".join(str(other) for other in whole_checkpoints(folder.checkpoints))
        advice = f"These are whole, name one of them: {others}" if others else "No other one is whole."
        raise InvalidData(f"the best checkpoint of {path} cannot be read: {error}. {advice}") from None
    return wanted


def evaluate_saved(
    path: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    pruned: bool = False,
    views: str = "plain",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a trained network on test images.

    Parameters
    ----------
    path : Path
        A checkpoint, or the folder of a run, whose best checkpoint is taken.
    data : str, optional
        Another data set, with as many classes; by default the one it was trained on.
    root : Path, optional
        Folder of the data sets; by default that of the training.
    pruned : bool, default False
        Prune the network to plain dense modules first.
    views : str, default "plain"
        Average the scores over these views of each image, see `torchswat.training.views`.
    progress : callable, optional
        Called after every batch with the number done and the number of all.

    Returns
    -------
    dict
        ``accuracy`` in per cent, ``loss``, ``images``, ``data``, ``checkpoint``, ``epoch``, ``pruned``, ``views``.

    Raises
    ------
    UnknownName
        There are no such views.
    InvalidValue
        The views mirror images that are not mirrored in training, such as digits.
    """
    wanted = known_views(views)
    file = find_checkpoint(path)
    saved = Checkpoint.load(file)
    changes = {key: value for key, value in (("name", data), ("root", root)) if value is not None}
    if data is not None:
        changes |= {"options": {}, "train_limit": None, "test_limit": None}
    recipe = make_recipe({**saved.recipe, "data": {**saved.recipe["data"], **changes}})
    torch.manual_seed(recipe.seed)
    dataset = data_to_test(recipe)
    check_views(wanted, recipe, dataset)
    model: nn.Module = load_model(recipe, dataset, saved)
    if pruned:
        model = desparsify_(prune_(model) if has_weights_to_prune(model) else model)
    place = device()
    at = {"device": place, "views": wanted, "precision": recipe.precision}
    sums = evaluate(model.to(place), counted(test_batches(recipe, dataset), progress), **at)
    loss, accuracy = means(sums)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "images": len(dataset.test),
        "data": recipe.data.name,
        "checkpoint": str(file),
        "epoch": saved.progress.epoch,
        "pruned": pruned,
        "views": views,
    }
