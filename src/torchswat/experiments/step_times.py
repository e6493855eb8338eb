"""Seconds of a training step of each kind of training, measured side by side, and what a step multiplies.

Accuracy over time is drawn from these and not from the seconds that runs took: runs are made on any machine, at
any time, beside anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchswat.accounting import cost
from torchswat.bench.products import bfloat16_absent
from torchswat.bench.race import faster, median, race, spread
from torchswat.bench.record import circumstances
from torchswat.convert import sparse_layers
from torchswat.data import Batches, Dataset
from torchswat.experiments.outcome import Row
from torchswat.experiments.scales import Scale, Training
from torchswat.training.build import build_data, build_model, build_optimizer, train_batches
from torchswat.training.checkpoint import write_atomically
from torchswat.training.diagnose import is_finite
from torchswat.training.evaluate import autocast_to
from torchswat.training.recipe import Recipe

_STILL = 1e-6  # times the learning rate: labels are random, and nothing may be learnt until it overflows
_LATE = 1 << 30  # an iteration after which every schedule has ended
_LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def name_of(recipe: Recipe, dense: bool = False) -> str:
    """Return what steps of a recipe are called, or those of its dense end: of sparse layers that keep everything.

    Examples
    --------
    >>> from torchswat.training.recipe import load_recipe
    >>> name_of(load_recipe("cifar-paper")), name_of(load_recipe("cifar-paper"), dense=True)
    ('swat 0.8 float32', 'dense end of swat 0.8 float32')
    """
    sparse = recipe.sparse
    if sparse.algorithm == "dense":
        return f"dense {recipe.precision}"
    block = "" if sparse.block == (1, 1) else " {}x{}".format(*sparse.block)
    name = f"{sparse.algorithm} {sparse.sparsity:g}{block} {recipe.precision}"
    return f"dense end of {name}" if dense else name


def path_of(recipe: Recipe, folder: Path) -> Path:
    """Return the file that holds the times of steps with the network, the data and the batch of a recipe."""
    width = f"x{recipe.model.width}" if recipe.model.width else ""
    return (
        folder
        / f"measured-steps-{recipe.model.name}{width}-{recipe.data.name}-b{recipe.data.batch_size}.json"
    )


def read_step_times(trainings: Sequence[Training], scale: Scale, folder: Path) -> Row | None:
    """Return what `step_times` has measured, or None: also where it lacks one of the kinds of steps.

    Of bfloat16 none is asked for, which not every processor multiplies.
    """
    recipes = _recipes(trainings, scale)
    path = path_of(next(iter(recipes.values())), folder)
    if not path.exists():
        return None
    times = json.loads(path.read_text())
    asked = {name for name, recipe in recipes.items() if recipe.precision == "float32"}
    return times if asked <= set(times["steps"]) else None


def _recipes(trainings: Sequence[Training], scale: Scale) -> dict[str, Recipe]:
    """A recipe for each kind of step, by its name."""
    recipes: dict[str, Recipe] = {}
    for recipe in (training.recipe(scale) for training in trainings):
        for is_end in (False, True)[: 1 + (recipe.sparse.dense_from is not None)]:
            recipes.setdefault(name_of(recipe, is_end), recipe)
    return recipes


def step_times(trainings: Sequence[Training], scale: Scale, folder: Path, repeats: int) -> Row:
    """Time a step of each kind of training, all in turns in one process, unless the file is there already.

    A step is what the training loop does: forward, loss, backward, the look for what is not finite, the
    optimizer; on one batch of random images as large as the recipe's. Dense steps, those of a dense end among
    them, are timed in both memory layouts, and the faster one counts.

    Parameters
    ----------
    trainings : sequence of Training
        Of one network, data set and batch size.
    scale : Scale
        At which they are made.
    folder : Path
        Of all runs, for the file.
    repeats : int
        Timed rounds.

    Returns
    -------
    dict
        ``circumstances``; ``steps_per_epoch``; ``batch_size``; ``data_ms``, the median of reading and augmenting
        a batch; ``steps``, by `name_of`: ``ms``, the median, ``spread`` over the rounds, ``layout``, and ``macs``,
        the multiply-accumulates of a step as the paper counts; ``samples``; ``remarks``.
    """
    known = read_step_times(trainings, scale, folder)
    if known is not None:
        return known
    recipes = _recipes(trainings, scale)
    first = next(iter(recipes.values()))
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    dataset = build_data(first)
    batches = train_batches(first, dataset)
    remarks = []
    absent = bfloat16_absent()
    if absent and any(recipe.precision == "bfloat16" for recipe in recipes.values()):
        recipes = {name: recipe for name, recipe in recipes.items() if recipe.precision != "bfloat16"}
        remarks.append(absent)
    situation = circumstances(seed=first.seed, repeats=repeats)
    contestants: dict[str, Callable[[], object]] = {"data": _reader(batches)}
    for name, recipe in recipes.items():
        is_end = name != name_of(recipe)
        for layout in _LAYOUTS if is_end or recipe.sparse.algorithm == "dense" else ("nchw",):
            contestants[f"{name}, {layout}"] = _step(recipe, dataset, layout, is_end)
    samples = race(contestants, repeats)
    steps = {}
    for name, recipe in recipes.items():
        best = faster({key: times for key, times in samples.items() if key.startswith(f"{name}, ")})
        steps[name] = {
            "ms": median(samples[best]),
            "spread": spread(samples[best]),
            "layout": best.removeprefix(f"{name}, "),
            "macs": first.data.batch_size
            * _macs_of_an_image(recipe, dataset, is_end=name != name_of(recipe)),
        }
    found = {
        "circumstances": situation,
        "batch_size": first.data.batch_size,
        "steps_per_epoch": len(batches),
        "data_ms": median(samples["data"]),
        "steps": steps,
        "samples": samples,
        "remarks": remarks,
    }
    write_atomically(path_of(first, folder), (json.dumps(found, indent=1) + "\n").encode())
    return found


def _reader(batches: Batches) -> Callable[[], object]:
    """Read the next training batch, epoch after epoch."""
    iterator = iter(batches)

    def read() -> object:
        nonlocal iterator
        batch = next(iterator, None)
        if batch is None:
            batches.set_epoch(batches.epoch + 1)
            iterator = iter(batches)
            batch = next(iterator)
        return batch

    return read


def _random_batch(dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, *dataset.shape), torch.randint(len(dataset.classes), (size,))


def _model(recipe: Recipe, dataset: Dataset) -> nn.Module:
    return build_model(recipe, dataset, len(dataset.train) // recipe.data.batch_size)


def _step(recipe: Recipe, dataset: Dataset, layout: str, is_end: bool) -> Callable[[], None]:
    model = _model(recipe, dataset).train().to(memory_format=_LAYOUTS[layout])  # type: ignore[call-overload]
    if is_end:
        for _, layer in sparse_layers(model):
            layer.sparse.iteration = _LATE
    images, labels = _random_batch(dataset, recipe.data.batch_size)
    images = images.contiguous(memory_format=_LAYOUTS[layout])
    optimizer = build_optimizer(recipe, model)
    for group in optimizer.param_groups:
        group["lr"] *= _STILL

    def step() -> None:
        with autocast_to(recipe.precision, torch.device("cpu")):
            outputs = model(images).float()
        loss = cross_entropy(outputs, labels, label_smoothing=recipe.optimizer.label_smoothing)
        loss.backward()
        assert is_finite([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _macs_of_an_image(recipe: Recipe, dataset: Dataset, is_end: bool) -> float:
    """Multiply-accumulates of forward and backward pass, by the sparsity asked for (the paper's section 3.3)."""
    images, _ = _random_batch(dataset, 2)
    counted = cost(_model(recipe, dataset), images).total("macs")
    return (counted.dense if is_end else counted.formula) / len(images)


def parts(recipe: Recipe) -> dict[str, int]:
    """Return how many epochs of a training have steps of which name, in their order.

    Examples
    --------
    >>> from torchswat.training.recipe import load_recipe
    >>> parts(load_recipe("cifar-paper", ["optimizer.epochs=8", "sparse.dense_from=6"]))
    {'swat 0.8 float32': 6, 'dense end of swat 0.8 float32': 2}
    """
    epochs, end = recipe.optimizer.epochs, recipe.sparse.dense_from
    if end is None or recipe.sparse.algorithm == "dense":
        return {name_of(recipe): epochs}
    return {name_of(recipe): end, name_of(recipe, dense=True): epochs - end}


def over_epochs(recipe: Recipe, times: Row) -> list[tuple[float, float]] | None:
    """Return seconds and multiply-accumulates that have passed after each epoch; None of steps not timed.

    Reading and augmenting the images counts, evaluation does not.
    """
    passed, seconds, macs = [], 0.0, 0.0
    for name, epochs in parts(recipe).items():
        step = times["steps"].get(name)
        if step is None:
            return None
        for _ in range(epochs):
            seconds += times["steps_per_epoch"] * (step["ms"] + times["data_ms"]) / 1000
            macs += times["steps_per_epoch"] * step["macs"]
            passed.append((seconds, macs))
    return passed


def seconds_of_an_epoch(folder: Path) -> Callable[[Recipe], float | None]:
    """Return a function from a recipe to the mean seconds of its epochs, as far as steps like its were timed."""

    def seconds(recipe: Recipe) -> float | None:
        path = path_of(recipe, folder)
        if recipe.sparse.scope != "nchw" or recipe.sparse.block != (1, 1) or not path.exists():
            return None
        passed = over_epochs(recipe, json.loads(path.read_text()))
        return passed[-1][0] / len(passed) if passed else None

    return seconds
