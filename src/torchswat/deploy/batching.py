"""Requests that come at the same time run as one batch, which takes less time than one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import torch
from torch import Tensor

from torchswat.runtime.network import Network


class Full(Exception):
    """The queue of images is full."""


class Batcher:
    """Collects images, runs the network on them in a thread, and gives each its row of the result.

    An image that finds the network idle runs at once, alone. Those that come while it runs are queued, and run next in
    batches of 1, 2, 4, 8, ...: the network is prepared for each batch size when it meets it first, and few sizes stay
    prepared.

    Parameters
    ----------
    network : Network
        Of `torchswat.load`.
    most : int
        Images in a batch, at most.
    room : int
        Images in the queue, at most.
    turn : asyncio.Lock, optional
        Held while a batch runs, so that several networks do not compete for the processor.
    seen : callable, optional
        Called with the size of each batch.
    """

    def __init__(
        self,
        network: Network,
        most: int,
        room: int,
        turn: asyncio.Lock | None = None,
        seen: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._network, self._most, self._seen = network, most, seen
        self._turn = turn or asyncio.Lock()
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue(room)
        self.sizes: Counter[int] = Counter()
        """How many batches there were of each size."""

    @property
    def queued(self) -> int:
        """Number of images in the queue."""
        return self._queue.qsize()

    async def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probabilities, (classes,), for the pixels of an image, uint8 (C, H, W).

        Raises
        ------
        Full
            The queue is full.
        """
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((pixels, future))
        except asyncio.QueueFull:
            raise Full from None
        return await future

    async def scores(self, images: Tensor) -> Tensor:
        """Return the outputs, (N, classes), for a batch that a client made, float32 (N, C, H, W)."""
        async with self._turn:
            return await asyncio.to_thread(self._network, images)

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
            first = await self._queue.get()
            async with self._turn:
                await self._run_batch(first)

    async def _run_batch(self, first: tuple[Tensor, asyncio.Future[Tensor]]) -> None:
        batch = [first]
        together = min(self._most, 1 + self._queue.qsize())
        while 2 * len(batch) <= together:
            batch += [self._queue.get_nowait() for _ in batch]
        self.sizes[len(batch)] += 1
        self._seen(len(batch))
        pixels = torch.stack([pixels for pixels, _ in batch])
        try:
            rows = await asyncio.to_thread(self._network.probabilities, pixels)
        except Exception as error:  # each request answers for it; the service goes on
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), row in zip(batch, rows, strict=True):
            if not future.done():  # its client may have left
                future.set_result(row)
