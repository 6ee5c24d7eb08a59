"""Loaders that read whole batches from a packed split, and whose position can be saved and restored."""

import math
from collections.abc import Callable, Iterator
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pcam.data.packed import PackedSplit
from pcam.patches import PatchBatch


class Batches(Sampler[NDArray[np.int64]]):
    """The row numbers of each batch; of several processes, each gets its share of every batch.

    Args:
        count: Rows in the split.
        batch_size: Rows in a batch of one process, at least 1.
        shuffle_seed: None takes the rows in order, each exactly once over all processes; all processes then get the
            same number of batches, of nearly equal size. With a seed the order is shuffled, anew in each epoch, as a
            function of seed and epoch; the last batch holds what is left, minus what cannot be divided by the number
            of processes.
        rank: The number of this process, from 0.
        world_size: The number of processes.
        rows: The numbers of the rows, `count` of them; None is 0 to `count` - 1.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.rank = rank
        self.world_size = world_size
        self.rows = rows
        self.epoch = 0
        self.resume = (0, 0)
        """An epoch that is to be resumed, and how many of its batches the next pass skips."""

    def skipped(self) -> int:
        """Say how many batches the next pass skips: none, if its epoch is not the one to resume."""
        epoch, batches = self.resume
        return batches if epoch == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; Lightning calls it at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle_seed is None:
            return math.ceil(math.ceil(self.count / self.world_size) / self.batch_size)
        whole, rest = divmod(self.count, self.batch_size * self.world_size)
        return whole + (rest >= self.world_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        # The body of a generator runs at the first `next`: Lightning makes the iterator before it sets the epoch.
        rows = np.arange(self.count) if self.rows is None else self.rows.copy()
        if self.shuffle_seed is None:
            batches = np.array_split(rows[self.rank :: self.world_size], len(self))
        else:
            np.random.default_rng((self.shuffle_seed, self.epoch)).shuffle(rows)
            size = self.batch_size * self.world_size
            together = [rows[first : first + size] for first in range(0, len(self) * size, size)]
            shares = [len(batch) // self.world_size for batch in together]
            batches = [
                batch[self.rank * share : (self.rank + 1) * share]
                for batch, share in zip(together, shares, strict=True)
            ]
        start, self.resume = self.skipped(), (0, 0)  # for this pass alone
        yield from batches[start:]


class _Announced(Sampler[NDArray[np.int64]]):
    """The same batches; each is announced to the store one batch ahead, so that the disk reads it meanwhile."""

    def __init__(self, batches: Batches, store: PackedSplit) -> None:
        self._batches = batches
        self._store = store

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for rows, following in pairwise(chain(self._batches, [None])):
            assert rows is not None
            if following is not None:
                self._store.announce(following)
            yield rows


class BatchLoader:
    """An iterable of the batches of a packed split, which can resume within an epoch with any number of workers.

    It holds a DataLoader rather than being one: Lightning makes DataLoaders anew to number what they predict. And
    torchdata's StatefulDataLoader 0.11, saved after the last batch of an epoch, gives Lightning 2.6 an empty epoch.

    Args:
        store: The packed split.
        batches: The rows of each batch.
        num_workers: Processes that read batches; 0 reads in the calling process.
        change: Changes each batch before it is given; None gives it as it lies in the store.
    """

    def __init__(
        self,
        store: PackedSplit,
        batches: Batches,
        num_workers: int,
        change: Callable[[PatchBatch], PatchBatch] | None = None,
    ) -> None:
        self.sampler = batches  # Lightning tells it the epoch
        self.batch_sampler = None  # as in a DataLoader whose sampler yields batches; Lightning asks
        self._loader: DataLoader[PatchBatch] = DataLoader(
            store,  # type: ignore[arg-type]  # a data set whose index is a whole batch of rows
            batch_size=None,
            # Worker processes wait for the disk side by side; the training process alone would wait row by row.
            sampler=batches if num_workers else _Announced(batches, store),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            # A generator of its own: else each new iterator draws from the global state, and validating would change
            # what dropout draws afterwards.
            generator=torch.Generator().manual_seed(0),
        )
        self._change = change
        self._batches_given = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[PatchBatch]:
        self._batches_given = self.sampler.skipped()
        for batch in self._loader:
            self._batches_given += 1
            yield batch if self._change is None else self._change(batch)

    def state_dict(self) -> dict[str, int]:
        """Give the position to save: the epoch, and how many of its batches were given.

        If an epoch ends before its last batch, by Lightning's `limit_train_batches`, the next one still starts with
        its first batch.
        """
        return {"epoch": self.sampler.epoch, "batches_given": self._batches_given % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass start at a saved position, if it is a pass of the same epoch."""
        self.sampler.resume = (state_dict["epoch"], state_dict["batches_given"])
