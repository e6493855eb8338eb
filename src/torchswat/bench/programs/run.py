"""The contestants of a program in turns, round by round, in one process for each version of torchswat."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import torchswat
from torchswat.bench.programs import worker
from torchswat.bench.programs.kinds import SPARSITY
from torchswat.bench.programs.listing import PROGRAMS, Program
from torchswat.bench.programs.overhead import TINY, StepOverhead
from torchswat.bench.race import Tick, faster, median, spread
from torchswat.bench.record import Record, Row, circumstances
from torchswat.errors import InvalidValue, MissingData, MissingDependency, TorchswatError, UnknownName

_ROUND_MS = 100.0  # a contestant runs at least for so long before the next one's turn
_COLD_ROUNDS = 3  # each of them starts a process for each contestant


def matching(patterns: Sequence[str], quick: bool = False) -> tuple[str, ...]:
    """Return the names of the programs that one of the `patterns` fits: all of them where there is none.

    Parameters
    ----------
    patterns : sequence of str
        As in `fnmatch`.
    quick : bool, default False
        Leave out what takes long, unless a pattern is its very name.

    Raises
    ------
    UnknownName
        For a pattern that fits no program.

    Examples
    --------
    >>> matching(["mlp-x64*"])
    ('mlp-x64', 'mlp-x64-period10')
    """
    for pattern in patterns:
        if not fnmatch.filter(PROGRAMS, pattern):
            raise UnknownName.of("program", pattern, PROGRAMS)
    return tuple(
        name
        for name, program in PROGRAMS.items()
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if name in patterns or not (quick and program.is_long)
    )


def source_folder(path: Path) -> Path:
    """Return the folder from which the torchswat at `path` is imported: itself, or its folder ``src``.

    Raises
    ------
    MissingData
        Where there is no torchswat.
    """
    for folder in (path, path / "src"):
        if (folder / "torchswat" / "__init__.py").is_file():
            return folder.resolve()
    raise MissingData(
        f"{path} has no torchswat; allowed is a checkout, its folder src, or where pip installed it."
    )


def rounds(names: Sequence[str], repeats: int) -> int:
    """Return how often `bench_programs` calls its `tick`."""
    return sum(1 + _repeats(PROGRAMS[name], repeats) for name in names)


def _repeats(program: Program, repeats: int) -> int:
    return min(repeats, _COLD_ROUNDS) if program.is_cold else repeats


def bench_programs(
    names: Sequence[str],
    repeats: int = 15,
    against: Path | None = None,
    *,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> Record:
    """Time programs with SWAT at a sparsity of 0.8 against dense ones, and against another version of SWAT.

    The contestants run in turns, each for a tenth of a second, after all of them have settled. A dense
    program counts in its faster layout. Every version starts with an empty cache of measurements.

    Parameters
    ----------
    names : sequence of str
        Keys of `PROGRAMS`.
    repeats : int, default 15
        Timed rounds (three at most of programs that start a process each time).
    against : Path, optional
        A checkout or installation of another version of torchswat, whose sparse steps run in the same rounds.
    seed : int, default 0
        Of weights and images.
    tick : callable
        Called ``rounds(names, repeats)`` times.

    Returns
    -------
    Record
        A row for each contestant; a remark for each program that could not run.

    Raises
    ------
    UnknownName, MissingData
        For a program that is not in the list, or a path without torchswat or without its compiled engine.
    MissingDependency
        Where all of the programs need a package that is not installed.
    """
    for name in names:
        if name not in PROGRAMS:
            raise UnknownName.of("program", name, PROGRAMS)
    other = None if against is None else source_folder(against)
    facts = {**circumstances(seed, repeats), "sparsity": SPARSITY}
    if other is not None:
        _check_engine(other, seed, facts["engine"])
    rows: list[Row] = []
    remarks: list[str] = []
    for name in names:
        ticks = iter(range(rounds([name], repeats)))

        def count(ticks: Any = ticks) -> None:
            next(ticks)
            tick()

        try:
            if name.startswith("hf-") and find_spec("transformers") is None:
                raise MissingDependency(
                    f'{name} needs transformers, which is not installed: pip install "torchswat[transformers]".'
                )
            rows += _race(PROGRAMS[name], repeats, other, seed, facts, count)
        except TorchswatError as error:
            if len(names) == 1:
                raise
            remarks.append(f"{name} is left out: {error}")
        for _ in ticks:
            tick()
    if not rows and remarks:
        raise MissingDependency(remarks[0])
    return Record("programs", facts, rows, [], remarks)


# ---- one program -------------------------------------------------------------------------------------------


class _Worker:
    """A process with the contestants of one program, in this version of torchswat or in another."""

    def __init__(self, name: str, seed: int, folder: Path | None, cache: str) -> None:
        own = Path(torchswat.__file__).parent
        paths = [str(own.parent)] if folder is None else []  # it may be the current folder that leads to it
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": os.pathsep.join(paths)}
        arguments = [name, str(seed), *([] if folder is None else [str(folder)])]
        self.errors = Path(cache) / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, worker.__file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        try:
            self.facts = self._answer()
            expected = own if folder is None else folder / "torchswat"
            if Path(self.facts["package"]).resolve() != expected.resolve():
                raise InvalidValue(f"{expected} was asked for, but Python imports {self.facts['package']}.")
        except BaseException:
            self.__exit__()
            raise

    def ask(self, command: str, contestant: str, steps: int) -> float:
        """Return the milliseconds of a step."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended then, and reading its answer says why
            self.process.stdin.write(json.dumps([command, contestant, steps]) + "\n")
            self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            lines = self.errors.read_text().strip().splitlines() or ["it said nothing"]
            if lines[-1].startswith(f"{MissingDependency.__module__}.{MissingDependency.__name__}: "):
                raise MissingDependency(lines[-1].partition(": ")[2])
            raise InvalidValue(f"its process ended with code {code}: {lines[-1]}")
        return json.loads(line)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _check_engine(other: Path, seed: int, ours: Row) -> None:
    """Raise `MissingData` where plain torch would be timed for the other version's compiled engine."""
    with tempfile.TemporaryDirectory() as cache, _Worker("", seed, other, cache) as process:
        engine = process.facts["engine"]
    if engine["engine"] == "reference" != ours["engine"]:
        raise MissingData(
            f"{other} has no compiled engine that runs here ({engine['reason']}), so plain torch would be timed: build "
            "it with `pip install --no-deps --target FOLDER CHECKOUT` and name that FOLDER."
        )


def _race(program: Program, repeats: int, other: Path | None, seed: int, facts: Row, tick: Tick) -> list[Row]:
    if isinstance(program, StepOverhead):  # it looks into the plan, which other versions keep elsewhere
        other = None
    samples = (_cold if program.is_cold else _warm)(program, repeats, other, seed, facts, tick)
    return _rows(program, samples)


def _warm(
    program: Program, repeats: int, other: Path | None, seed: int, facts: Row, tick: Tick
) -> dict[str, list[float]]:
    """Return the milliseconds of a step, by contestant, after its tuning is over."""
    with ExitStack() as stack:
        runs: dict[str, Callable[[str, int], float]] = {}
        for prefix, folder in _sides(other):
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            process = stack.enter_context(_Worker(program.name, seed, folder, cache))
            _note(facts, prefix, process.facts)
            for name in process.facts["contestants"]:
                if not (prefix and "dense" in name):
                    runs[prefix + name] = lambda command, steps, p=process, n=name: p.ask(command, n, steps)
        at_once = program.steps_a_run
        steps = {
            name: at_once * max(1, math.ceil(_ROUND_MS / (at_once * run("settle", at_once))))
            for name, run in runs.items()
        }
        tick()
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(repeats):
            for name in list(runs)[:: 1 if index % 2 else -1]:  # nobody always follows the same one
                samples[name].append(runs[name]("run", steps[name]))
            tick()
    return samples


def _cold(
    program: Program, repeats: int, other: Path | None, seed: int, facts: Row, tick: Tick
) -> dict[str, list[float]]:
    """Return the milliseconds of the first run, by contestant, each in a process of its own."""

    def once(prefix: str, folder: Path | None, name: str | None) -> tuple[list[str], float]:
        with (
            tempfile.TemporaryDirectory() as cache,
            _Worker(program.name, seed, folder, cache) as process,
        ):
            _note(facts, prefix, process.facts)
            return process.facts["contestants"], process.ask("run", name, 1) if name else 0.0

    contestants = {
        prefix + name: (prefix, folder, name)
        for prefix, folder in _sides(other)
        for name in once(prefix, folder, None)[0]
        if not (prefix and "dense" in name)
    }
    tick()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(_repeats(program, repeats)):
        for name, contestant in contestants.items():
            samples[name].append(once(*contestant)[1])
        tick()
    return samples


AGAINST = "against "
"""What the names of the other version's contestants begin with."""


def _sides(other: Path | None) -> list[tuple[str, Path | None]]:
    return [("", None), *([(AGAINST, other)] if other else [])]


def _note(facts: Row, prefix: str, found: Row) -> None:
    """Write down which other version ran."""
    if prefix:
        facts["against"] = {"git_commit": found["commit"], "engine": found["engine"]}


# ---- figures -----------------------------------------------------------------------------------------------


def _rows(program: Program, samples: dict[str, list[float]]) -> list[Row]:
    """Return a row for each contestant, with its speeds over the others and what is asked of them.

    The speed-up is over dense steps as torch runs them; that over dense steps that Inductor compiled stands beside it.
    """

    def fastest(beginning: str) -> str:
        return faster({name: times for name, times in samples.items() if name.startswith(beginning)})

    best = "fused" if "fused" in samples else "sparse"
    compiled = fastest("compiled dense") if "compiled dense nchw" in samples else None
    rows: list[Row] = []
    for name, times in samples.items():
        own = name.removeprefix(AGAINST)
        dense = fastest(f"{TINY}dense" if own.startswith(TINY) else "dense")
        tiny = samples.get(f"{name.removesuffix(own)}{TINY}{own}")
        low, middle, high = (float(q) for q in np.percentile(times, [25, 50, 75]))
        row: Row = {
            "program": program.name,
            "batch": list(program.batch),
            "contestant": name,
            "step_ms": middle,
            "quartiles_ms": [low, high],
            "spread": spread(times),
            "speed_up": median(samples[dense]) / middle,
            "speed_up_quartiles": _ratio_quartiles(samples[dense], times),
            "asked": program.asked.get("dense") if name == best else None,
            "over_compiled": compiled and median(samples[compiled]) / middle,
            "outside_kernels": tiny and median(tiny) / middle,
            "outside_kernels_quartiles": tiny and _ratio_quartiles(tiny, times),
            "over_against": None,
            "asked_over_against": None,
            "over_float32": None,
            "asked_over_float32": None,
            "samples": {"step": times},
        }
        if name in ("sparse", "fused"):
            row |= _over_others(program, name, best, samples)
        rows.append(row)
    return rows


def _over_others(program: Program, name: str, best: str, samples: dict[str, list[float]]) -> Row:
    """Return the speeds of a contestant over the other version's best and over its own float32."""

    def fastest(beginning: str, ending: str = "") -> float | None:
        found = [
            median(samples[key])
            for key in (f"{beginning}sparse{ending}", f"{beginning}fused{ending}")
            if key in samples
        ]
        return min(found, default=None)

    middle, against, plain = median(samples[name]), fastest(AGAINST), fastest("", " float32")
    asked_against = program.asked.get("against" if name == best else "against unfused")
    return {
        "over_against": against and against / middle,
        "asked_over_against": asked_against if against else None,
        "over_float32": plain and plain / middle,
        "asked_over_float32": program.asked.get("float32") if plain and name == best else None,
        "asked_ms": program.asked["microseconds"] / 1000 if "microseconds" in program.asked else None,
    }


def _ratio_quartiles(others: list[float], times: list[float]) -> list[float]:
    """Return the quartiles of the ratios within each round."""
    ratios = np.divide(others, times)
    return [float(quartile) for quartile in np.percentile(ratios, [25, 75])]
