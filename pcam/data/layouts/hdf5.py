"""Arrays in HDF5 files, packed with gzip or not.

An HDF5 file can name other files: by an external link, by raw data that are stored outside, by a virtual array that is
put together from others. A file that a stranger made could so have any file of the user read, and where a source is
missing HDF5 gives zeros, black patches, without a word. So an array counts only if its own file holds it, or if it is
virtual and all of its sources lie below the file's folder.
"""

import gzip
import math
import operator
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import rich.progress
from numpy.typing import NDArray
from rich.markup import escape

from pcam.data.files import require_file, unreadable
from pcam.errors import NO_ROOM, UserError


@contextmanager
def open_array(path: Path, key: str, scratch: Path, advice: str) -> Iterator[h5py.Dataset]:
    """Open an array of an HDF5 file.

    A file that is packed with gzip is unpacked first: HDF5 needs to seek, and cannot in what gzip unpacks on the fly.

    Args:
        path: The file, `.h5` or `.h5.gz`.
        key: The array's name in the file.
        scratch: The folder that a packed file is unpacked into.
        advice: What the user is told to do if there is no such array.

    Yields:
        The array; the file is closed, and what was unpacked is deleted, when the block ends.

    Raises:
        UserError: If the file cannot be read, or does not hold such an array itself.
    """
    require_file(path, "an HDF5 file")
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
            try:
                array = find_array(file, key)
            except ValueError as error:
                raise UserError(
                    f"Expected an array under the key '{key}' in {path}, but found {error}; {advice}."
                ) from error
            yield array
    finally:
        if packed:
            unpacked.unlink(missing_ok=True)


def find_array(file: h5py.File, key: str) -> h5py.Dataset:
    """Find an array of numbers that a file holds itself, and holds as a whole.

    Args:
        file: The open file.
        key: The array's name.

    Returns:
        The array.

    Raises:
        ValueError: If there is no such array. The message says what was found instead.
    """
    try:
        return _find_array(file, key, Path(file.filename).resolve().parent, depth=0)
    except (OSError, KeyError, RuntimeError, TypeError) as error:  # what h5py raises for a damaged file
        raise ValueError(f"what cannot be read ({error})") from error


def _find_array(file: h5py.File, key: str, folder: Path, depth: int) -> h5py.Dataset:
    names = key.strip("/").split("/")
    for end in range(1, len(names) + 1):
        link = file.get("/".join(names[:end]), getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"a link to the file '{link.filename}'")
        if isinstance(link, h5py.SoftLink):
            raise ValueError(f"a link to '{link.path}'")
    array = file.get(key)
    if not isinstance(array, h5py.Dataset) or not array.shape:
        keys = sorted(file)
        raise ValueError(f"the keys {', '.join(keys[:5]) or '(none)'}{', ...' if len(keys) > 5 else ''}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"values of type {array.dtype}")
    if array.external:
        raise ValueError(f"values that are stored outside, in '{array.external[0][0]}'")
    if array.is_virtual:
        _check_sources(array, folder, depth)
    elif not _is_written(array):
        raise ValueError("values of which some were never written")
    return array


def _check_sources(array: h5py.Dataset, folder: Path, depth: int) -> None:
    """Refuse a virtual array unless each of its values is in a file below a folder."""
    held = h5py.h5s.create_simple(array.shape)
    held.select_none()
    for source in array.virtual_sources():
        path = Path(array.file.filename).parent / source.file_name
        if source.file_name == "." or depth > 0:  # a virtual array of virtual arrays, which may lead to itself
            raise ValueError("a virtual array whose sources are not plain files")
        if not (path.resolve().is_relative_to(folder) and path.is_file()):
            raise ValueError(f"a virtual array whose source '{source.file_name}' is not a file below {folder}")
        with h5py.File(path, "r") as file:
            shape = _find_array(file, source.dset_name, folder, depth + 1).shape
        taken = source.vspace.get_select_npoints()
        reached = source.src_space.shape  # by what is taken of the source; none if that is the whole
        inside = len(reached) == len(shape) and all(map(operator.le, reached, shape))
        if not (inside if reached else math.prod(shape) == taken):
            raise ValueError(f"a virtual array whose source '{source.file_name}' has the shape {shape}")
        if source.vspace.get_select_type() == h5py.h5s.SEL_ALL:
            held.select_all()
        else:  # sources may hold the same values twice: what they hold together is what counts
            for first, last in source.vspace.get_select_hyper_blocklist():
                one, block = (1,) * len(first), tuple(last - first + 1)
                held.select_hyperslab(tuple(first), one, block=block, op=h5py.h5s.SELECT_OR)
    values = held.get_select_npoints()
    if values != array.size:
        raise ValueError(f"a virtual array with sources for {values:,} of its {array.size:,} values")


def _is_written(array: h5py.Dataset) -> bool:
    """Say whether all values of an array are there; what is not is read as zeros."""
    if array.chunks is None:
        return bool(array.size == 0 or array.id.get_storage_size() > 0)
    chunks = math.prod(-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True))
    return bool(array.id.get_num_chunks() == chunks)


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
            rich.progress.open(path, "rb", description=f"Unpacking {escape(path.name)}") as packed,
            gzip.open(packed) as stream,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unreadable(path, error) from error
    except OSError as error:  # of writing, which does not say where
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"Expected room to unpack {path} into {unpacked.parent}, but the system refused ({error.strerror}); make "
            f"room, or unpack the file yourself."
        ) from error
