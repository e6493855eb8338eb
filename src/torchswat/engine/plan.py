"""The tuned plan: which products of which shape run sparse.

A layer asks `choose` in every pass. The answer comes from what `torchswat.tune` measured on this machine or,
for any other shape, from the cost model (`torchswat.engine.plan_model`). Nothing is measured or written in a
pass. Tuned shapes stand for a bucket of similar ones: their batch size, height and width are rounded up to
three significant bits.

The environment variable ``TORCHSWAT_PLAN`` changes this: ``sparse`` and ``dense`` decide for all products,
``model`` (or ``off``) takes the cost model's word only, anything else is the path of the file of timings.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from torchswat.engine import plan_model
from torchswat.engine.loader import native
from torchswat.engine.shape import ALL_DENSE, ALL_SPARSE, Choice, Shape
from torchswat.engine.timings import Timing

try:
    import fcntl
except ImportError:  # Windows: processes that tune at once may lose one another's timings
    fcntl = None  # type: ignore[assignment]

VERSION = 3
"""Of the timings: raised when a kernel changes so much that old ones mislead."""

MOST_CHOICES = 8192
"""That are remembered; more shapes than that are decided anew."""

_STEPS = 20  # of sparsity: a schedule meets a few buckets only
_MODES: dict[str, Choice | None] = {"sparse": ALL_SPARSE, "dense": ALL_DENSE, "model": None, "off": None}
_SIGNIFICANT_BITS = 3

Record = Callable[[Shape, float], object]
"""Called with the shape and the sparsity of every question, while `recorded`."""


@dataclass(frozen=True)
class _Scope:
    """What a ``with`` block changes."""

    file: Path | None = None
    record: Record | None = None


_scope: ContextVar[_Scope | None] = ContextVar("torchswat_plan", default=None)


class TunedPlan:
    """The timings of this machine and the choices that were made, shared by all threads of a process.

    Attributes
    ----------
    most_choices : int
        The number of choices that are remembered.
    """

    def __init__(self, most_choices: int = MOST_CHOICES) -> None:
        self.most_choices = most_choices
        self._lock = threading.RLock()
        self._choices: dict[tuple, Choice] = {}
        self._timings: dict[tuple[Path, str], dict[str, Timing]] = {}  # by file and machine
        self._learnt = 0  # how often choices were dropped

    def __len__(self) -> int:
        return len(self._choices)

    def choose(self, shape: Shape, sparsity: float) -> Choice:
        """Return which products of `shape` run sparse at `sparsity`; see the function `choose`."""
        scope, file = _scope.get(), None
        if scope is not None:
            file = scope.file
            if scope.record is not None:
                scope.record(shape, sparsity)
        asked = os.environ.get("TORCHSWAT_PLAN", "")
        step, threads = int(sparsity * _STEPS + 1e-9), torch.get_num_threads()
        key = (
            asked,
            file,
            shape.input,
            shape.weight,
            shape.stride,
            shape.padding,
            shape.dilation,
            shape.narrow,
            step,
            threads,
        )
        choice = self._choices.get(key)
        return self._decide(key, shape, sparsity) if choice is None else choice

    def circumstances(self) -> tuple[Any, ...] | None:
        """Return what a choice hangs on beside shape and sparsity; None where each question is to be asked."""
        scope = _scope.get()
        if scope is not None and scope.record is not None:
            return None
        file = None if scope is None else scope.file
        return os.environ.get("TORCHSWAT_PLAN", ""), file, torch.get_num_threads(), self._learnt

    def _decide(self, key: tuple, shape: Shape, sparsity: float) -> Choice:
        with self._lock:
            choice = _MODES.get(key[0])
            if choice is None:
                timing = None if key[0] in _MODES else self._known().get(key_of(shape, sparsity))
                tuned = timing and plan_model.possible(shape, timing.choice())
                choice = tuned or plan_model.choice(shape, rounded(sparsity))
            if len(self._choices) >= self.most_choices:
                self._choices.clear()
            self._choices[key] = choice
            return choice

    def timing(self, shape: Shape, sparsity: float) -> tuple[Timing, bool]:
        """Return the milliseconds that the plan goes by, and whether they were measured."""
        with self._lock:
            asked = os.environ.get("TORCHSWAT_PLAN", "")
            tuned = None if asked in _MODES else self._known().get(key_of(shape, sparsity))
        return tuned or plan_model.estimate(shape, rounded(sparsity)), tuned is not None

    def _known(self) -> dict[str, Timing]:
        """Return the timings of this machine in the file in force, which is read once."""
        place = path(), machine()
        if place not in self._timings:
            self._timings[place] = table(place[0]).get(place[1], {})
        return self._timings[place]

    def learn(self, timings: Mapping[str, Timing]) -> Path | None:
        """Take `timings`, by `key_of`, into the plan and its file.

        Returns
        -------
        Path or None
            The file, or None where it cannot be written or ``TORCHSWAT_PLAN`` names none; the timings then
            last as long as the process.
        """
        with self._lock:
            self._known().update(timings)
            self._choices.clear()
            self._learnt += 1
        if os.environ.get("TORCHSWAT_PLAN", "") in _MODES:
            return None
        return path() if save(path(), machine(), timings) else None

    def snapshot(self, file: Path) -> None:
        """Write the timings of this machine to `file`."""
        with self._lock:
            save(file, machine(), self._known())

    def forget(self) -> None:
        """Drop all that was read and decided in this process."""
        with self._lock:
            self._choices.clear()
            self._timings.clear()
            self._learnt += 1

    def forget_file(self, file: Path) -> None:
        """Drop what was read from `file` and decided by it."""
        with self._lock:
            self._timings = {place: rows for place, rows in self._timings.items() if place[0] != file}
            self._choices = {key: choice for key, choice in self._choices.items() if key[1] != file}
            self._learnt += 1

    def unlock(self) -> None:
        """Begin with a free lock, in a forked process in which its holder does not run."""
        self._lock = threading.RLock()


PLAN = TunedPlan()
"""That of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PLAN.unlock)


def choose(shape: Shape, sparsity: float) -> Choice:
    """Return which products of `shape` run sparse at `sparsity`.

    The same question has the same answer in every order of questions and every thread. Nothing is measured,
    written or drawn at random.

    Examples
    --------
    >>> choose(Shape((1, 3, 4, 4), (2, 3, 3, 3), (1, 1), (1, 1)), 0.8).forward in (True, False)
    True
    """
    return PLAN.choose(shape, sparsity)


def products_of(choice: Choice) -> int:
    """Return the bits of the products that run sparse, as `torchswat.engine.arguments` names them."""
    return choice.forward | choice.grad_input << 1 | choice.grad_weight << 2


# ---- buckets -----------------------------------------------------------------------------------------------


def rounded(sparsity: float) -> float:
    """Return `sparsity` rounded down to a multiple of 0.05."""
    return int(sparsity * _STEPS + 1e-9) / _STEPS


def bucket(shape: Shape) -> Shape:
    """Return the shape that stands for `shape`: batch size, height and width rounded up.

    Examples
    --------
    >>> bucket(Shape((100, 3, 28, 29), (8, 3, 3, 3), (1, 1), (1, 1))).input
    (112, 3, 28, 32)
    """
    n, c, h, w = shape.input
    return replace(shape, input=(_rounded_up(n), c, _rounded_up(h), _rounded_up(w)))


def _rounded_up(size: int) -> int:
    shift = max(0, size.bit_length() - _SIGNIFICANT_BITS)
    return -(-size >> shift) << shift


def key_of(shape: Shape, sparsity: float) -> str:
    """Return the name of the bucket of `shape` at `sparsity` with the threads of torch."""
    return f"{bucket(shape)}-S{rounded(sparsity):.2f}-t{torch.get_num_threads()}"


# ---- scopes ------------------------------------------------------------------------------------------------


@contextmanager
def _in_scope(**changes: Any) -> Iterator[None]:
    token = _scope.set(replace(_scope.get() or _Scope(), **changes))
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def followed(file: Path) -> Iterator[None]:
    """Choose by the timings in `file` within a ``with`` block; it begins with what the machine knows.

    A training that is resumed then takes the same products as before, and so rounds the same, whatever was
    tuned meanwhile. ``TORCHSWAT_PLAN`` has the last word.
    """
    if not file.exists() and native() is not None:
        PLAN.snapshot(file)
    try:
        with _in_scope(file=file):
            yield
    finally:
        PLAN.forget_file(file)


@contextmanager
def recorded(record: Record) -> Iterator[None]:
    """Call `record` with the shape and the sparsity of every question within a ``with`` block."""
    with _in_scope(record=record):
        yield


# ---- the file ----------------------------------------------------------------------------------------------


def path() -> Path:
    """Return the file of the timings."""
    asked = os.environ.get("TORCHSWAT_PLAN", "")
    if asked and asked not in _MODES:
        return Path(asked)
    scope = _scope.get()
    if scope is not None and scope.file is not None:
        return scope.file
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "torchswat" / "plan.json"


def machine() -> str:
    """Return what a timing depends on beside the shape: processor, instruction set, torch."""
    module = native()
    isa = module.isa() if module else "reference"
    return f"{_processor()} | {isa} | torch {torch.__version__} | plan {VERSION}"


@cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(file: Path | None = None) -> dict[str, dict[str, Timing]]:
    """Return all timings, by machine and bucket; empty where the file is absent or damaged."""
    try:
        stored = json.loads((file or path()).read_text())
        return {
            name: {key: Timing(**{k: _pair(v) for k, v in row.items()}) for key, row in rows.items()}
            for name, rows in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _pair(milliseconds: Any) -> tuple[float, float]:
    sparse, dense = milliseconds
    return float(sparse), float(dense)


def save(file: Path, name: str, timings: Mapping[str, Timing]) -> bool:
    """Add the timings of the machine `name` to `file`, atomically; return whether that could be done."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            stored: dict[str, Any] = {
                n: {k: asdict(t) for k, t in rows.items()} for n, rows in table(file).items()
            }
            stored.setdefault(name, {}).update({key: asdict(timing) for key, timing in timings.items()})
            _replace(file, json.dumps(stored, indent=1))
    except OSError:
        return False
    return True


def _replace(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
        temporary.write(text)
        temporary.flush()
        os.fsync(temporary.fileno())
    try:
        Path(temporary.name).replace(file)
    except OSError:
        Path(temporary.name).unlink()
        raise


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the folder of `file` against other processes that save there."""
    if fcntl is None:
        yield
        return
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
