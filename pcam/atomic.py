"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Lend a temporary path beside `final`, and rename it to `final` if the block ends without an exception.

    A reader sees the old file or the new one, never a part of either, whenever the process is killed.

    Args:
        final: Where the file belongs; its folder is made if it does not exist.

    Yields:
        A path in the same folder, for the block to write a file to.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # a rename must not reach the disk before what it names
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
