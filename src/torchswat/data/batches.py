"""Batches of a split, ready for the network, in an order that a resumed run repeats bit for bit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from torchswat.data import draws
from torchswat.data.augment import Augmentation, draw
from torchswat.data.dataset import Images, Mapper, Split
from torchswat.errors import InvalidValue

AHEAD = 2  # batches of images decoded before they are asked for
PIECE = 256  # images cropped and normalised at once: their bytes fit in the cache of a core


class Batches:
    """Iterate over normalised, augmented batches of a split.

    Order and augmentation are pure functions of (`seed`, epoch, sample): they depend neither on the batch
    size nor on the processes nor on where the epoch was begun, and there is no state to save beyond the
    epoch and the number of the next batch.

    Images in memory are handled as whole tensors in the calling thread: a small share of a step (``data_seconds`` in
    the metrics of a run), which another thread would not hide but pay for. Image files are decoded by a pool of
    threads, two batches ahead, while the caller computes.

    Parameters
    ----------
    split : Split
    batch_size : int
        Samples a batch, over all processes together.
    shuffle : bool, default False
        Reorder the samples in every epoch.
    seed : int, default 0
    augment : RandomCrop or RandomResizedCrop, optional
        By default images are shown as they are (files: scaled and cut by the split's `CentreCrop`).
    drop_last : bool, default False
        Leave out the last batch if it is not full.
    rank, world_size : int, default 0 and 1
        Of `world_size` processes this is number `rank`; it gets its contiguous share of every batch. The
        shares of a batch are equal, but for a last batch that is not full: there some have one sample
        more, so add up sums rather than means, or set `drop_last`.
    workers : int, optional
        Threads that decode image files; by default one for each usable processor.

    Raises
    ------
    InvalidValue
        A parameter is outside what is allowed, or `batch_size` is no multiple of `world_size`.

    Examples
    --------
    >>> from torchswat.data import Batches, load
    >>> digits = load("digits")
    >>> batches = Batches(digits.train, 128, shuffle=True, seed=1, augment=digits.augmentation)
    >>> batches.set_epoch(5, start=10)  # go on in the middle of the sixth epoch
    >>> [tuple(images.shape) for images, labels in batches]
    [(128, 1, 8, 8), (34, 1, 8, 8)]
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augmentation | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidValue(f"batch_size is {batch_size}: it must be 1 or more.")
        if not 0 <= rank < world_size:
            raise InvalidValue(f"rank is {rank} of {world_size} processes: it must be 0 to {world_size - 1}.")
        if batch_size % world_size:
            raise InvalidValue(
                f"batch_size is {batch_size} over {world_size} processes: take a multiple of {world_size}."
            )
        if workers is not None and workers < 1:
            raise InvalidValue(f"workers is {workers}: it must be 1 or more.")
        if drop_last and len(split) < batch_size:
            raise InvalidValue(
                f"batch_size is {batch_size}: with drop_last nothing of the {len(split)} samples is left."
            )
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augment = augment
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.workers: int = workers or usable_processors()
        self.epoch: int = 0
        self.start: int = 0

        mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))  # (C, 1, 1)
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of the first batch, of the iterations that follow.

        Parameters
        ----------
        epoch : int
            From 0.
        start : int, default 0
            Batches to leave out; 0 to ``len(self)``.
        """
        if epoch < 0:
            raise InvalidValue(f"epoch is {epoch}: it must be 0 or more.")
        if not 0 <= start <= len(self):
            raise InvalidValue(f"start is {start}: an epoch has {len(self)} batches; take 0 to {len(self)}.")
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, float32 of shape (B, C, H, W), and labels, int64 of shape (B,)."""
        epoch, shares = self.epoch, self._shares()
        if isinstance(self.split, Images):
            for numbers in shares:
                yield self._read(numbers, epoch, map)
        else:
            yield from self._read_ahead(shares, epoch)

    def _shares(self) -> list[Tensor]:
        """List the sample numbers of this process, batch by batch."""
        count = len(self.split)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.from_numpy(draws.permutation(self.seed, draws.ORDER, self.epoch, count))
        batches = order.split(self.batch_size)[self.start : len(self)]
        return [batch.tensor_split(self.world_size)[self.rank] for batch in batches]

    def _read(self, numbers: Tensor, epoch: int, mapper: Mapper) -> tuple[Tensor, Tensor]:
        """Make the batch of the samples `numbers`; `mapper` is the ``map`` that decodes image files."""
        if self.augment is None:
            uniform = np.empty((len(numbers), 0))
        else:
            uniform = draw(self.augment, self.seed, epoch, numbers.numpy())
        images = torch.empty(len(numbers), *self.split.shape)
        for start in range(0, len(numbers), PIECE):
            piece = slice(start, start + PIECE)
            pixels = self.split.read(numbers[piece], self.augment, uniform[piece], mapper)
            images[piece].copy_(pixels).mul_(self._scale).add_(self._shift)
        return images, self.split.labels[numbers]

    def _read_ahead(self, shares: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches in a thread of their own, `AHEAD` of the caller; its pool decodes the images."""
        reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        decoders = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        pending: deque[Future[tuple[Tensor, Tensor]]] = deque()
        try:
            for numbers in shares:
                pending.append(reader.submit(self._read, numbers, epoch, decoders.map))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the caller stops early, or an image is damaged
            reader.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)


def usable_processors() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
