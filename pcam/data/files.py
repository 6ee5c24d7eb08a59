"""What is asked of files before they are opened, and the sentence for one that cannot be read."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pcam.errors import UserError

_OTHER_WAYS: Final = (
    "set root to a folder of yours (--data.root DIR), or fetch the data set (pcam download data/pcam; "
    "8 GB), or make synthetic patches (pcam synthesize --output data/synthetic) and train on them "
    "(--data.root data/synthetic)"
)


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


def require_file(path: Path, what: str = "a file") -> os.stat_result:
    """Look whether something is a file, or a link to one, before it is opened.

    To open a named pipe or a device could wait for ever.

    Args:
        path: Where the file should be.
        what: What it should be, for the message.

    Returns:
        Its status.

    Raises:
        UserError: If it is not there, a link to nothing, a folder, a named pipe, a device or a socket.
        PermissionError: If the user may not look.
    """
    try:
        status = path.stat()
    except PermissionError:
        raise
    except FileNotFoundError:
        found = "it is a link to nothing" if path.is_symlink() else "there is nothing"
    except (OSError, ValueError) as error:  # a link to itself; a name that is too long or holds a null character
        found = f"there can be none ({getattr(error, 'strerror', None) or error})"
    else:
        if stat.S_ISREG(status.st_mode):
            return status
        found = f"it is {_kind(status)}"
    raise UserError(f"Expected {what} in {path}, but {found}; mend it or remove it.")


def require_place(path: Path) -> None:
    """Look whether a file can be written somewhere without harm to anything else.

    Args:
        path: Where it is to be written, or written on.

    Raises:
        UserError: If a link is there, whose target would be written to, or a folder, a named pipe or a device.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(
            f"Expected a file, or nothing, at {path}, but found {_kind(path.lstat())}; move it away, or remove it."
        )


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def unreadable(path: Path, error: Exception) -> UserError:
    """Make the error for a file that is truncated, damaged, or of another kind than its name says.

    Args:
        path: The file.
        error: What the library that read it raised.

    Returns:
        The error, to be raised.
    """
    return UserError(f"Expected a whole file in {path}, but it cannot be read ({error}); fetch it anew.")


def require_root(root: Path) -> None:
    """Look whether the folder with the data is there.

    Args:
        root: The folder.

    Raises:
        UserError: If it is missing or no folder.
    """
    try:
        found_there = root.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        found_there = False
    if not found_there:
        raise UserError(f"Expected a folder with PatchCamelyon at {root}, but found nothing there; {_OTHER_WAYS}.")
    if not root.is_dir():
        raise UserError(
            f"Expected a folder with PatchCamelyon at {root}, but found a file; set root to the folder that holds the "
            f"splits (--data.root DIR)."
        )
