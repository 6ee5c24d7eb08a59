"""Files that are either whole or not there."""

import errno
import glob
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pcam.errors import REFUSALS, UserError

NAME_BYTES: Final = 255
"""Bytes that the name of a file may have, on the file systems in use."""


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Lend a temporary path beside `final`, and rename it to `final` if the block ends without an exception.

    A reader sees the old file or the new one, never a part of either, whenever the process is killed. What is no
    regular file, as /dev/stdout or a named pipe, is written to, and never replaced.

    Args:
        final: Where the file belongs; its folder is made if it does not exist.

    Yields:
        A path, for the block to write a file to.

    Raises:
        UserError: If there is a folder in its place, or a file in the place of its folder.
    """
    if is_stream(final):
        with _streamed(final) as temporary:
            yield temporary
        return
    if final.is_dir():
        raise UserError(f"Expected to write a file {final}, but found a folder there; choose another place.")
    make_folder(final.parent, f"to write a file {final}")
    temporary = temporary_path(final)
    clear_abandoned(final)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # a rename must not reach the disk before what it names
            os.fsync(file.fileno())
        temporary.replace(final)
    except OSError as error:
        if error.filename is None and error.errno in REFUSALS:  # the system does not say which file a write was to
            error.filename = str(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def link_path(source: Path, final: Path) -> None:
    """Make `final` another name of the file `source`, or a copy of it where the file system has no such names.

    Args:
        source: A file that is never changed, only replaced.
        final: The other name; what is there is replaced at once, as `atomic_path` does it.
    """
    with atomic_path(final) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # exFAT, and disks of some clouds; if it is another fault, copying meets it too
            shutil.copyfile(source, temporary)


@contextmanager
def atomic_folder(final: Path, purpose: str) -> Iterator[Path]:
    """Lend a temporary folder beside `final`, and rename it to `final` if the block ends without an exception.

    Args:
        final: Where the folder belongs: nothing, or an empty folder, is there.
        purpose: What it is for, as a message has it: "for the patches".

    Yields:
        A new folder, for the block to write to.

    Raises:
        UserError: If something is there already.
    """
    final = final.resolve()  # a rename needs the folder itself, not a link to it
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        found = "a folder that is not empty" if final.is_dir() else "a file"
        raise UserError(f"Expected a new or empty folder {purpose}, but {final} is {found}; choose another.")
    temporary = temporary_path(final)
    if final.parent.is_dir():
        clear_abandoned(final)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.replace(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise UserError(
                f"Expected a new or empty folder {purpose}, but another process has written to {final} meanwhile; "
                f"choose another."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(final: Path) -> Path:
    """The path beside a file or folder that its content is written to first; its name is no longer than one may be."""
    return final.with_name(f"{_stem(final)}.{os.getpid()}.tmp")


def clear_abandoned(final: Path) -> None:
    """Remove what processes of this machine that were killed have left beside a file or folder: what has no owner."""
    stem = _stem(final)
    for path in final.parent.glob(f"{glob.escape(stem)}.*.tmp"):
        number = path.name.removeprefix(f"{stem}.").removesuffix(".tmp")
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _stem(final: Path) -> str:
    """What the names of temporary files of a file begin with: hidden, with the machine's name as disks are shared."""
    machine = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:24]
    name = os.fsencode(f".{final.name}")[: NAME_BYTES - len(f".{machine}.{2**32}.tmp")]
    return f"{name.decode(errors='ignore')}.{machine}"


def make_folder(folder: Path, purpose: str) -> None:
    """Make a folder, with those above it, where it does not exist.

    Args:
        folder: The folder.
        purpose: What it is for, as a message has it after "Expected": "to write a file x".

    Raises:
        UserError: If a file is in the place of it, or of one above it.
    """
    there = next((parent for parent in [folder, *folder.parents] if os.path.lexists(parent)), folder)
    if os.path.lexists(there) and not there.is_dir():
        raise UserError(f"Expected {purpose}, but {there} is no folder; choose another place.")
    folder.mkdir(parents=True, exist_ok=True)


def expanded(path: Path | str, argument: str) -> Path:
    """Replace ~ by the user's home folder.

    Args:
        path: A path that a user gave.
        argument: The name of the argument, for the message.

    Raises:
        UserError: If it names the home folder of a user who is not there.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"Expected {argument} to be a path, but found {path}, and there is no such user; write the whole path."
        ) from error


def is_stream(path: Path) -> bool:
    """Whether a path is something to write to and not to replace: a device, a pipe, or what /dev and /proc lend."""
    if path.parts[:2] in (("/", "dev"), ("/", "proc")) and path.parts[:3] != ("/", "dev", "shm"):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _streamed(stream: Path) -> Iterator[Path]:
    """Lend a temporary path elsewhere, and copy what it holds at the end into a stream."""
    with tempfile.TemporaryDirectory(prefix="pcam-") as folder:
        temporary = Path(folder) / "output"
        yield temporary
        with temporary.open("rb") as source, stream.open("wb", buffering=0) as target:
            shutil.copyfileobj(source, target)


def _is_running(process: int) -> bool:
    """Whether a process of this machine is there; on Windows, where asking would interrupt it, any may be."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
