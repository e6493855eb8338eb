"""The exceptions: what they derive from and what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchswat
from torchswat import errors
from torchswat.errors import TorchswatError, UnknownName

BUILT_IN = {
    "InvalidValue": ValueError,
    "UnknownName": ValueError,
    "InvalidData": ValueError,
    "MissingData": FileNotFoundError,
    "NotFinite": ArithmeticError,
    "CheckpointError": OSError,
    "MissingDependency": ImportError,
}


def test_every_exception_is_listed_here():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TorchswatError)]
    assert {c.__name__ for c in classes} == {"TorchswatError", *BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_is_ours_and_the_built_in_one_that_callers_expect(name):
    error = getattr(errors, name)("what was wrong")
    assert isinstance(error, TorchswatError) and isinstance(error, BUILT_IN[name])
    assert str(error) == "what was wrong"


def test_an_unknown_name_gets_the_nearest_and_all_known():
    message = str(UnknownName.of("model", "resnet81", ["resnet18", "vgg16"]))
    assert message == "unknown model 'resnet81': did you mean 'resnet18'? Known: resnet18, vgg16."


def test_a_name_near_nothing_gets_all_known():
    assert str(UnknownName.of("scope", 7, ["nchw"])) == "unknown scope 7: Known: nchw."


HUGE = (torch.randn(100, 100), list(range(10_000)), "x" * 10_000, {i: i for i in range(5_000)})
CALLS = {
    "sparsify_, sparsity": lambda value: torchswat.sparsify_(nn.Linear(4, 2), sparsity=value),
    "sparsify_, scope": lambda value: torchswat.sparsify_(nn.Linear(4, 2), scope=str(value)),
    "sparsify_, period": lambda value: torchswat.sparsify_(nn.Linear(4, 2), period=value),
    "sparsify_, skip": lambda value: torchswat.sparsify_(nn.Linear(4, 2), skip=value),
    "select, sparsity": lambda value: torchswat.select(torch.randn(4), value),
    "prune_, sparsity": lambda value: torchswat.prune_(torchswat.sparsify_(nn.Linear(4, 2)), sparsity=value),
    "Cubic, final": lambda value: torchswat.schedules.Cubic(final=value, steps=3),
    "create, name": lambda value: torchswat.models.create(str(value)),
}


@pytest.mark.parametrize("value", HUGE, ids=["tensor", "list", "text", "mapping"])
@pytest.mark.parametrize("call", CALLS)
def test_a_message_about_a_huge_value_still_fits_on_a_screen(call, value):
    with pytest.raises(TorchswatError) as caught:
        CALLS[call](value)
    message = str(caught.value)
    assert len(message) < 1000 and ("allowed" in message or "nown" in message or "pattern" in message)


def test_a_long_message_keeps_what_is_wrong_and_what_is_allowed():
    message = str(errors.InvalidValue(f"scope is {'x' * 5000}; allowed is nchw."))
    assert message.startswith("scope is xxx") and message.endswith("; allowed is nchw.")
