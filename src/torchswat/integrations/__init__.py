"""Callbacks for the trainers of other libraries; each needs its library, which is imported with the callback.

>>> import torchswat.integrations
>>> torchswat.integrations.__all__
['LightningCallback', 'TrainerCallback']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchswat.integrations.lightning import LightningCallback
    from torchswat.integrations.transformers import TrainerCallback

__all__ = ["LightningCallback", "TrainerCallback"]

_HOMES = {
    "LightningCallback": "torchswat.integrations.lightning",
    "TrainerCallback": "torchswat.integrations.transformers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'torchswat.integrations' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
