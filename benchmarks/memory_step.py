"""Time training steps that recompute inputs of layers in the backward pass against the same that save them all.

python benchmarks/memory_step.py [REPEATS]

Both sides run the same kernels, in turns in one process. Writes ``docs/results/memory-step.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchswat import fuse_, models, sparsify_
from torchswat.bench.race import median, race, spread
from torchswat.bench.record import Record, circumstances
from torchswat.layers import SparseConv2d

RESULT = Path(__file__).parent.parent / "docs" / "results" / "memory-step.json"
NETWORKS, SPARSITIES, BATCH_SIZE = ("resnet18", "vgg16"), (0.5, 0.7, 0.8), 128


@contextmanager
def _saved_at_hand() -> Iterator[None]:
    """Save the input of every layer compressed, also where it could be recomputed."""
    original = SparseConv2d.forward_recomputing

    def without(layer: SparseConv2d, input: Tensor, recompute: Any) -> Tensor:
        return original(layer, input, None)

    SparseConv2d.forward_recomputing = without
    try:
        yield
    finally:
        SparseConv2d.forward_recomputing = original


def _compare(name: str, sparsity: float, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = sparsify_(models.create(name).train(), "swat", sparsity, method="sample")
    fuse_(model)
    images, classes = torch.randn(BATCH_SIZE, 3, 32, 32), torch.randint(10, (BATCH_SIZE,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()

    def at_hand() -> None:
        with _saved_at_hand():
            step()

    samples = race({"kept small": step, "kept at hand": at_hand}, repeats)
    small, large = median(samples["kept small"]), median(samples["kept at hand"])
    print(
        f"{name} S = {sparsity}: {small:.0f} ms, {large:.0f} ms at hand: {100 * (small / large - 1):+.1f} %"
    )
    return {
        "network": name,
        "batch_size": BATCH_SIZE,
        "sparsity": sparsity,
        "kept_small_ms": small,
        "kept_at_hand_ms": large,
        "slower": small / large - 1,
        "spread": {side: spread(times) for side, times in samples.items()},
        "samples": samples,
    }


def main() -> None:
    """Time all and write the result."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    situation = circumstances(seed=0, repeats=repeats)
    rows = [_compare(name, sparsity, repeats) for name in NETWORKS for sparsity in SPARSITIES]
    Record("memory-step", situation, rows, [], []).write(RESULT)
    print(f"The result is in {RESULT}.")


if __name__ == "__main__":
    main()
