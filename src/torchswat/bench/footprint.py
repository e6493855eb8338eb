"""What one training step keeps for its backward pass, and the most memory it needs at once.

Bytes are those of the storages that the saved tensors lie in, each storage once, whatever part of it is
used; parameters, buffers and the batch itself are there anyway and counted apart. The peak is the process's
own (Linux) or the device's, above what it holds between steps.

``python -m torchswat.bench.footprint JSON`` measures one setting in a process of its own and prints JSON.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat import models
from torchswat.convert import sparse_layers, sparsify_
from torchswat.engine.arguments import GRAD_INPUT_SPARSE
from torchswat.engine.state import PRODUCTS
from torchswat.fuse import fuse_
from torchswat.layers import SparseConv2d, SparseLayer

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""Lets glibc map every larger tensor by itself: the peak is of what is in use, and not of gaps in a heap."""

LOSS = "loss"
"""What is saved outside of the model is put down under this name."""


@dataclass(frozen=True)
class Setting:
    """What is measured: a network, its batch, the algorithm, and how batch norm keeps its input."""

    network: str
    form: str
    batch_size: int
    algorithm: str = "dense"
    sparsity: float = 0.0
    norm_input: str = "whole"
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


@dataclass
class Layer:
    """Bytes that a layer saves for backward.

    Attributes
    ----------
    activations : int
        Of anything that depends on the batch: values, positions, masks, statistics.
    weights : int
        Of what is saved of a selection of weights, beside the parameters: masks.
    parameters : int
        Of weights of convolutions and linear layers that the product for the gradient of the input reads:
        values and positions of those that are kept where it runs sparse (counted by their density), else all.
    """

    name: str
    kind: str
    activations: int = 0
    weights: int = 0
    parameters: int = 0


# ---- bytes kept --------------------------------------------------------------------------------------------

_PACKED = 6
"""Bytes of a kept weight as the product with it reads it: a float32, and 16 bits of position."""


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor], batch: tuple[Tensor, ...]) -> list[Layer]:
    """Run one forward pass and return what each layer of `model` saves for the backward pass.

    Parameters
    ----------
    model : Module
        In training mode.
    loss : callable
        Makes the forward pass of `model` on `batch` and returns the loss.
    batch : tuple of Tensor
        What is there anyway and not counted.
    """
    owned = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    names = {module: name for name, module in model.named_modules()}
    owners = {_storage(m.weight): m for m in names if isinstance(m, (nn.Conv2d, nn.Linear))}
    masks = {layer.weight.shape for _, layer in sparse_layers(model)}
    layers: dict[str, Layer] = {}
    read: dict[nn.Module, Layer] = {}
    seen = {_storage(t) for t in batch}
    running: list[tuple[nn.Module, bool]] = []

    def layer_of(module: nn.Module | None) -> Layer:
        name = names[module] if module is not None else LOSS
        return layers.setdefault(name, Layer(name, type(module).__name__ if module else ""))

    def save(tensor: Tensor) -> Tensor:
        address, size = _storage(tensor), tensor.untyped_storage().nbytes()
        module, wants_grad_input = running[-1] if running else (None, True)
        layer = layer_of(module)
        if address in owners and wants_grad_input:
            read[owners[address]] = layer_of(owners[address])
        elif address not in seen | owned:
            seen.add(address)
            if tensor.dtype is torch.bool and tensor.shape in masks:
                layer.weights += size
            else:
                layer.activations += size
        return tensor

    with _modules_followed(running), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        value = loss()
    for module, layer in read.items():
        layer.parameters = _bytes_read(module)
    value.backward()  # until here nothing that was saved could be freed, and its address be used again
    return list(layers.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes_read(layer: nn.Module) -> int:
    """Return how many bytes of its weight a layer reads for the gradient of its input after its last pass."""
    weight = cast(Tensor, layer.weight)
    whole = weight.numel() * weight.element_size()
    if not isinstance(layer, SparseLayer) or not layer.sparse.algorithm.grad_input_weight:
        return whole
    if not int(layer.sparse_state[PRODUCTS]) & GRAD_INPUT_SPARSE:
        return whole
    return _PACKED * round(layer.sparse.selectors["weight"].density * weight.numel())


@contextmanager
def _modules_followed(running: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Keep the modules whose forward is running in the list, the innermost last.

    Beside each stands whether one of its inputs wants a gradient.
    """

    def followed(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
            wants = any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
            running.append((module, wants))
            try:
                return call(module, *arguments, **keywords)
            finally:
                running.pop()

        return wrapper

    # hooks would keep fused containers from running as they do in training
    calls = (nn.Module, "__call__"), (SparseConv2d, "forward_recomputing")
    originals = [getattr(kind, name) for kind, name in calls]
    for (kind, name), original in zip(calls, originals, strict=True):
        setattr(kind, name, followed(original))
    try:
        yield
    finally:
        for (kind, name), original in zip(calls, originals, strict=True):
            setattr(kind, name, original)


# ---- the peak ----------------------------------------------------------------------------------------------


def peak_bytes(step: Callable[[], object], device: str) -> tuple[int, int] | None:
    """Return what is in use between steps and the most while `step` runs; None where that cannot be told."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return idle, torch.cuda.max_memory_allocated()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what was freed goes back to the system, so that it is no part of idle
        idle = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        step()
        return idle, _status("VmHWM")
    return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


# ---- one setting -------------------------------------------------------------------------------------------


def measure(setting: Setting) -> dict[str, Any]:
    """Build and run what `setting` says in this process; two steps come before those that are measured."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(setting.seed)
    info = models.info(setting.network, setting.form)
    model = models.create(setting.network, form=setting.form).train()
    images = torch.randn(setting.batch_size, info.in_channels, *[info.image_size] * 2).to(setting.device)
    classes = torch.randint(info.num_classes, (setting.batch_size,)).to(setting.device)
    if setting.algorithm != "dense":
        sparsify_(model, setting.algorithm, setting.sparsity, method="sample", norm_input=setting.norm_input)
        fuse_(model)
    model.to(setting.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def loss() -> Tensor:
        return F.cross_entropy(model(images), classes)

    def step() -> None:
        loss().backward()
        optimizer.step()

    for _ in range(2):  # plans are measured, momentum is allocated, threads are started
        step()
        optimizer.zero_grad()
    peaks = []
    for _ in range(2):
        peaks.append(peak_bytes(step, setting.device))
        optimizer.zero_grad()
    layers = kept_bytes(model, loss, (images, classes))
    found = [peak for peak in peaks if peak is not None]
    idle, peak = max(found, key=lambda both: both[1] - both[0]) if found else (None, None)
    return {"idle": idle, "peak": peak, "layers": [asdict(layer) for layer in layers]}


def measure_apart(setting: Setting) -> dict[str, Any]:
    """Return what `measure` does in a fresh process, whose memory nothing else has touched."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(setting))]
    environment = {**os.environ, **_ALLOCATOR}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {setting} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(Setting(**json.loads(sys.argv[1])))))
