"""From a recipe to the things it names: data, network, optimizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from torchswat import data, models
from torchswat.convert import load_sparse_state_, sparse_layers, sparsify_
from torchswat.data import Batches, Dataset, RandomCrop
from torchswat.data.augment import Augmentation
from torchswat.errors import InvalidData, InvalidValue
from torchswat.fuse import fuse_
from torchswat.models.registry import MODELS
from torchswat.schedules import Cubic, DenseEnd
from torchswat.training.checkpoint import Checkpoint
from torchswat.training.muon import Muon
from torchswat.training.recipe import OptimizerSection, Recipe

_IMAGES_TO_START_FROM = 2000


def build_data(recipe: Recipe) -> Dataset:
    """Load the data set of a recipe, cut to its limits."""
    section = recipe.data
    dataset = data.load(section.name, section.root, **section.options)
    if section.train_limit:
        dataset = replace(dataset, train=dataset.train.limit(section.train_limit))
    if section.test_limit:
        dataset = replace(dataset, test=dataset.test.limit(section.test_limit))
    return dataset


def train_batches(recipe: Recipe, dataset: Dataset, rank: int = 0, processes: int = 1) -> Batches:
    """Training batches in an order drawn from the seed; a last batch that is not full is left out."""
    return Batches(
        dataset.train,
        recipe.data.batch_size,
        shuffle=True,
        seed=recipe.seed,
        augment=build_augmentation(recipe, dataset),
        drop_last=True,
        rank=rank,
        world_size=processes,
    )


def build_augmentation(recipe: Recipe, dataset: Dataset) -> Augmentation | None:
    """Return the data set's augmentation with what the recipe changes of it; None where it wants none.

    Raises
    ------
    InvalidValue
        The recipe shifts a folder of images, of which boxes are taken, or shifts by an image's side or more.
    """
    section, own = recipe.data, dataset.augmentation
    if not section.augment:
        return None
    asked = {"padding": section.shift, "border": section.border, "flip": section.flip}
    changes = {name: value for name, value in asked.items() if value is not None}
    moves = changes.keys() & {"padding", "border"}
    if moves and not isinstance(own, RandomCrop):
        raise InvalidValue(
            f"data.{'border' if section.shift is None else 'shift'} is for small images in memory. {dataset.name} is a "
            "folder of images, of which random boxes are taken: leave data.shift and data.border out."
        )
    augmentation = replace(own, **changes)
    side = min(dataset.shape[1:])
    if moves and isinstance(augmentation, RandomCrop) and augmentation.padding >= side:
        raise InvalidValue(
            f"data.shift is {augmentation.padding}: the images of {dataset.name} have {side} pixels a side; "
            f"take 0 to {side - 1}."
        )
    return augmentation


def test_batches(recipe: Recipe, dataset: Dataset, rank: int = 0, processes: int = 1) -> Batches:
    """All test images, as they are and in order."""
    return Batches(dataset.test, recipe.data.batch_size, rank=rank, world_size=processes)


def build_model(recipe: Recipe, dataset: Dataset, steps_per_epoch: int) -> nn.Module:
    """Make the sparse network of a recipe with fresh weights drawn from its seed.

    The form is the recipe's; where it names none, the form made for images nearest in size to the data's. Steps of
    an epoch are those of the training, which may have been on other data than `dataset`.
    """
    torch.manual_seed(recipe.seed)
    section = recipe.model
    colours, height, _ = dataset.shape
    model = models.create(
        section.name,
        form=section.form or _nearest_form(section.name, height),
        num_classes=len(dataset.classes),
        in_channels=colours,
        width=section.width,
    )
    return sparsify_as(recipe, model, steps_per_epoch)


def initialise_from_data_(recipe: Recipe, model: nn.Module, dataset: Dataset) -> None:
    """Let a network that starts from its data (`Airbench.initialise_from_`) see the first images, in place."""
    initialise_from_ = getattr(model, "initialise_from_", None)
    if initialise_from_ is not None:
        first = dataset.train.subset(torch.arange(min(_IMAGES_TO_START_FROM, len(dataset.train))))
        initialise_from_(next(iter(Batches(first, len(first))))[0])


def sparsify_as(recipe: Recipe, model: nn.Module, steps_per_epoch: int) -> nn.Module:
    """Make a plain network sparse in place, as the recipe says, and fuse what lies between its layers."""
    section = recipe.sparse
    targets = section.sparsity if isinstance(section.sparsity, dict) else {"*": section.sparsity}

    def over_time(final: float) -> float | Cubic | DenseEnd:
        rising = Cubic(final, steps=section.ramp) if section.ramp else final
        if section.dense_from is None:
            return rising
        return DenseEnd(rising, begin=section.dense_from * steps_per_epoch)

    by_layer = {name: over_time(final) for name, final in targets.items()}
    sparsify_(
        model,
        algorithm=section.algorithm,
        sparsity=by_layer,
        scope=section.scope,
        method=section.method,
        exact=section.exact,
        period=section.period,
        warmup=section.warmup,
        skip=section.skip,
        norm_input=section.norm_input,
        block=section.block,
    )
    if any(True for _ in sparse_layers(model)):
        fuse_(model)
    return model


def load_model(recipe: Recipe, dataset: Dataset, checkpoint: Checkpoint) -> nn.Module:
    """Make the sparse network of a recipe with the weights and thresholds of a checkpoint, on the CPU."""
    with torch.random.fork_rng():
        model = build_model(recipe, dataset, checkpoint.progress.steps_per_epoch)
    load_weights_(model, checkpoint)
    return model


def load_weights_(model: nn.Module, checkpoint: Checkpoint, rank: int = 0) -> None:
    """Put weights of a checkpoint, and thresholds as the process `rank` had them, into its sparse network."""
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise InvalidData(f"the checkpoint does not fit the model of its recipe: {error}") from None
    thresholds = {
        name.removeprefix("sparse/"): tensor
        for name, tensor in checkpoint.ranks[rank].items()
        if name.startswith("sparse/")
    }
    load_sparse_state_(model, thresholds)


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are trained.

    Each group has two keys beside torch's, for `set_learning_rates_`: ``peak_lr`` and ``epochs``, at the end of
    which its schedule ends. With ``decay_norm: false`` batch norm's parameters do not decay.
    """
    build = _muon if recipe.optimizer.name == "muon" else _sgd
    return build(recipe.optimizer, model)


def set_learning_rates_(recipe: Recipe, optimizer: torch.optim.Optimizer, epoch: float) -> None:
    """Set the learning rate of every group to that of the moment, in epochs (2.5: half of the third)."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * recipe.optimizer.share_at(epoch, group["epochs"])


def _sgd(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    of_norm = _parameters_of_norms(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = [parameter for parameter in trained if id(parameter) in of_norm]
    other = [parameter for parameter in trained if id(parameter) not in of_norm]
    groups = [
        {"params": other, "weight_decay": section.weight_decay},
        {"params": norm, "weight_decay": section.weight_decay if section.decay_norm else 0.0},
    ]
    return torch.optim.SGD(
        [{**group, "peak_lr": section.lr, "epochs": section.epochs} for group in groups if group["params"]],
        lr=section.lr_at(0),
        momentum=section.momentum,
        nesterov=section.nesterov,
    )


def _muon(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    """Muon for filters, which it scales, so they need no decay; stochastic gradient descent for the rest.

    Decay is relative to the learning rate: at its peak every group loses the share `weight_decay` in a step.
    """
    of_norm = _parameters_of_norms(model)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    of_first = (
        {id(parameter) for parameter in first.parameters()} if first and section.first_epochs else set()
    )
    momentum = section.momentum if section.other_momentum is None else section.other_momentum
    groups: dict[tuple[float, float, int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        rate = {4: section.lr, 2: section.head_lr}.get(parameter.dim(), section.bias_lr) or section.lr
        decays = parameter.dim() != 4 and (section.decay_norm or id(parameter) not in of_norm)
        epochs = (section.first_epochs if id(parameter) in of_first else None) or section.epochs
        key = (rate, section.weight_decay / rate if decays else 0.0, epochs, parameter.dim() == 4)
        groups.setdefault(key, []).append(parameter)
    return Muon(
        [
            {
                "params": parameters,
                "lr": rate * section.share_at(0),
                "weight_decay": decay,
                "momentum": section.momentum if orthogonalize else momentum,
                "orthogonalize": orthogonalize,
                "peak_lr": rate,
                "epochs": epochs,
            }
            for (rate, decay, epochs, orthogonalize), parameters in groups.items()
        ],
        nesterov=section.nesterov,
    )


def _parameters_of_norms(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    }


def _nearest_form(name: str, height: int) -> str:
    forms = [model for model in MODELS if model.name == name]
    if not forms:
        return models.info(name).form  # raises, with the nearest name
    return min(forms, key=lambda model: abs(model.image_size - height)).form
