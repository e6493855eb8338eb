"""Run a copy of a model on an example of its input, and leave model and random states as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchswat.errors import InvalidValue


def call(model: nn.Module, example: Any) -> Any:
    """Return ``model(example)``; a tuple holds positional arguments, a mapping keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def copied(model: nn.Module, what: str) -> nn.Module:
    """Return a copy of `model`; `what` runs it, in the words of the error.

    Raises
    ------
    InvalidValue
        Where the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InvalidValue(
            f"{type(model).__name__} cannot be copied ({error}), and {what} runs a copy; take a model of "
            "the same "
            "layers that was just made: the result holds for both."
        ) from error


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in `value`: in lists, tuples, mappings and dataclasses.

    Examples
    --------
    >>> len(tensors_in({"logits": torch.zeros(2), "hidden": (torch.zeros(1), None)}))
    2
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the random states of torch, numpy and Python, from which the model's forward may draw."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - models draw from it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
