"""A process that runs the contestants of one program: ``python worker.py PROGRAM SEED [FOLDER]``.

Commands arrive on standard input, one JSON list a line, and each is answered by one JSON line: ``["settle",
NAME]``, ``["run", NAME, STEPS]``. FOLDER is where to import another version of torchswat from; the
programs themselves are always those that lie beside this file.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALM = 3  # steps in a row that must be about as fast as the fastest so far
_ABOUT = 1.25
_LEAST_STEPS, _MOST_STEPS = 12, 100
_PATIENCE = 10.0  # seconds after which `_CALM` steps are enough


def load(name: str, seed: int, folder: str | None) -> tuple[dict[str, Any], dict[str, Callable[[], object]]]:
    """Import torchswat, from `folder` where that is given, and build the contestants of the program.

    The name "" is that of a program without contestants.
    """
    if folder is not None:
        # an editable installation would go before the path
        sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
        sys.path.insert(0, folder)
    import torchswat
    import torchswat.bench

    torchswat.tune_allocator()
    torchswat.bench.__path__[:] = [str(Path(__file__).parents[1])]
    import torch

    from torchswat.bench.programs.listing import PROGRAMS
    from torchswat.engine import info

    torch.manual_seed(seed)
    package = Path(torchswat.__file__).parent
    facts = {"package": str(package), "commit": commit_of(package), "engine": info()}
    return facts, PROGRAMS[name].contestants() if name else {}


def commit_of(folder: Path) -> str | None:
    """Return the commit of the checkout at `folder`, marked where it was changed, or None."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def milliseconds(step: Callable[[], object], steps: int) -> float:
    """Return the mean time of a step."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return 1000 * (time.perf_counter() - start) / steps


def settle(step: Callable[[], object], at_once: int) -> float:
    """Run until the tuning is over and the time of `at_once` steps changes no more; return that of one."""
    start, fastest, calm = time.perf_counter(), float("inf"), 0
    for count in range(_MOST_STEPS):
        taken = milliseconds(step, at_once)
        calm = calm + 1 if taken <= _ABOUT * fastest else 0
        fastest = min(fastest, taken)
        enough = count >= _LEAST_STEPS or time.perf_counter() - start > _PATIENCE
        if calm >= _CALM and enough:
            break
    gc.collect()
    return fastest


def main() -> None:
    """Answer commands until the input ends."""
    sys.path.pop(0)  # this folder, whose modules have names that others have, too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    name, seed, *folder = sys.argv[1:]
    facts, contestants = load(name, int(seed), *(folder or [None]))
    answer({**facts, "contestants": list(contestants)})
    for line in sys.stdin:
        command, contestant, steps = json.loads(line)
        run = {"settle": settle, "run": milliseconds}[command]
        answer(run(contestants[contestant], steps))


if __name__ == "__main__":
    main()
