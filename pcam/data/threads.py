"""Work on all cores, a little at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcam.terminal import printable

TASK_PATCHES: Final = 64
"""Patches that a thread decodes or hashes at a time: 1.8 MB, so that a hundred cores need little memory."""

Item = TypeVar("Item")
Result = TypeVar("Result", bound=Sized)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], total: int, description: str) -> Iterator[Result]:
    """Do the same work with many items on all cores, under a progress bar.

    Threads, not processes: image decoders, SHA-1 and reading release the interpreter's lock, and patches need not be
    copied from process to process.

    Args:
        work: What is done with an item; it is called from several threads at once.
        items: Taken as they are needed, so that memory holds about as many items and results as there are cores.
        total: The sum of the lengths of all results, for the progress bar.
        description: What the progress bar says; brackets are no markup, control characters are escaped.

    Yields:
        The results, in the order of the items.
    """
    cores = os.cpu_count() or 1
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pending: deque[Future[Result]] = deque()
    with Progress(*columns) as progress, ThreadPoolExecutor(cores) as pool:
        bar = progress.add_task(printable(description), total=total)

        def take() -> Result:
            result = pending.popleft().result()
            progress.advance(bar, len(result))
            return result

        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > cores + 2:
                    yield take()
            while pending:
                yield take()
        finally:
            for future in pending:  # after an error, the others are not worth waiting for
                future.cancel()
