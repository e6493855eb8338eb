"""Fit the cost model of the tuned plan to times measured on this machine, and print how often it is right.

    python -m torchswat.bench.calibrate --seconds 900 --output src/torchswat/engine/plan_costs.py

Random shapes are raced on one thread, by the processor time of that thread, which other processes disturb
little. Costs are fitted to relative errors, none of them negative. The agreement printed is that on every
fourth sample, which a first fit does not see: of the products whose two ways differ by more than 15 %, the
fraction in which the model chooses the faster one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from torchswat.engine import plan_model
from torchswat.engine.loader import native
from torchswat.engine.plan import machine
from torchswat.engine.plan_costs import COSTS, FITTED
from torchswat.engine.plan_model import MARGIN, PRODUCTS, WAYS, Sizes, amounts, densities, kind_of
from torchswat.engine.race import race
from torchswat.engine.shape import Shape
from torchswat.engine.timings import Timing, multiply_adds
from torchswat.files import write_atomically

KINDS = ("3x3", "3x3 strided", "1x1", "1x1 strided", "matrix", "other")
CLEAR = 1.15
"""Ratio of the two times from which a choice counts."""

Costs = dict[tuple[str, str, str], tuple[float, ...]]

_CHANNELS = (3, 8, 16, 16, 24, 32, 32, 48, 64, 64, 96, 128, 128, 192, 256, 256, 384, 512, 768, 1024)
_BATCHES = (1, 2, 4, 8, 12, 16, 16, 24, 32, 32, 48, 64, 64, 100, 128, 128, 256)
_ROWS = (1, 4, 16, 32, 64, 64, 128, 128, 256, 512, 520, 1024, 2080, 4096, 8192)
_FEATURES = (10, 32, 64, 100, 128, 192, 256, 300, 384, 512, 576, 768, 784, 1000, 1024, 2048, 3072)
_SIDES = (2, 4, 4, 6, 7, 8, 8, 10, 14, 14, 16, 16, 20, 28, 28, 32, 32, 48, 56, 64, 112)
_SPARSITIES = (0.5, 0.7, 0.8, 0.8, 0.8, 0.9, 0.95)
_GEOMETRIES = (  # kernel, stride, padding
    *[(3, 1, 1)] * 4,
    (3, 1, 0),
    *[(1, 1, 0)] * 3,
    *[(3, 2, 1)] * 2,
    (1, 2, 0),
    *((2, 2, 0), (4, 4, 0), (8, 8, 0), (5, 1, 2), (5, 2, 2), (7, 2, 3), (7, 1, 3)),
)
_LEAST, _MOST = 2e4, 2.5e9  # multiply-adds
_MOST_FLOATS = 2.5e7


@dataclass(frozen=True)
class Sample:
    """The times of one shape."""

    shape: Shape
    sparsity: float
    threads: int
    timing: Timing

    def line(self) -> str:
        """Return the sample as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_line(cls, line: str) -> Sample:
        """Return the sample that `line` holds."""
        row = json.loads(line)
        narrow = row["shape"].pop("narrow", False)
        shape = Shape(**{key: tuple(value) for key, value in row["shape"].items()}, narrow=narrow)
        timing = Timing(**{key: tuple(value) for key, value in row["timing"].items()})
        return cls(shape, row["sparsity"], row["threads"], timing)


# ---- measuring ---------------------------------------------------------------------------------------------


def random_shape(draw: random.Random) -> Shape:
    """Return a shape of the sizes that networks have, or a fully connected layer."""
    while True:
        shape = _any_shape(draw)
        size = multiply_adds(shape)
        often = size < 5e8 or draw.random() < 0.4
        if _LEAST < size < _MOST and math.prod(shape.input) < _MOST_FLOATS and often:
            return shape


def _any_shape(draw: random.Random) -> Shape:
    if draw.random() < 0.25:
        rows, features, outputs = draw.choice(_ROWS), draw.choice(_FEATURES), draw.choice(_FEATURES)
        return Shape((rows, features, 1, 1), (outputs, features, 1, 1), (1, 1), (0, 0))
    kernel, stride, padding = draw.choice(_GEOMETRIES)
    side = draw.choice([side for side in _SIDES if side + 2 * padding >= kernel])
    channels = draw.choice((3, draw.choice(_CHANNELS))) if kernel > 3 else draw.choice(_CHANNELS)
    return Shape(
        (draw.choice(_BATCHES), channels, side, side),
        (draw.choice(_CHANNELS), channels, kernel, kernel),
        (stride, stride),
        (padding, padding),
    )


def samples(seconds: float, seed: int = 0, narrow: bool = False) -> Iterator[Sample]:
    """Yield raced random shapes for `seconds`, on one thread; `narrow` ones are of bfloat16."""
    draw, end, threads = random.Random(seed), time.monotonic() + seconds, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while time.monotonic() < end:
            shape, sparsity = random_shape(draw), draw.choice(_SPARSITIES)
            if narrow:  # of an even number of samples
                n, *rest = shape.input
                shape = replace(shape, input=(n + n % 2, *rest), narrow=True)
            yield Sample(shape, sparsity, 1, race(shape, sparsity, 4, time.thread_time))
    finally:
        torch.set_num_threads(threads)


# ---- fitting -----------------------------------------------------------------------------------------------


def fit(measured: Iterable[Sample]) -> Costs:
    """Return the costs that fit the samples, for every kind of shape that occurs."""
    by_kind: dict[str, list[Sample]] = {}
    for sample in measured:
        by_kind.setdefault(kind_of(sample.shape), []).append(sample)
    return {
        (kind, product, way): _fit_one(kind, product, way, rows)
        for kind, rows in by_kind.items()
        for product in PRODUCTS
        for way in WAYS
    }


def _fit_one(kind: str, product: str, way: str, rows: Sequence[Sample]) -> tuple[float, ...]:
    times = np.array([getattr(row.timing, product)[WAYS.index(way)] for row in rows])
    counted = np.array(
        [
            amounts(
                kind, Sizes.of(row.shape), product, way, densities(row.shape, row.sparsity)[WAYS.index(way)]
            )
            for row in rows
        ]
    )
    counted[:, 1:] /= np.array([row.threads for row in rows])[:, None]
    done = (times > 0) & (times < 1e6)
    relative, weight = counted[done] / times[done, None], np.ones(done.sum())
    costs = np.zeros(counted.shape[1])
    for _ in range(10):  # towards the least absolute errors, which a disturbed sample moves less
        costs = nonnegative_least_squares(relative * weight[:, None], weight)
        weight = 1 / np.sqrt(np.maximum(np.abs(relative @ costs - 1), 0.08))
    return tuple(float(f"{cost:.4g}") for cost in costs)


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray, rounds: int = 400) -> np.ndarray:
    """Return x >= 0 that makes |matrix x - target| least, by descent along one coordinate after the other.

    Examples
    --------
    >>> nonnegative_least_squares(np.eye(2), np.array([3.0, -1.0]))
    array([3., 0.])
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    gram, right, x = scaled.T @ scaled, scaled.T @ target, np.zeros(matrix.shape[1])
    for _ in range(rounds):
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j] = max(0.0, x[j] - (gram[j] @ x - right[j]) / gram[j, j])
    return x / scale


# ---- agreement ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How the model's choices of one product and kind compare with the faster ways."""

    clear: int
    """Samples whose two ways differ by more than 15 %."""
    agreed: float
    """The fraction of these in which the model chooses the faster one."""
    wrongly_sparse: float
    """The fraction of these in which it chooses sparse, and dense is faster."""
    time: float
    """Time of all samples by the model's choices, over that by the faster ways."""


def agreement(
    costs: Mapping[tuple[str, str, str], tuple[float, ...]], rows: Sequence[Sample]
) -> dict[str, Agreement]:
    """Return the agreement by kind and product, and over all."""
    outcomes: dict[str, list[tuple[float, float, bool]]] = {}
    for row in rows:
        for product in PRODUCTS:
            sparse, dense = getattr(row.timing, product)
            guess = plan_model.estimate_pair(costs, row.shape, product, row.sparsity, row.threads)
            outcome = sparse, dense, guess[0] < MARGIN * guess[1]
            for name in (f"{kind_of(row.shape)} {product}", "all"):
                outcomes.setdefault(name, []).append(outcome)
    return {name: _agreement(rows) for name, rows in sorted(outcomes.items())}


def _agreement(outcomes: Sequence[tuple[float, float, bool]]) -> Agreement:
    clear = [(s, d, chosen) for s, d, chosen in outcomes if max(s, d) > CLEAR * min(s, d)]
    count = max(1, len(clear))
    return Agreement(
        len(clear),
        sum(chosen == (s < d) for s, d, chosen in clear) / count,
        sum(chosen and s > d for s, d, chosen in clear) / count,
        sum(s if chosen else d for s, d, chosen in outcomes) / sum(min(s, d) for s, d, _ in outcomes),
    )


def module_text(costs: Mapping[str, Costs], fitted: Mapping[str, str]) -> str:
    """Return the text of `torchswat.engine.plan_costs`: by instruction set, the costs and what they were fitted to."""
    lines = [
        '"""The costs of the tuned plan\'s model by instruction set, made by ``python -m torchswat.bench.calibrate``.',
        "",
        "Milliseconds for one call, then for a million of each of `torchswat.engine.plan_model.amounts`.",
        '"""',
        "",
        "FITTED = {",
        *(f'    "{isa}": "{what}",' for isa, what in sorted(fitted.items())),
        "}",
        '"""What they were fitted to."""',
        "",
        "COSTS: dict[str, dict[tuple[str, str, str], tuple[float, ...]]] = {",
    ]
    for isa, by_product in sorted(costs.items()):
        lines.append(f'    "{isa}": {{')
        for (kind, product, way), row in sorted(by_product.items()):
            lines.append(f'        ("{kind}", "{product}", "{way}"): ({", ".join(map(str, row))}),')
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """Measure or read samples, print the agreement, write the costs beside those of other instruction sets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=900, help="How long to measure (default: 900).")
    parser.add_argument("--seed", type=int, default=0, help="Of the random shapes.")
    parser.add_argument("--bfloat16", action="store_true", help="Fit the costs of bfloat16.")
    parser.add_argument("--samples", type=Path, help="A file that samples are read from and added to.")
    parser.add_argument("--output", type=Path, help="Where the costs are written (default: nowhere).")
    asked = parser.parse_args()
    rows = []
    if asked.samples and asked.samples.exists():
        rows = [Sample.of_line(line) for line in asked.samples.read_text().splitlines()]
    for sample in samples(asked.seconds, asked.seed, asked.bfloat16):
        rows.append(sample)
        if asked.samples:
            with asked.samples.open("a") as file:
                file.write(sample.line() + "\n")
    missing = set(KINDS) - {kind_of(row.shape) for row in rows[::4]} & {
        kind_of(row.shape) for row in rows[1::4]
    }
    if missing:
        parser.exit(
            2, f"{len(rows)} samples hold too few of {', '.join(sorted(missing))}; measure for longer.\n"
        )
    unseen, seen = rows[::4], [row for i, row in enumerate(rows) if i % 4]
    for name, found in agreement(fit(seen), unseen).items():
        print(
            f"{name:24} agreed {found.agreed:.3f}, wrongly sparse {found.wrongly_sparse:.3f} "
            f"of {found.clear}; time over the best {found.time:.3f}"
        )
    if asked.output:
        module = native()
        isa = (module.isa() if module is not None else "plain").removesuffix("bf16") + "bf16" * asked.bfloat16
        fitted = FITTED | {isa: f"{len(rows):,} shapes on {machine()}"}
        write_atomically(asked.output, module_text(COSTS | {isa: fit(rows)}, fitted).encode())


if __name__ == "__main__":
    main()
