"""Requests that come together run together; a failure answers each of them and ends nothing."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from torchswat.deploy.batching import Batcher, Full


class Slow:
    """A network that waits for a sign before it answers with the pixel it was shown."""

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), []

    def probabilities(self, pixels: Tensor) -> Tensor:
        self.go.wait(10)
        self.seen.append(len(pixels))
        if (pixels == 99).any():
            raise RuntimeError("it broke")
        return pixels.flatten(1).float()


async def ask(batcher: Batcher, number: int) -> float:
    return float(await batcher.probabilities(torch.full((1, 1, 1), number)))


def run(most: int, room: int, asked: list[int]) -> SimpleNamespace:
    """Ask for all of `asked` while the network is busy with a first picture."""

    async def main() -> SimpleNamespace:
        network: Any = Slow()
        batcher = Batcher(network, most, room)
        async with batcher.running():
            first = asyncio.create_task(ask(batcher, 0))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(ask(batcher, number)) for number in asked]
            await asyncio.sleep(0.05)
            network.go.set()
            results = await asyncio.gather(first, *others, return_exceptions=True)
        return SimpleNamespace(seen=network.seen, results=results, sizes=batcher.sizes)

    return asyncio.run(main())


def test_those_who_wait_run_together_and_each_gets_his_own():
    done = run(most=4, room=10, asked=[1, 2, 3, 4, 5, 6])
    assert done.results == [0, 1, 2, 3, 4, 5, 6]
    assert done.seen == [1, 4, 2] and done.sizes == {1: 1, 4: 1, 2: 1}


def test_batches_are_of_few_sizes():
    done = run(most=20, room=40, asked=list(range(1, 32)))
    assert done.results == list(range(32))
    assert done.seen == [1, 16, 8, 4, 2, 1]


def test_there_is_room_for_so_many():
    done = run(most=4, room=2, asked=[1, 2, 3])
    assert done.results[:3] == [0, 1, 2] and isinstance(done.results[3], Full)


def test_a_failure_ends_nothing():
    done = run(most=2, room=10, asked=[99, 1, 2])
    assert [isinstance(result, RuntimeError) for result in done.results] == [False, True, True, False]


def test_a_client_that_left_keeps_nobody_waiting():
    async def main() -> float:
        network: Any = Slow()
        batcher = Batcher(network, 4, 10)
        async with batcher.running():
            first = asyncio.create_task(ask(batcher, 1))
            await asyncio.sleep(0.05)
            first.cancel()
            network.go.set()
            return await ask(batcher, 2)

    assert asyncio.run(main()) == pytest.approx(2)
