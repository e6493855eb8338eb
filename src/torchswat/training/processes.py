"""One process or several: what `accelerate` finds out about how this program was started."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list


def state() -> PartialState:
    """Number and role of this process. Under ``torchrun`` or ``accelerate launch`` the processes meet here.

    Accelerate must be told where there is no accelerator, or several processes on CPUs would not find each
    other.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def make_accelerator() -> Accelerator:
    """The accelerator of this process, on a GPU where there is one."""
    return Accelerator(cpu=device().type == "cpu")


def device() -> torch.device:
    """Where this process computes."""
    chosen = state().device
    assert chosen is not None  # None is for states that were torn down
    return chosen


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return state().is_main_process


def agree(text: str) -> str:
    """The text that the first process gave, in all of them."""
    agreed = [text]
    if state().num_processes > 1:
        broadcast_object_list(agreed)
    return agreed[0]
