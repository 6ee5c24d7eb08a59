"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcam.errors import UserError


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Lend a temporary path beside `final`, and rename it to `final` if the block ends without an exception.

    A reader sees the old file or the new one, never a part of either, whenever the process is killed.

    Args:
        final: Where the file belongs; its folder is made if it does not exist.

    Yields:
        A path in the same folder, for the block to write a file to.

    Raises:
        UserError: If there is a folder in its place, or a file in the place of its folder.
    """
    if final.is_dir():
        raise UserError(f"Expected to write a file {final}, but found a folder there; choose another place.")
    folder = next(parent for parent in final.parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"Expected to write a file {final}, but {folder} is no folder; choose another place.")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # a rename must not reach the disk before what it names
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
