"""What every form asks of files: whether they changed, and the sentence for one that cannot be read."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pcam.errors import UserError


def signature(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Condense the names, sizes and modification times of files into one text, which changes when a file changes.

    Args:
        files: Name and status of each file, always in the same order.

    Returns:
        A SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, status in files:
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def unreadable(path: Path, error: Exception) -> UserError:
    """Make the error for a file that is truncated, damaged, or of another kind than its name says.

    Args:
        path: The file.
        error: What the library that read it raised.

    Returns:
        The error, to be raised.
    """
    return UserError(f"Expected a whole file in {path}, but it cannot be read ({error}); fetch it anew.")
