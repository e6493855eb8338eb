"""Requests that come at the same time run as one batch: many pictures take less time each than one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import torch
from torch import Tensor

from torchswat.runtime.network import Network


class Full(Exception):
    """More pictures wait than there is room for."""


class Batcher:
    """Collects pictures, runs the network on them in a thread, and gives each its row of the result.

    A picture that finds the network idle runs at once, alone; those that come while it is at work wait, and
    run together next, by 1, 2, 4, 8, ...: the network is prepared for each size of batch when it meets it
    first, and of few sizes all stay prepared.

    Parameters
    ----------
    network : Network
        Of `torchswat.load`.
    most : int
        Pictures in a batch, at most.
    room : int
        Pictures that may wait.
    """

    def __init__(self, network: Network, most: int, room: int) -> None:
        self._network, self._most = network, most
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue(room)
        self.sizes: Counter[int] = Counter()
        """How many batches there were of each size."""

    @property
    def waiting(self) -> int:
        """Number of pictures that wait."""
        return self._waiting.qsize()

    async def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probabilities, (classes,), for the pixels of a picture, uint8 (C, H, W).

        Raises
        ------
        Full
            There is no room to wait.
        """
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((pixels, future))
        except asyncio.QueueFull:
            raise Full from None
        return await future

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work as long as the ``async with`` block lasts."""
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            together = min(self._most, 1 + self._waiting.qsize())
            while 2 * len(batch) <= together:
                batch += [self._waiting.get_nowait() for _ in batch]
            self.sizes[len(batch)] += 1
            pixels = torch.stack([pixels for pixels, _ in batch])
            try:
                rows = await asyncio.to_thread(self._network.probabilities, pixels)
            except Exception as error:  # each request answers for it; the service goes on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():  # its client may have left
                    future.set_result(row)
