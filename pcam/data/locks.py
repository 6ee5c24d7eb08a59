"""A lock on a piece of work that one of several processes does, while the others wait and say for whom."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pcam.data.files import require_place
from pcam.terminal import printable

PATIENCE: Final = 10.0
"""Seconds that a process waits without a word."""


@contextmanager
def only_one(lock: Path, work: Callable[[], str], say: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time run a block; the system takes the lock from a process that ends, however it ends.

    Args:
        lock: The lock's file; it is made if it does not exist, and stays.
        work: Gives what the process that holds the lock does, for the message to those who wait.
        say: Prints that message, after `PATIENCE` seconds.

    Yields:
        Nothing.

    Raises:
        UserError: If a link, a folder or a device is in the place of the lock's file.
    """
    require_place(lock)
    held = FileLock(lock)
    try:
        held.acquire(timeout=PATIENCE)
    except Timeout:
        say(printable(f"Waiting for another process, which {work()} and holds {lock}; to go on now, end that process."))
        held.acquire()
    try:
        yield
    finally:
        held.release()
