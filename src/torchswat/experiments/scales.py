"""One experiment at three sizes: a recipe for each, and in words what the smaller one changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchswat.errors import UnknownName
from torchswat.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Scale:
    """A size of all trainings.

    Attributes
    ----------
    name, summary : str
        What it is called, and what it is for.
    seeds : tuple of int
        Every training is run once with each.
    sparsities : tuple of float
        Of the figures that compare algorithms over sparsity (2a, 2b, 3).
    tradeoff : tuple of float
        Of the figures that show SWAT and SAW over sparsity (4, inference).
    base : str or None
        The recipe of all trainings; None: those of the paper.
    networks : dict of str to tuple
        For each network of the paper, the name and the width of what stands for it.
    data : dict of str to str
        For each data set of the paper, the one that stands for it.
    settings : tuple of str
        Changes to the recipe, as ``KEY=VALUE``.
    only_claims : bool
        Figures of several networks are drawn only where the paper claims something of them.
    """

    name: str
    summary: str
    seeds: tuple[int, ...]
    sparsities: tuple[float, ...]
    tradeoff: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    base: str | None = None
    networks: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    only_claims: bool = False

    def network(self, name: str) -> str:
        """Return what stands for a network of the paper, in words such as ``resnet18 x16``."""
        stand_in, width = self.networks.get(name, (name, None))
        return stand_in + (f" x{width}" if width else "")

    def stands_for(self, data: str) -> str:
        """Return the data set that stands for one of the paper's."""
        return self.data.get(data, data)


_PAPER_RECIPES = {"densenet121": "densenet-paper", "wrn28-10": "wrn-paper"}

_SMOKE = (
    "data.batch_size=32",
    "data.train_limit=192",
    "data.test_limit=100",
    "optimizer.epochs=2",
    "optimizer.milestones=[1]",
    "optimizer.lr=0.05",
    "analysis.every_steps=4",
    "threads=1",
)
_CPU = (
    "analysis.every_steps=10",
    "checkpoint.every_steps=5",  # a step takes many seconds
    "views=plain",  # the accuracy that is drawn
)
_NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "densenet121", "wrn28-10")
_DATA = ("cifar10", "cifar100", "imagenet")

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "seconds: shows that every step works and says nothing about the paper",
            seeds=(0, 1),
            sparsities=(0.5, 0.8),
            networks=dict.fromkeys(_NETWORKS, ("resnet-digits", 8)),
            data=dict.fromkeys(_DATA, "digits"),
            settings=_SMOKE,
        ),
        Scale(
            "cpu",
            "days on two cores: all of CIFAR in the eight epochs of a network made for speed",
            seeds=(0, 1, 2),
            sparsities=(0.8,),
            tradeoff=(0.5, 0.7, 0.8),
            base="cifar-fast",
            networks={  # wide and not deep, but for the networks whose depth is the point
                **dict.fromkeys(_NETWORKS, ("airbench", None)),
                **dict.fromkeys(("resnet50", "resnet101"), ("airbench-deep", 32)),
            },
            data={"imagenet": "cifar10"},
            settings=_CPU,
            only_claims=True,
        ),
        Scale(
            "paper",
            "months on a GPU: the paper's networks, data and schedules",
            seeds=(0, 1, 2),
            sparsities=(0.5, 0.6, 0.7, 0.8, 0.9),
            settings=("analysis.every_steps=500",),
        ),
    )
}


def scale_of(name: str, seeds: int | None = None, settings: tuple[str, ...] = ()) -> Scale:
    """Return the scale of that name, with another number of seeds and with further settings where given.

    Raises
    ------
    UnknownName, InvalidValue
        A scale or a setting that is not understood; with the nearest known name.

    Examples
    --------
    >>> scale_of("cpu", seeds=5, settings=("optimizer.epochs=2",)).seeds
    (0, 1, 2, 3, 4)
    """
    if name not in SCALES:
        raise UnknownName.of("scale", name, SCALES)
    chosen = SCALES[name]
    load_recipe(chosen.base or "cifar-paper", settings)  # a mistake in them is told now, and not after hours
    changes: dict[str, Any] = {"settings": (*chosen.settings, *settings)}
    if seeds is not None:
        changes["seeds"] = tuple(range(seeds))
    return Scale(**{**vars(chosen), **changes})


@dataclass(frozen=True)
class Training:
    """One training: what is asked in the paper's terms, at some scale.

    Attributes
    ----------
    network, data : str
        The paper's; what stands for them is the scale's business.
    algorithm, scope : str
        As in a recipe.
    sparsity : float
        As in a recipe; 0 for dense.
    seed : int
        Of weights, batches and masks.
    settings : tuple of str
        Further values of its recipe, as ``KEY=VALUE``; they are part of what is asked, not of the scale.
    """

    network: str
    data: str
    algorithm: str
    sparsity: float
    seed: int
    scope: str = "nchw"
    settings: tuple[str, ...] = ()

    def recipe(self, scale: Scale) -> Recipe:
        """Return the recipe of this training at a scale.

        Examples
        --------
        >>> training = Training("resnet18", "cifar100", "swat", 0.8, seed=0)
        >>> recipe = training.recipe(SCALES["smoke"])
        >>> recipe.model.name, recipe.data.name, recipe.sparse.sparsity
        ('resnet-digits', 'digits', 0.8)
        """
        return self._recipe(scale.networks.get(self.network, (self.network, None)), scale)

    def reductions(self, scale: Scale) -> list[str]:
        """Return in words every value in which the recipe at this scale departs from the paper's."""
        paper = _flat(self._recipe((self.network, None), SCALES["paper"]))
        here = _flat(self.recipe(scale))
        telling = [key for key in here if key.partition(".")[0] in ("model", "data", "sparse", "optimizer")]
        changed = [key for key in telling if here[key] != paper.get(key)]
        said = []
        if scale.base:  # what is its own is one change, not ten
            changed = [key for key in changed if key in _WORDS or not key.startswith("optimizer.")]
            changed = [key for key in changed if key not in _OF_BASE]
            said = [
                f"optimizer, learning rates and augmentation of the recipe {scale.base} "
                "(paper: SGD in steps, random crops and flips)"
            ]
        return [
            f"{_WORDS.get(key, key)} {_said(here[key], key)} (paper: {_said(paper.get(key), key)})"
            for key in changed
        ] + said

    def _recipe(self, network: tuple[str, int | None], scale: Scale) -> Recipe:
        stand_in, width = network
        data = scale.stands_for(self.data)
        paper = "imagenet-paper" if data == "imagenet" else _PAPER_RECIPES.get(self.network, "cifar-paper")
        form = "imagenet" if data == "imagenet" else "digits" if stand_in == "resnet-digits" else "cifar"
        return load_recipe(
            scale.base or paper,
            [
                f"name={scale.name}",
                f"model.name={stand_in}",
                f"model.form={form}",
                f"model.width={'null' if width is None else width}",
                f"data.name={data}",
                f"sparse.algorithm={self.algorithm}",
                f"sparse.sparsity={self.sparsity}",
                f"sparse.scope={self.scope}",
                f"seed={self.seed}",
                *scale.settings,
                *self.settings,
            ],
        )

    def kind(self) -> str:
        """Return in words what is trained, such as ``swat 80 %, dense from 6``; all but network, data, seed."""
        scope = "" if self.scope == "nchw" else f" ({self.scope})"
        what = f"{self.algorithm}{scope} {100 * self.sparsity:g} %" if self.sparsity else "dense"
        return ", ".join([what, *(f"{key} {value}" for key, value in self._telling())])

    def folder_name(self, scale: Scale) -> str:
        """Return the name of the run's folder: what it is, and a hash over all that its result depends on.

        Values that are the default of their key are left out, so that a new key renames no folder.
        """
        recipe = self.recipe(scale)
        values = recipe.model_dump(
            mode="json", exclude={"name", "about", "threads", "checkpoint"}, exclude_defaults=True
        )
        values["data"].pop("root", None)
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        scope = "" if self.scope == "nchw" else f"-{self.scope}"
        what = f"{self.algorithm}{scope}-{100 * self.sparsity:g}" if self.sparsity else "dense"
        more = "".join(f"-{key.replace(' ', '-')}-{value}" for key, value in self._telling())
        width = "" if recipe.model.width is None else f"x{recipe.model.width}"
        return f"{recipe.model.name}{width}-{recipe.data.name}-{what}{more}-s{self.seed}-{digest}"

    def _telling(self) -> list[tuple[str, str]]:
        """Its own settings as words; what follows from them is left out."""
        pairs = [setting.partition("=")[::2] for setting in self.settings]
        named = [(key.rpartition(".")[2].replace("_", " "), value) for key, value in pairs]
        return [(key, value.strip("[]").replace(", ", "x")) for key, value in named if key != "milestones"]


def _flat(recipe: Recipe) -> dict[str, Any]:
    sections = recipe.model_dump(mode="json")
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        if isinstance(section, dict)
        for key, value in section.items()
    }


_WORDS = {
    "model.name": "network",
    "model.form": "form of the network",
    "model.width": "width",
    "data.name": "data",
    "data.batch_size": "batch",
    "data.train_limit": "training images",
    "data.test_limit": "test images",
    "optimizer.epochs": "epochs",
    "optimizer.lr": "learning rate",
    "optimizer.milestones": "learning rate falls after epoch",
    "sparse.method": "thresholds found by",
    "sparse.skip": "layers left dense:",
}
_OF_BASE = ("optimizer.lr", "optimizer.milestones", "data.shift", "data.border", "data.flip")


def _said(value: Any, key: str) -> str:
    """A value in words: none is what the publication says, or everything."""
    if value is None:
        return "all" if key.endswith("_limit") else "as published"
    if value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def reductions(scale: Scale, trainings: Sequence[Training]) -> list[str]:
    """Return what a scale changes against the paper, each change once, first those of all trainings.

    A change of some of them ends in the networks, or where there is one alone the data, that it is true of.
    """
    several = len({training.network for training in trainings}) > 1
    changes: dict[str, dict[str, None]] = {}
    first = {(each.network, each.data): each for each in reversed(trainings)}  # later ones may be shortened
    for training in reversed(first.values()):
        for change in training.reductions(scale):
            changes.setdefault(change, {})[training.network if several else training.data] = None
    everywhere = len({training.network if several else training.data for training in trainings})
    found = [
        (len(where) < everywhere, f"{change} [{', '.join(where)}]" if len(where) < everywhere else change)
        for change, where in changes.items()
    ]
    return [change for _, change in sorted(found, key=lambda pair: pair[0])]
