"""Dense or sparse, for each product of each shape: by measurement, never by hope.

The first time a shape is met at a sparsity, both ways of each of its products run a few times on random
data, with all that belongs to them (packing, compressing, changes of layout), and the faster one is taken.
What was measured is kept in a file, so a machine measures once. The environment variable ``TORCHSWAT_PLAN``
changes this: ``sparse`` and ``dense`` decide without measuring, anything else is the path of the file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from torchswat.engine.loader import native
from torchswat.engine.packed import ALL_DENSE, ALL_SPARSE, Choice, PackedConv2dProducts, Shape
from torchswat.engine.products import Conv2dProducts
from torchswat.engine.topk import Selection

VERSION = 2
"""Of the measurements: raised when a kernel changes so much that old ones mislead."""

_REPEATS = 3
_NEVER = 1e9  # milliseconds, of what no kernel can do
_STEP = 0.05  # sparsities are rounded down to multiples of it, so a schedule measures a few times only


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the three products, sparse and dense."""

    forward: tuple[float, float]
    grad_input: tuple[float, float]
    grad_weight: tuple[float, float]

    def choice(self) -> Choice:
        """Return which products are faster sparse."""
        return Choice(
            *(sparse < dense for sparse, dense in (self.forward, self.grad_input, self.grad_weight))
        )


def products_for(shape: Shape, sparsity: float, inner: bool = False) -> Conv2dProducts:
    """Return the products of `shape` as they are fastest at `sparsity`: sparse, dense or mixed.

    `inner` says whether the input is batch-innermost already.
    """
    choice = choose(shape, sparsity)
    if choice == ALL_DENSE and not shape.is_pointwise and not inner:  # then no change of layout pays
        return Conv2dProducts(shape.stride, shape.padding)
    return PackedConv2dProducts.of(shape, choice)


def choose(shape: Shape, sparsity: float) -> Choice:
    """Return which products of `shape` run sparse at `sparsity`, measuring them where that is not known."""
    asked = os.environ.get("TORCHSWAT_PLAN", "")
    if asked in ("sparse", "dense"):
        return ALL_SPARSE if asked == "sparse" else ALL_DENSE
    rounded = int(sparsity / _STEP + 1e-9) * _STEP
    key = _key(shape, rounded, torch.get_num_threads())
    timings = _known(path(), machine())
    if key not in timings:
        timings[key] = measure(shape, rounded)
        _save(path(), machine(), timings)
    return timings[key].choice()


def generation() -> object:
    """Return what changes when choices do: arguments made from them are remembered by layers until then."""
    return os.environ.get("TORCHSWAT_PLAN")


def products_of(choice: Choice) -> int:
    """Return the bits of the products that run sparse."""
    return choice.forward | choice.grad_input << 1 | choice.grad_weight << 2


@cache
def _key(shape: Shape, sparsity: float, threads: int) -> str:
    return f"{shape}-S{sparsity:.2f}-t{threads}"


_followed: list[Path] = []


@contextmanager
def followed(file: Path) -> Iterator[None]:
    """Keep the choices made within a ``with`` block in `file`, which begins with what the machine knows.

    A training that is resumed then takes the same products as before, and so rounds the same, whatever became
    of the machine's own file. ``TORCHSWAT_PLAN`` has the last word.
    """
    if not file.exists() and native() is not None:
        _save(file, machine(), _known(path(), machine()))
    _followed.append(file)
    try:
        yield
    finally:
        _followed.pop()


def path() -> Path:
    """Return the file of the measurements."""
    asked = os.environ.get("TORCHSWAT_PLAN", "")
    if asked and asked not in ("sparse", "dense"):
        return _path_of(asked)
    if _followed:
        return _followed[-1]
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "torchswat" / "plan.json"


_path_of = cache(Path)  # every layer asks in every pass


def machine() -> str:
    """Return what a measurement depends on beside the shape: processor, instruction set, torch."""
    module = native()
    return _machine(module.isa() if module else "reference", VERSION)


@cache
def _machine(isa: str, version: int) -> str:
    return f"{_processor()} | {isa} | torch {torch.__version__} | plan {version}"


@cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(file: Path | None = None) -> dict[str, dict[str, Timing]]:
    """Return all that was measured, by machine and shape; empty where the file is absent or damaged."""
    try:
        stored = json.loads((file or path()).read_text())
        return {
            name: {key: Timing(**{k: _pair(v) for k, v in row.items()}) for key, row in rows.items()}
            for name, rows in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _pair(milliseconds: Any) -> tuple[float, float]:
    sparse, dense = milliseconds
    return float(sparse), float(dense)


@cache
def _known(file: Path, name: str) -> dict[str, Timing]:
    return table(file).get(name, {})


def _save(file: Path, name: str, timings: dict[str, Timing]) -> None:
    """Write the measurements atomically; where that fails they last as long as the process."""
    stored: dict[str, Any] = {n: {k: asdict(t) for k, t in rows.items()} for n, rows in table(file).items()}
    stored.setdefault(name, {}).update({key: asdict(timing) for key, timing in timings.items()})
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump(stored, temporary, indent=1)
            temporary.flush()
            os.fsync(temporary.fileno())
        try:
            Path(temporary.name).replace(file)
        except OSError:
            Path(temporary.name).unlink()


@torch.no_grad()
def measure(shape: Shape, sparsity: float) -> Timing:
    """Time the three products of `shape`, sparse and dense, interleaved; milliseconds, the best of a few."""
    draw = torch.Generator().manual_seed(0)
    n, c, h, w = shape.input
    as_ever: Any = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
    x = torch.randn(c, h, w, n, **as_ever).permute(3, 0, 1, 2)
    weight = torch.randn(shape.weight, **as_ever)
    limit = NormalDist().inv_cdf((1 + sparsity) / 2)  # of the normal distribution's magnitudes
    selection = Selection(limit=limit)
    sparse, dense = (PackedConv2dProducts.of(shape, choice) for choice in (ALL_SPARSE, ALL_DENSE))
    gradient = torch.randn_like(dense.forward(x, dense.forward_weight(weight, selection), None))

    def both(run: Callable[[PackedConv2dProducts], Tensor]) -> tuple[float, float]:
        return _race(lambda: run(sparse), lambda: run(dense))

    return Timing(
        both(lambda p: p.forward(x, p.forward_weight(weight, selection), None)),
        both(lambda p: p.grad_input(gradient, p.grad_input_weight(weight, selection), x)),
        both(lambda p: p.grad_weight(gradient, p.grad_weight_activation(x, selection), weight)),
    )


def _race(sparse: Callable[[], Any], dense: Callable[[], Any]) -> tuple[float, float]:
    """Return the best milliseconds of each, run in turns."""
    best = [math.inf] * 2
    for _ in range(_REPEATS):
        for i, run in enumerate((sparse, dense)):
            start = time.perf_counter()
            try:
                run()
            except ValueError:  # there is no kernel for a map as wide as that
                return _NEVER, 0.0
            best[i] = min(best[i], 1000 * (time.perf_counter() - start))
    return best[0], best[1]
