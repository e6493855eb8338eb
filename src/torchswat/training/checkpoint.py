"""One checkpoint is one safetensors file: every tensor of the run, and where the run stood, in its header.

docs/checkpoints.md says what a checkpoint holds and guarantees. In short: a file is either whole or not
there at all, it is written under a temporary name and renamed, and its checksum is verified when it is read.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from torchswat.errors import InvalidData, MissingData
from torchswat.files import write_atomically

FORMAT = "torchswat checkpoint 1"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: all that is not a tensor and cannot be derived from the recipe."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0  # steps taken in the epoch that is under way
    best_accuracy: float = -1.0  # on the test images, in per cent
    best_step: int = 0  # the checkpoint that reached it

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of this run; within its first epoch those so far, of which there may be more."""
        return (self.step - self.step_in_epoch) // self.epoch if self.epoch else self.step

    def next_step(self) -> Progress:
        """The position after one more step."""
        return replace(self, step=self.step + 1, step_in_epoch=self.step_in_epoch + 1)

    def next_epoch(self) -> Progress:
        """The position at the beginning of the epoch that follows."""
        return replace(self, epoch=self.epoch + 1, step_in_epoch=0)


@dataclass(frozen=True)
class Checkpoint:
    """A run at one instant.

    Attributes
    ----------
    recipe : dict
        The recipe as plain values.
    progress : Progress
        The position in the training.
    processes : int
        How many processes trained together.
    model : dict of str to Tensor
        ``state_dict`` of the network, with the keys of the plain torch modules.
    optimizer : dict of str to Tensor
        The optimizer's buffers, as ``<parameter name>/<buffer name>``.
    ranks : list of dict of str to Tensor
        What differs between the processes: random state, thresholds and sums over the epoch under way.
    average : dict of str to Tensor
        ``state_dict`` of the averaged weights; empty where the recipe wants none.
    """

    recipe: dict[str, Any]
    progress: Progress
    processes: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    ranks: list[dict[str, Tensor]] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the checkpoint to `path`, atomically.

        Raises
        ------
        CheckpointError
            The file cannot be written, for instance because the disk is full. Nothing is left behind and
            whatever stood at `path` is untouched.
        """
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        for rank, state in enumerate(self.ranks):
            tensors |= {f"rank{rank}/{name}": tensor for name, tensor in state.items()}
        # A copy each: safetensors takes neither tensors that share memory nor tensors with strides.
        tensors = {name: _plain_copy(tensor) for name, tensor in tensors.items()}
        header = {
            "format": FORMAT,
            "recipe": self.recipe,
            "progress": asdict(self.progress),
            "processes": self.processes,
        }
        header["crc32"] = _checksum(header, tensors)
        write_atomically(path, safetensors.torch.save(tensors, {"torchswat": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint written by `save`, onto the CPU.

        Raises
        ------
        MissingData
            There is no such file.
        InvalidData
            The file is truncated, damaged, or not a checkpoint of torchswat.
        """
        if not path.is_file():
            raise MissingData(f"no checkpoint at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["torchswat"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if header["format"] != FORMAT:
                raise InvalidData(f"{path} is a {header['format']!r}; this version reads {FORMAT!r}")
            if header.pop("crc32") != _checksum(header, tensors):
                raise InvalidData(f"{path} is damaged: its checksum does not match. Use another checkpoint.")
            progress = Progress(**header["progress"])
            recipe, processes = header["recipe"], int(header["processes"])
        except SafetensorError as error:
            raise InvalidData(f"{path} is truncated or no safetensors file: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InvalidData):
                raise
            raise InvalidData(f"{path} is a safetensors file but no checkpoint of torchswat") from None
        return cls(
            recipe=recipe,
            progress=progress,
            processes=processes,
            model=_under("model/", tensors),
            optimizer=_under("optimizer/", tensors),
            ranks=[_under(f"rank{rank}/", tensors) for rank in range(processes)],
            average=_under("average/", tensors),
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint taken after `step` optimizer steps lies in its folder."""
    return folder / f"step-{step:09d}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def discard_old(folder: Path, keep: int, best_step: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    best = checkpoint_path(folder, best_step)
    for path in list_checkpoints(folder)[:-keep]:
        if path != best:
            path.unlink()


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's buffers by name of parameter, so that they do not depend on the order of parameters."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value
    return found


def load_optimizer_tensors_(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put the buffers of `optimizer_tensors` back, on the device and in the layout of their parameter."""
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        if name not in parameters:
            raise InvalidData(f"the checkpoint holds {key} of {name!r}, which the model does not have")
        parameter = parameters[name]
        same_shape = tensor.shape == parameter.shape
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(tensor) if same_shape else tensor


def _plain_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """CRC-32 over the header and over name, type, shape and bytes of every tensor."""
    checksum = zlib.crc32(json.dumps(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
