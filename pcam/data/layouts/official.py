"""The official HDF5 files."""

import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import rich.progress
from numpy.typing import NDArray

from pcam.data.layouts.layout import Layout, Split, SplitFiles, signature, unreadable
from pcam.data.layouts.tables import checked_labels, listed, read_csv
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName
from pcam.patches import PATCH_SIZE, PatchArray

OFFICIAL: Final = "official HDF5 files"

META_ADVICE: Final = "fetch the meta CSV of the same split, or move it away: it is not needed"


def read_official(root: Path) -> Layout | None:
    """Read the official HDF5 files, as they are or packed with gzip, with their meta CSV or without."""
    if (root / "train_labels.csv").exists():
        return None  # Kaggle's patches, beside the files that tell their slides
    splits: dict[SplitName, Callable[[], SplitFiles]] = {
        split: partial(find_official, root, split)
        for split in SPLIT_NAMES
        if official_file(root, split, "x") or official_file(root, split, "y")
    }
    return Layout(OFFICIAL, root, splits) if splits else None


def official_file(root: Path, split: SplitName, part: str) -> Path | None:
    """Find one of the official files: the unpacked one if both are there.

    Args:
        root: The folder.
        split: "train", "valid" or "test".
        part: "x", the patches, or "y", the labels.

    Returns:
        The file, if it is there.
    """
    unpacked = root / f"camelyonpatch_level_2_split_{split}_{part}.h5"
    return next((path for path in (unpacked, unpacked.with_suffix(".h5.gz")) if path.exists()), None)


def official_meta(root: Path, split: SplitName) -> Path | None:
    """Find the CSV that says which slide each patch of a split is from, if it is there."""
    path = root / f"camelyonpatch_level_2_split_{split}_meta.csv"
    return path if path.exists() else None


def find_official(root: Path, split: SplitName) -> SplitFiles:
    """Find the files of one split.

    Args:
        root: The folder.
        split: "train", "valid" or "test", of which one of the files is there.

    Returns:
        The files; ids are their indices.

    Raises:
        UserError: If patches or labels are missing.
    """
    x, y, meta = official_file(root, split, "x"), official_file(root, split, "y"), official_meta(root, split)
    if x is None or y is None:
        raise UserError(
            f"Expected both camelyonpatch_level_2_split_{split}_x.h5 and ..._y.h5 (or .h5.gz) in {root}, but found no "
            f"{'patches (x)' if x is None else 'labels (y)'}; fetch them with scripts/prepare_data.py download."
        )
    files = [path for path in (x, y, meta) if path is not None]
    return SplitFiles(signature((path.name, path.stat()) for path in files), partial(_open, split, x, y, meta))


@contextmanager
def _open(split: SplitName, x: Path, y: Path, meta: Path | None, scratch: Path) -> Iterator[Split]:
    with _open_array(y, "y", scratch) as values:
        labels = checked_labels(_rows(values, y, 0, len(values)).reshape(-1), y)
    slides = None if meta is None else _read_slides(meta, len(labels))
    with _open_array(x, "x", scratch) as patches:
        if patches.dtype != np.uint8 or patches.shape[1:] != (PATCH_SIZE, PATCH_SIZE, 3):
            raise UserError(
                f"Expected patches as uint8 of shape (patches, 96, 96, 3) in {x}, but found {patches.dtype} of shape "
                f"{patches.shape}; fetch the official file."
            )
        if len(patches) != len(labels):
            raise UserError(
                f"Expected as many patches in {x} as labels in {y}, but found {len(patches):,} and {len(labels):,}; "
                f"fetch both files of the same split."
            )

        def read(count: int) -> Iterator[Callable[[], PatchArray]]:
            for start in range(0, len(labels), count):
                yield partial(_rows, patches, x, start, start + count)

        yield Split([f"{split}/{index:07d}" for index in range(len(labels))], labels, read, slides)


@contextmanager
def _open_array(path: Path, key: str, scratch: Path) -> Iterator[h5py.Dataset]:
    """Open an array of an HDF5 file, which is first unpacked into `scratch` if need be.

    HDF5 needs to seek: it cannot read what gzip unpacks on the fly.
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


def _rows(array: h5py.Dataset, path: Path, start: int, stop: int) -> NDArray[np.uint8]:
    try:
        rows: NDArray[np.uint8] = array[start:stop]
    except OSError as error:
        raise unreadable(path, error) from error
    return rows


def _read_slides(meta: Path, count: int) -> list[str]:
    slides: list[str] = read_csv(meta, ["wsi"])["wsi"].tolist()
    if len(slides) != count:
        raise UserError(
            f"Expected a row in {meta} for each of {count:,} patches, but found {len(slides):,}; {META_ADVICE}."
        )
    if "" in slides:
        raise UserError(
            f"Expected the name of a slide in the column 'wsi' of each row of {meta}, but row {slides.index('')} has "
            f"none; {META_ADVICE}."
        )
    return slides
