"""What a training run is, as data: read from YAML, checked before anything starts, frozen afterwards.

A recipe answers five questions (which model, on which data, how sparse, optimized how, saved when). Each
answer has a dotted path, ``optimizer.lr``, which is how the command line overrides it and how an error
names it. This module imports no torch, so a wrong recipe is refused before the slow imports begin.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from torchswat.errors import InvalidValue, MissingData, UnknownName

Text = TypeVar("Text", str, Path)


def _without_null(value: Text) -> Text:
    if "\0" in str(value):
        raise ValueError("should hold no null character")
    return value


def _for_files(value: str) -> str:
    if any(letter in "/\\" or not letter.isprintable() for letter in value):
        raise ValueError("should hold neither slashes nor control characters: folders are named after it")
    return value


# Beyond these bounds torch, numpy or the operating system fail in words of their own.
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_without_null)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_for_files)]
Folder = Annotated[Path, AfterValidator(_without_null)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Threads = Annotated[int, Field(ge=1, le=1024)]
LearningRate = Annotated[float, Field(gt=0, le=1e38)]  # float32 ends there
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Section(BaseModel):
    """A part of a recipe: immutable, and no key but those it declares."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Which network."""

    name: Name
    form: Name | None = None  # cifar, imagenet or digits; None: the one that suits the size of the images
    width: Width | None = None  # channels of the first stage; None: as published


class DataSection(_Section):
    """Which images, and how they come."""

    name: Name
    root: Folder | None = None  # None: the folder named by TORCHSWAT_DATA
    batch_size: Count = 128  # over all processes together
    augment: bool = (
        True  # as suits the data set, but for the three values that follow; None: the data set's own
    )
    shift: CountOrZero | None = None  # pixels that a small image is moved by at most, each way
    border: Literal["black", "reflect"] | None = None  # what comes in from outside
    flip: Literal["random", "alternating", "none"] | None = None  # see torchswat.data.RandomCrop
    options: dict[str, Any] = {}  # what torchswat.data.load takes for this set, for instance size and resize
    train_limit: Count | None = None  # use only that many training images
    test_limit: Count | None = None
    # All image files are read before the training begins. A broken one stops it or is left out ("skip");
    # "unchecked" reads none before the step that needs it.
    broken_images: Literal["stop", "skip", "unchecked"] = "stop"

    @model_validator(mode="after")
    def _consistent(self) -> DataSection:
        given = [key for key in ("shift", "border", "flip") if getattr(self, key) is not None]
        if given and not self.augment:
            raise ValueError(f"{given[0]} needs augment: true")
        return self


class SparseSection(_Section):
    """Which tensors become sparse, and how sparse."""

    algorithm: Name = "swat"
    sparsity: float | dict[str, float] = (
        0.8  # fraction of entries set to zero, or one for each pattern of layer names
    )
    scope: Name = "nchw"
    method: Name = "histogram"
    exact: bool = True  # exactly k entries are kept; false: all that tie with the k-th as well
    ramp: CountOrZero = 0  # over so many iterations the sparsity rises from 0; see torchswat.schedules.Cubic
    period: Count = 1  # search the threshold anew every so many iterations
    warmup: CountOrZero = 0  # until this iteration, search it at every one
    dense_from: Count | None = None  # after so many epochs nothing is set to zero any more
    skip: tuple[str, ...] = ()
    norm_input: Name = "whole"  # how batch norm saves its input for backward: whole, bfloat16, int8
    block: tuple[int, int] = (1, 1)  # filters and input channels whose weights are selected together

    @field_validator("sparsity", mode="before")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        if isinstance(value, dict) and not (value and all(isinstance(pattern, str) for pattern in value)):
            raise ValueError("should map at least one layer name pattern to a number")
        for share in value.values() if isinstance(value, dict) else [value]:
            number = _as_number(share)
            if number is None:
                raise ValueError("should be a number, or a mapping from layer name patterns to numbers")
            if not 0 <= number < 1:
                raise ValueError("should be at least 0 (nothing is set to zero) and less than 1")
        return value

    @field_validator("block", mode="before")
    @classmethod
    def _pair_of_sides(cls, value: Any) -> Any:
        pair = value if isinstance(value, list | tuple) else ()
        if len(pair) != 2 or not all(type(side) is int and side in (1, 2, 4, 8) for side in pair):
            raise ValueError("should be [filters, input channels], each 1, 2, 4 or 8")
        return value

    @field_validator("skip", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "," in value:
            raise ValueError("should be a list, such as [first, last]")
        return (value,)


class OptimizerSection(_Section):
    """How the weights are changed, and the learning rate over time."""

    epochs: Count = 150
    name: Literal["sgd", "muon"] = "sgd"  # muon: torchswat.training.muon for filters, sgd for the rest
    lr: LearningRate = 0.1  # at its peak; of the mean loss over a batch
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, le=1e38)] = 1e-4
    decay_norm: bool = True  # whether batch norm's weights and biases decay as well
    schedule: Literal["steps", "linear", "cosine"] = "steps"  # linear, cosine: fall to 0 at the end
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the training in which the rate rises from 0
    milestones: tuple[Count, ...] = ()  # epochs at which the learning rate is multiplied by `factor`
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # a step's share of the past, in averaged weights
    )

    # For muon alone: what is no filter. None: as for the filters.
    head_lr: LearningRate | None = None  # of linear layers
    bias_lr: LearningRate | None = None  # of biases and batch norm
    other_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    first_epochs: Count | None = None  # the first convolution trains so long, its rate falling to 0

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerSection:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones should rise, not {list(self.milestones)}")
        if self.milestones and self.schedule != "steps":
            raise ValueError(f"milestones are for the schedule 'steps', not for {self.schedule!r}")
        if self.nesterov and 0 in (self.momentum, self.other_momentum):
            raise ValueError("nesterov needs a momentum above 0")
        if self.first_epochs and self.schedule == "steps":
            raise ValueError("first_epochs needs the schedule 'linear' or 'cosine', which falls to 0")
        if self.name != "muon":
            given = [key for key in _OF_MUON if getattr(self, key) is not None]
            if given:
                raise ValueError(f"{given[0]} is for the optimizer 'muon', not for {self.name!r}")
        return self

    def share_at(self, epoch: float, epochs: int | None = None) -> float:
        """Share of the peak learning rate at a moment of the training, in [0, 1].

        Parameters
        ----------
        epoch : float
            Epochs that have passed: 2.5 is in the middle of the third.
        epochs : int, optional
            When the schedule ends; by default with the training.

        Examples
        --------
        >>> triangle = OptimizerSection(epochs=10, schedule="linear", warmup=0.2)
        >>> [triangle.share_at(epoch) for epoch in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        passed = min(1.0, epoch / (epochs or self.epochs))
        if passed < self.warmup:
            return passed / self.warmup
        if self.schedule == "steps":
            return self.factor ** sum(epoch >= milestone for milestone in self.milestones)
        falling = (passed - self.warmup) / (1 - self.warmup)
        return 1 - falling if self.schedule == "linear" else (1 + math.cos(math.pi * falling)) / 2

    def lr_at(self, epoch: float) -> float:
        """Learning rate when so many epochs have passed; between two steps it does not change.

        Examples
        --------
        >>> OptimizerSection(lr=0.1, milestones=(50, 100), factor=0.5).lr_at(60)
        0.05
        """
        return self.lr * self.share_at(epoch)


_OF_MUON = ("head_lr", "bias_lr", "other_momentum", "first_epochs")


class CheckpointSection(_Section):
    """When the run is saved. One checkpoint is written after every epoch in any case."""

    every_steps: Count | None = None
    keep: Count = 2  # so many of the newest, and always the best


class AnalysisSection(_Section):
    """What of the sparse layers is recorded while they train; see `torchswat.training.watch`."""

    every_steps: Count | None = None  # None: nothing
    quantities: tuple[Literal["threshold", "angle", "density"], ...] = ("threshold", "angle", "density")


class Recipe(_Section):
    """A whole training run, as data.

    Examples
    --------
    >>> recipe = load_recipe("cifar-paper", ["sparse.sparsity=0.9", "optimizer.epochs=3"])
    >>> recipe.sparse.sparsity, recipe.optimizer.epochs, recipe.optimizer.lr
    (0.9, 3, 0.1)
    """

    name: FileName
    about: str = ""
    model: ModelSection
    data: DataSection
    sparse: SparseSection = SparseSection()
    optimizer: OptimizerSection = OptimizerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    analysis: AnalysisSection = AnalysisSection()
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: passes under torch.autocast
    seed: Seed = 0
    # The final table also says how accurate the last and the best epoch are over these views of the test images.
    views: Literal["plain", "mirror", "mirror+shift"] = "plain"  # see torchswat.training.views
    threads: Threads | None = None  # of torch; None: as many as there are cores

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        end = self.sparse.dense_from
        if end is not None and end >= self.optimizer.epochs:
            raise ValueError(
                f"sparse.dense_from should be less than the {self.optimizer.epochs} epochs of optimizer.epochs, "
                f"not {end}"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package.

    Examples
    --------
    >>> "cifar-paper" in recipe_names()
    True
    """
    folder = resources.files("torchswat").joinpath("recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    name_or_path : str or Path
        A name out of `recipe_names`, or the path of a YAML file of your own.
    overrides : list of str, default ()
        Values to replace, each as ``"dotted.path=value"`` with the value written as YAML. A later one wins.

    Returns
    -------
    Recipe

    Raises
    ------
    UnknownName
        The recipe, or a key in it, does not exist; the message holds the nearest that does.
    InvalidValue
        A value has the wrong type or is out of range, or the file is not YAML.
    MissingData
        The path of a recipe file is not there.

    Examples
    --------
    >>> load_recipe("digits-demo", ["seed=7"]).seed
    7
    >>> load_recipe("digits-demo", ["optimizer.lrr=1"])
    Traceback (most recent call last):
        ...
    torchswat.errors.UnknownName: unknown recipe key 'optimizer.lrr': did you mean 'optimizer.lr'? ...
    """
    values = _parse_mapping(_read(name_or_path), str(name_or_path))
    for override in overrides:
        _override(values, override)
    return make_recipe(values)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Check a mapping and make the recipe; errors as those of `load_recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None


def _read(name_or_path: str | Path) -> str:
    """Text of a recipe: what ends in .yaml or holds a separator is a path, anything else is a name."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        try:
            return Path(text).read_text(encoding="utf-8")
        except FileNotFoundError:
            known = ", ".join(recipe_names())
            raise MissingData(
                f"no recipe file {text!r}. Give a YAML file, or one of the names {known}."
            ) from None
        except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a null character in the path
            raise InvalidValue(f"cannot read the recipe file {text!r}: {error}") from None
    if text not in recipe_names():
        raise UnknownName.of("recipe", text, recipe_names())
    return (
        resources.files("torchswat").joinpath("recipes").joinpath(f"{text}.yaml").read_text(encoding="utf-8")
    )


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error: the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if key != "<<" and keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What the parser raises: ValueError for impossible dates and numbers, RecursionError for deep nesting."""


def _parse_mapping(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except _NOT_YAML as error:
        raise InvalidValue(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InvalidValue(f"{origin} should be a YAML mapping of keys to values, not {values!r:.60}")
    return values


def _override(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``dotted.path=value`` to nested mappings, in place."""
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise InvalidValue(f"cannot understand the setting {assignment!r}: write it as optimizer.lr=0.05")
    try:
        value = yaml.load(text, _Loader)
    except _NOT_YAML:
        raise InvalidValue(f"the value of {path.strip()} is not valid YAML: {text!r:.60}") from None
    *sections, key = path.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidValue(
                f"{path.strip()} cannot be set: {section} is a value, not a section of the recipe"
            )
    values[key] = value


def _explain(error: ValidationError) -> InvalidValue | UnknownName:
    """Turn pydantic's report into one line about the first thing that is wrong."""
    details = error.errors()
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UnknownName.of("recipe key", path, _known_beside(path))
    if first["type"] == "missing":
        return InvalidValue(f"the recipe lacks {path}, which has no default")
    problem = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    where = f"recipe value {path}" if path else "recipe"
    given = "" if isinstance(first["input"], BaseModel | dict) else f", not {first['input']!r:.60}"
    return InvalidValue(f"{where}: {problem}{given}")


def _known_beside(path: str) -> list[str]:
    """The keys that an unknown one could have been: those of its section, or of that name in any section."""
    section, _, name = path.rpartition(".")
    if section:
        return [key for key in recipe_keys() if key.rpartition(".")[0] == section]
    return [*Recipe.model_fields, *(key for key in recipe_keys() if key.endswith(f".{name}"))]


def recipe_keys() -> list[str]:
    """Every dotted path that a recipe may set.

    Examples
    --------
    >>> [key for key in recipe_keys() if key.startswith("optimizer.m")]
    ['optimizer.momentum', 'optimizer.milestones']
    """
    keys = []
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Section):
            keys += [f"{name}.{inner}" for inner in kind.model_fields]
        else:
            keys.append(name)
    return keys


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Dotted paths of the values in which two recipes differ, but for those that may differ within a run.

    Examples
    --------
    >>> differing_keys(load_recipe("digits-demo", ["seed=1"]), load_recipe("digits-demo", ["threads=1"]))
    ['seed']
    """
    values = [recipe.model_dump(mode="json") for recipe in (one, other)]

    def value(recipe: dict[str, Any], key: str) -> Any:
        for part in key.split("."):
            recipe = recipe[part]
        return recipe

    keys = [key for key in recipe_keys() if key not in _CHANGEABLE]
    return [key for key in keys if value(values[0], key) != value(values[1], key)]


_CHANGEABLE = ("name", "about", "data.root", "threads", "checkpoint.every_steps", "checkpoint.keep")
"""Where the data lie, how fast they are worked on, what is saved: not what is computed."""


def _as_number(value: Any) -> float | None:
    """The value as a float where it is a number or reads as one, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
