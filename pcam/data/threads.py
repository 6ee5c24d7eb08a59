"""Work on all cores, a little at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TASK_PATCHES: Final = 64
"""Patches that one task decodes or hashes: 1.8 MB, so that a hundred cores need little memory."""

Result = TypeVar("Result", bound=Sized)


def in_threads(tasks: Iterable[Callable[[], Result]], total: int, description: str) -> Iterator[Result]:
    """Run tasks on all cores, under a progress bar.

    Threads, not processes: image decoders, SHA-1 and reading release the interpreter's lock, and patches need not be
    copied from process to process.

    Args:
        tasks: Taken as they are needed, so memory holds about as many tasks and results as there are cores.
        total: Sum of the lengths of all results, for the bar.
        description: What the bar says.

    Yields:
        The results, in the order of their tasks.
    """
    cores = os.cpu_count() or 1
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pending: deque[Future[Result]] = deque()
    with Progress(*columns) as progress, ThreadPoolExecutor(cores) as pool:
        bar = progress.add_task(description, total=total)

        def take() -> Result:
            result = pending.popleft().result()
            progress.advance(bar, len(result))
            return result

        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) > cores + 2:
                    yield take()
            while pending:
                yield take()
        finally:
            for future in pending:  # after an error, the others are not worth waiting for
                future.cancel()
