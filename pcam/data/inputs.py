"""Patches without labels that are to be classified: from a folder, image files or HDF5, read batch by batch."""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import h5py
import numpy as np
from PIL import Image

from pcam.data.layouts.hdf5 import open_array, read_rows
from pcam.data.layouts.images import is_image, read_image
from pcam.errors import UserError
from pcam.patches import PATCH_SIZE, PatchArray


@dataclass(frozen=True)
class InputBatch:
    """A batch of patches, and what should have been in it but could not be read.

    Args:
        ids: The name of each patch. If one folder was given, this is the path below it; otherwise the path as it was
            given; in HDF5, the name of the file and the row, such as `test_x.h5/7`.
        patches: Shape (len(ids), 96, 96, 3), values 0..255.
        unreadable: The name of each patch that could not be read, and the reason in a sentence.
    """

    ids: list[str]
    patches: PatchArray
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class PathList:
    """Paths that are listed in a file, so that they need no memory.

    Args:
        file: The list, one path in a line.
    """

    file: IO[bytes]

    def __iter__(self) -> Iterator[Path]:
        """Go through the paths from the first; only one loop at a time may do so."""
        self.file.seek(0)
        for line in self.file:
            yield Path(os.fsdecode(line[:-1]))


@contextmanager
def listed_paths(lines: Iterable[bytes]) -> Iterator[PathList]:
    """Keep the paths that a stream lists in a temporary file, so that memory does not grow with them.

    Args:
        lines: One path in each line; empty lines are skipped.

    Yields:
        The paths, which can be gone through several times.

    Raises:
        UserError: If there is no path.
    """
    with tempfile.TemporaryFile() as file:
        file.writelines(line.rstrip(b"\r\n") + b"\n" for line in lines if line.strip())
        if not file.tell():
            raise UserError("Expected paths on standard input, one a line, but found none; pipe a list in.")
        yield PathList(file)


def count_inputs(paths: Iterable[Path]) -> int:
    """Count the patches before they are read.

    Args:
        paths: Folders (searched with their subfolders for jpg, jpeg, png, tif and tiff, hidden files aside), image
            files, and HDF5 files with the key `x`, packed with gzip (`.h5.gz`) or not. They are iterated over several
            times. The ids of patches begin with the path of their HDF5 file, of an only one with its name.

    Returns:
        The number of patches; each path counts at least 1. If one of several paths is missing, it counts as one patch,
        and `read_inputs` reports it as unreadable.

    Raises:
        UserError: If a folder holds none, the only path is missing, or an HDF5 file is of another form.
    """
    alone = _only_path(paths)
    if alone is not None and not _mode(alone):
        raise UserError(
            f"Expected a folder, image files or an HDF5 file, but found nothing at {alone}; correct --input."
        )
    return sum(_count(path) for path in paths)


def read_inputs(paths: Iterable[Path], batch_size: int) -> Iterator[InputBatch]:
    """Read patches batch by batch; memory holds one batch and the names of the files in one folder.

    Args:
        paths: As for `count_inputs`.
        batch_size: Patches in a batch, at least 1.

    Yields:
        Batches: first of all images, in the order of the paths (in a folder, the files in the order of their names, and
        then its subfolders), then of HDF5 files.
    """
    files = _named_files(paths)
    # Threads, not processes: the image decoders release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(files, batch_size)):
            results = list(zip(batch, pool.map(_read, [path for _, path in batch]), strict=True))
            yield InputBatch(
                [name for (name, _), result in results if not isinstance(result, str)],
                _stack([result for _, result in results if not isinstance(result, str)]),
                [(name, result) for (name, _), result in results if isinstance(result, str)],
            )
    alone = _only_path(paths) is not None
    for path in paths:
        if _is_hdf5(path):
            yield from _read_hdf5(path, path.name if alone else str(path), batch_size)


def sample_inputs(paths: Iterable[Path], count: int) -> PatchArray:
    """Read some of the patches, spread evenly over all of them.

    Args:
        paths: As for `count_inputs`.
        count: How many, at most.

    Returns:
        The patches, without those that cannot be read.
    """
    every = -(-count_inputs(paths) // count)
    read = [_read(path) for _, path in islice(_named_files(paths), 0, None, every)]
    found = [_stack([patch for patch in read if not isinstance(patch, str)])]
    for path in paths:
        if _is_hdf5(path):
            with _open_hdf5(path) as patches:
                found += [read_rows(patches, path, row, row + 1) for row in range(0, len(patches), every)]
    return np.concatenate(found)


def _only_path(paths: Iterable[Path]) -> Path | None:
    first_two = list(islice(paths, 2))
    return first_two[0] if len(first_two) == 1 else None


def _named_files(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    alone = _only_path(paths) is not None
    for path in paths:
        if stat.S_ISDIR(_mode(path)):
            for file in _image_files(path):
                yield str(file.relative_to(path) if alone else file), file
        elif not _is_hdf5(path):
            yield str(path), path


def _mode(path: Path) -> int:
    """Look what there is; 0 if there is nothing, or nothing that could be looked at."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # one of many paths, such as a line that is no path, must not end the whole job
        return 0


def _is_hdf5(path: Path) -> bool:
    return (
        not is_image(path.name) and stat.S_ISREG(_mode(path)) and (path.name.endswith(".h5.gz") or h5py.is_hdf5(path))
    )


def _count(path: Path) -> int:
    if _is_hdf5(path):
        with _open_hdf5(path) as patches:
            return len(patches)
    if stat.S_ISDIR(_mode(path)):
        count = sum(1 for _ in _image_files(path))
        if not count:
            raise UserError(
                f"Expected images (jpg, jpeg, png, tif or tiff) in {path} or its subfolders, but found none; "
                f"correct --input (an HDF5 file is given by its own path)."
            )
        return count
    return 1


def _image_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders.sort()
        for name in sorted(names):
            if is_image(name):
                yield Path(parent, name)


def _read(path: Path) -> PatchArray | str:
    """Decode a patch, or say why it cannot be."""
    try:
        return read_image(path)
    except UserError as error:
        return _larger(path) or str(error)
    except PermissionError as error:
        return f"Expected an image in {path}, but the system refused to look at it: {error.strerror}."


def _larger(path: Path) -> str | None:
    """What to do with an image that is larger than a patch; None if it is not."""
    found = ""
    if not stat.S_ISREG(_mode(path)):  # to open a named pipe would wait for ever
        return None
    try:
        with Image.open(path) as image:
            if min(image.size) < PATCH_SIZE or max(image.size) == PATCH_SIZE:
                return None
            found = f" ({image.width}x{image.height})"
    except Image.DecompressionBombError:  # what Pillow does not open for its size alone
        pass
    except Exception:  # as in `decode_image`, which has the sentence for it
        return None
    return (
        f"Expected patches of {PATCH_SIZE}x{PATCH_SIZE} pixels, but {path} is larger{found}; "
        f"score it on a grid of windows with pcam slide."
    )


@contextmanager
def _open_hdf5(path: Path) -> Iterator[h5py.Dataset]:
    """Open the patches of an HDF5 file, which is unpacked into a temporary folder if need be."""
    with tempfile.TemporaryDirectory() as scratch, open_array(path, "x", Path(scratch), "correct --input") as patches:
        if patches.shape[1:] != (PATCH_SIZE, PATCH_SIZE, 3) or patches.dtype != np.uint8 or not len(patches):
            raise UserError(
                f"Expected an HDF5 file with the key x of shape (patches, {PATCH_SIZE}, {PATCH_SIZE}, 3) and type "
                f"uint8 in {path}, but found x of shape {patches.shape} and type {patches.dtype}; correct --input."
            )
        yield patches


def _read_hdf5(path: Path, name: str, batch_size: int) -> Iterator[InputBatch]:
    with _open_hdf5(path) as patches:
        for start in range(0, len(patches), batch_size):
            ids = [f"{name}/{row}" for row in range(start, min(start + batch_size, len(patches)))]
            try:
                yield InputBatch(ids, read_rows(patches, path, start, start + batch_size), [])
            except UserError as error:
                yield InputBatch([], _stack([]), [(patch_id, str(error)) for patch_id in ids])


def _stack(patches: list[PatchArray]) -> PatchArray:
    return np.stack(patches) if patches else np.empty((0, PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)
