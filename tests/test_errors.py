"""The exceptions: what they derive from and what they say."""

from __future__ import annotations

import pytest

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
