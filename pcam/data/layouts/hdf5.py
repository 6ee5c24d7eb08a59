"""Arrays in HDF5 files, packed with gzip or not."""

import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import rich.progress
from numpy.typing import NDArray

from pcam.data.layouts.files import unreadable
from pcam.data.layouts.tables import listed
from pcam.errors import UserError


@contextmanager
def open_array(path: Path, key: str, scratch: Path) -> Iterator[h5py.Dataset]:
    """Open an array of an HDF5 file.

    A file that is packed with gzip is unpacked first: HDF5 needs to seek, and cannot in what gzip unpacks on the fly.

    Args:
        path: The file, `.h5` or `.h5.gz`.
        key: The array's name in the file.
        scratch: The folder that a packed file is unpacked into.

    Yields:
        The array; the file is closed, and what was unpacked is deleted, when the block ends.

    Raises:
        UserError: If the file cannot be read, or has no such array.
    """
    packed = path.suffix == ".gz"
    unpacked = scratch / path.stem if packed else path
    try:
        if packed:
            _unpack(path, unpacked)
        try:
            # Keeps up to 64 MB of chunks: rows are asked for in parts, and a chunk may hold many of them.
            file = h5py.File(unpacked, "r", rdcc_nbytes=1 << 26)
        except OSError as error:
            raise unreadable(path, error) from error
        with file:
            array = file.get(key)
            if not isinstance(array, h5py.Dataset) or not array.shape:
                raise UserError(
                    f"Expected an array under the key '{key}' in {path}, but found the keys {listed(file)}; fetch the "
                    f"official file."
                )
            yield array
    finally:
        if packed:
            unpacked.unlink(missing_ok=True)


def read_rows(array: h5py.Dataset, path: Path, start: int, stop: int) -> NDArray[Any]:
    """Read rows of an array.

    Args:
        array: The array.
        path: The file it is from.
        start: The first row.
        stop: The row after the last; what is beyond the end is left out.

    Returns:
        The rows.

    Raises:
        UserError: If the file is damaged there.
    """
    try:
        rows: NDArray[Any] = array[start:stop]
    except OSError as error:
        raise unreadable(path, error) from error
    return rows


def _unpack(path: Path, unpacked: Path) -> None:
    try:
        with (
            rich.progress.open(path, "rb", description=f"Unpacking {path.name}") as packed,
            gzip.open(packed) as stream,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unreadable(path, error) from error
