"""What commands share: options with their types and ranges, groups of the help, names for shell completion.

Nothing here imports torch, so that ``--help``, a wrong value and the Tab key are answered at once. Names that
only modules with torch know are repeated here; the tests compare them with those modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

FIRST = "First steps"
DEPLOY = "Use a trained network"
LISTS = "Lists"
COST = "Cost and speed"
PAPER = "The paper, and reports"

LARGEST = 2**31 - 1
"""Of numbers that torch takes as a size."""

MODELS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "densenet121", "wrn28-10", "resnet20"),
    *("resnet8", "airbench", "airbench-deep", "resnet-digits"),
)
FORMS = ("cifar", "imagenet", "digits")
DATA_SETS = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenet", "synthetic")
SCOPES = ("nchw", "chw", "hw")
METHODS = ("histogram", "sort", "quickselect", "median-of-medians", "introselect", "sample")
VIEWS = ("plain", "mirror", "mirror+shift")
FORMATS = ("sparse", "dense", "onnx", "program")
SCALES = ("smoke", "cpu", "paper")
FIGURES = (
    *("9a", "9b", "9c", "9d", "lemma-b1", "7", "8a", "8b", "5-accounts", "top-k-cost", "time-to-accuracy"),
    *("inference", "9e", "6b", "4", "5", "2b", "3", "2a", "2c", "6a"),
)
INSTRUCTION_SETS = ("avx2", "plain")
DEVICES = ("cpu", "cuda")

Completion = Callable[[str], list[str]]


def among(*names: str) -> Completion:
    """Return what completes the beginning of one of `names`.

    Examples
    --------
    >>> among("resnet18", "resnet34", "vgg16")("resn")
    ['resnet18', 'resnet34']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def complete_algorithm(incomplete: str) -> list[str]:
    """Complete the beginning of an algorithm's name.

    Examples
    --------
    >>> complete_algorithm("sw")
    ['swat']
    """
    from torchswat.algorithms import ALGORITHMS

    return among(*ALGORITHMS)(incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete the beginning of a recipe's name.

    Examples
    --------
    >>> complete_recipe("digits")
    ['digits-demo']
    """
    folder = resources.files("torchswat").joinpath("recipes")
    return among(*sorted(file.name.removesuffix(".yaml") for file in folder.iterdir()))(incomplete)


def check_number(value: float | None) -> float | None:
    """Refuse NaN, which no comparison with the bounds of an option refuses."""
    if value is not None and value != value:
        raise typer.BadParameter("nan is not a number.")
    return value


def check_sparsity(value: float | list[float] | None) -> float | list[float] | None:
    """Refuse what is no fraction of entries that can be set to zero: NaN and 1."""
    for each in value if isinstance(value, Sequence) else [value]:
        check_number(each)
        if each == 1:
            raise typer.BadParameter("1.0 would set every entry to zero; it must be less than 1.")
    return value


def check_layers(patterns: list[str] | None) -> list[str] | None:
    """Refuse several patterns in one value."""
    for pattern in patterns or ():
        if "," in pattern:
            each = " ".join(f"--skip {part.strip()}" for part in pattern.split(",") if part.strip())
            raise typer.BadParameter(f"{pattern!r} holds a comma; repeat the option: {each}")
    return patterns


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with the data sets (default: $TORCHSWAT_DATA).")
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Threads (default: as many as torch chooses).")
]
Form = Annotated[
    str | None,
    typer.Option(help="Form of the network: cifar, imagenet or digits.", autocompletion=among(*FORMS)),
]
Network = Annotated[
    str, typer.Option("--model", help="Network; see `models`.", autocompletion=among(*MODELS))
]
Algorithm = Annotated[
    str,
    typer.Option("--algorithm", help="Algorithm; see `algorithms`.", autocompletion=complete_algorithm),
]
Sparsity = Annotated[
    float,
    typer.Option(
        *("--sparsity", "-s"),
        min=0,
        max=1,
        callback=check_sparsity,
        help="Sparsity: fraction of entries set to zero.",
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        callback=check_layers,
        autocompletion=among("first", "last"),
        metavar="LAYER",
        help="Layer to leave dense: first, last or a name pattern. Repeat it for several.",
    ),
]
