"""The end of a run: the network as trained, the network pruned, and what its sparsity saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchswat.accounting import cost
from torchswat.convert import desparsify_, has_weights_to_prune, prune_
from torchswat.data import Dataset
from torchswat.errors import InvalidData
from torchswat.training.build import load_model
from torchswat.training.checkpoint import Checkpoint
from torchswat.training.recipe import Recipe
from torchswat.training.views import Views


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy in per cent of one checkpoint.

    Attributes
    ----------
    epoch : int
    sparse, pruned : float
        With sparse weights, and pruned to plain dense modules; each test image is seen once, as it is.
    views : float, optional
        With sparse weights, its scores averaged over the views that the recipe asks for; None where it asks for none.
    dense : bool
        Whether pruning found nothing to set to zero: then all of these are accuracies of a dense network.
    average, average_pruned : float, optional
        Of the averaged weights, where the recipe wants them.
    """

    epoch: int
    sparse: float
    pruned: float
    views: float | None = None
    dense: bool = False
    average: float | None = None
    average_pruned: float | None = None

    def rows(self, which: str, views: str) -> list[tuple[str, str]]:
        """Label and text of each row of the final table; `which` is the epoch in words."""
        note = " (dense)" if self.dense else ""
        rows = [(f"test accuracy, {which} epoch", self.sparse), ("  pruned", self.pruned)]
        if self.views is not None:
            rows.append((f"  views {views}", self.views))
        if self.average is not None and self.average_pruned is not None:
            rows += [("  averaged weights", self.average), ("  averaged, pruned", self.average_pruned)]
        return [(label, f"{value:.2f}%" + (note if "pruned" in label else "")) for label, value in rows]


@dataclass(frozen=True)
class Summary:
    """What a finished run found.

    Attributes
    ----------
    title : str
        The algorithm and its sparsity.
    best, last : Accuracy
        Of the checkpoint with the highest test accuracy, and of the last one. The best is chosen on the test
        images, as the authors' code does, and therefore a little optimistic.
    batch : int
        Images in the step that `cost` is of.
    cost : dict of str to dict
        Multiply-accumulates and bytes of one training step, each as ``dense``, ``formula`` and ``measured``;
        the names are those of `torchswat.accounting.LayerCost`. Counted, not timed.
    seconds : float
        Of training, without evaluation.
    views : str, default "plain"
        Which views the accuracies `Accuracy.views` are averaged over, see `torchswat.training.views`.
    """

    title: str
    best: Accuracy
    last: Accuracy
    batch: int
    cost: dict[str, dict[str, float]]
    seconds: float
    views: Views = "plain"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for summary.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Summary:
        """The inverse of `to_json`."""
        try:
            accuracies = {name: Accuracy(**values[name]) for name in ("best", "last")}
            return cls(**{**values, **accuracies})
        except (KeyError, TypeError) as error:
            raise InvalidData(f"this is no summary of a run: {error!r}") from None

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each row of the final table."""
        return [
            *self.last.rows("last", self.views),
            *self.best.rows("best", self.views),
            ("multiply-accumulates, an image", self._saving("macs", self.batch)),
            ("bytes of weights read backward", self._saving("weights", 1)),
            ("bytes of activations kept, an image", self._saving("activations", self.batch)),
        ]

    def _saving(self, count: str, share: int) -> str:
        """A count, divided by `share`, and how many times smaller than dense it is."""
        dense, measured = self.cost[count]["dense"], self.cost[count]["measured"]
        saving = f" ({dense / measured:.2f}x less)" if measured < dense else ""
        return _short(measured / share) + saving


def title_of(recipe: Recipe) -> str:
    """Name of the algorithm and of its sparsity, for headings.

    Examples
    --------
    >>> from torchswat.training.recipe import load_recipe
    >>> title_of(load_recipe("cifar-paper", ["sparse.algorithm=saw", "sparse.sparsity=0.7"]))
    'saw 70%'
    """
    sparse = recipe.sparse
    if sparse.algorithm == "dense":
        return "dense"
    end = f", dense after {sparse.dense_from} epochs" if sparse.dense_from else ""
    if isinstance(sparse.sparsity, dict):
        return f"{sparse.algorithm} by layer{end}"
    return f"{sparse.algorithm} {100 * sparse.sparsity:.4g}%{end}"


def prune_and_measure(
    recipe: Recipe, dataset: Dataset, checkpoint: Checkpoint, measure: Callable[[nn.Module, Views], float]
) -> tuple[Accuracy, nn.Module]:
    """Evaluate the network of a checkpoint with sparse weights, and again as a pruned plain network.

    Parameters
    ----------
    recipe, dataset, checkpoint
        Of the run.
    measure : callable
        From a network and the views of the test images to its accuracy in per cent.

    Returns
    -------
    Accuracy
        Before and after pruning, over the views of the recipe, and of the averaged weights.
    nn.Module
        The pruned network, of plain torch modules.
    """

    def both(saved: Checkpoint) -> tuple[float, float, bool, float | None, nn.Module]:
        model = load_model(recipe, dataset, saved)
        sparse, prunes = measure(model, "plain"), has_weights_to_prune(model)
        over_views = None if recipe.views == "plain" else measure(model, recipe.views)
        pruned_model = desparsify_(prune_(model) if prunes else model)
        return sparse, measure(pruned_model, "plain"), not prunes, over_views, pruned_model

    averages = both(replace(checkpoint, model=checkpoint.average))[:2] if checkpoint.average else (None, None)
    sparse, pruned, dense, over_views, pruned_model = both(checkpoint)
    return Accuracy(checkpoint.progress.epoch, sparse, pruned, over_views, dense, *averages), pruned_model


def summarise(
    recipe: Recipe,
    dataset: Dataset,
    best: Path,
    last: Path,
    measure: Callable[[nn.Module, Views], float],
    example: Tensor,
    seconds: float,
) -> Summary:
    """Make the summary of a run out of its best and its last checkpoint.

    `measure` is that of `prune_and_measure`, `example` the batch whose training step is counted, float
    (N, C, H, W); `seconds` is how long the training took.
    """
    last_saved = Checkpoint.load(last)
    last_accuracy, _ = prune_and_measure(recipe, dataset, last_saved, measure)
    best_accuracy = last_accuracy
    if best != last:
        best_accuracy, _ = prune_and_measure(recipe, dataset, Checkpoint.load(best), measure)
    with torch.random.fork_rng(devices=[]):
        counted = cost(load_model(recipe, dataset, last_saved), example).to_dict()["total"]
    return Summary(
        title_of(recipe), best_accuracy, last_accuracy, len(example), counted, seconds, recipe.views
    )


def _short(number: float) -> str:
    """A number in three digits and the prefix of its size, as in ``1.25 G``."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.3g} T"
