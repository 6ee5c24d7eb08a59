"""The official HDF5 files."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import h5py
import numpy as np
import rich.progress
from rich.markup import escape

from pcam.data.download import OFFICIAL_FILES
from pcam.data.files import require_file, signature
from pcam.data.layouts.findings import Finding
from pcam.data.layouts.form import Form, Portion, Split, SplitFiles
from pcam.data.layouts.hdf5 import open_array, read_rows
from pcam.data.layouts.tables import checked_labels, read_csv
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName
from pcam.patches import PATCH_SIZE, PatchArray

UNPACKED_MD5: Final = {
    "camelyonpatch_level_2_split_train_x.h5": "01844da899645b4d6f84946d417ba453",
    "camelyonpatch_level_2_split_train_y.h5": "0781386bf6c2fb62d58ff18891466aca",
    "camelyonpatch_level_2_split_valid_x.h5": "81cf9680f1724c40673f10dc88e909b1",
    "camelyonpatch_level_2_split_valid_y.h5": "94d8aacc249253159ce2a2e78a86e658",
    "camelyonpatch_level_2_split_test_x.h5": "2614b2e6717d6356be141d9d6dbfcb7e",
    "camelyonpatch_level_2_split_test_y.h5": "11ed647efe9fe457a4eb45df1dba19ba",
}
"""MD5 of the official files when unpacked.

Source: the data set's README (basveeling/pcam), with valid and test put right, which it has the wrong way round (#1,
#4); the MD5s of the files as they are fetched are Zenodo's, in `OFFICIAL_FILES`.
"""

OFFICIAL_MD5: Final = UNPACKED_MD5 | {file.name: file.md5 for files in OFFICIAL_FILES.values() for file in files}
"""MD5 of every official file, packed and unpacked, by its name."""

X_AND_Y_ADVICE: Final = "fetch the official file"
META_ADVICE: Final = "fetch the meta CSV of the same split, or move it away: it is not needed"


class Official(Form):
    """The HDF5 files as they were published, as they are or packed with gzip, with their meta CSV or without."""

    name: ClassVar[str] = "official HDF5 files"
    contents: ClassVar[str] = (
        "`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, or the same as `.h5.gz`; `..._meta.csv`, if "
        "there, tells the slides"
    )

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for patches or labels of each split."""
        if os.path.lexists(root / "train_labels.csv"):
            return []  # Kaggle's patches, beside the files that tell their slides
        return [split for split in SPLIT_NAMES if official_file(root, split, "x") or official_file(root, split, "y")]

    def find(self, root: Path, split: SplitName) -> "OfficialFiles":
        """Take the patches, the labels and the meta CSV of a split; the id of a patch is its row's number."""
        return find_official(root, split)

    def verify(self, root: Path) -> Iterator[Finding]:
        """Compare the MD5 of every file with the published one."""
        for split in self.splits(root):
            for part in "xy":
                path = official_file(root, split, part)
                if path is None:
                    name = f"camelyonpatch_level_2_split_{split}_{part}.h5"
                    yield Finding(name, "nothing", "it is missing; fetch it with pcam download")
                else:
                    try:
                        require_file(path)
                        yield _verify_md5(path)
                    except UserError as error:
                        yield Finding(path.name, "no file", str(error))


@dataclass(frozen=True)
class OfficialFiles(SplitFiles):
    """The official files of one split.

    Args:
        split: "train", "valid" or "test".
        x: The patches.
        y: The labels.
        meta: The CSV that says which slide each patch is from, if it is there.
    """

    split: SplitName
    x: Path
    y: Path
    meta: Path | None

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Split]:
        """Read the labels and the slides, and open the patches."""
        x, y = self.x, self.y
        with open_array(y, "y", scratch, X_AND_Y_ADVICE) as values:
            if values.size != len(values):
                raise UserError(
                    f"Expected one label for each patch, of shape (patches, 1, 1, 1), in {y}, but found the shape "
                    f"{values.shape}; write 0 or 1 for each patch (of one-hot labels, the column of class 1)."
                )
            labels = checked_labels(read_rows(values, y, 0, len(values)).reshape(-1), y)
        slides = None if self.meta is None else _read_slides(self.meta, len(labels))
        with open_array(x, "x", scratch, X_AND_Y_ADVICE) as patches:
            if patches.dtype != np.uint8 or patches.shape[1:] != (PATCH_SIZE, PATCH_SIZE, 3):
                raise UserError(
                    f"Expected patches as uint8 of shape (patches, 96, 96, 3) in {x}, but found {patches.dtype} of "
                    f"shape {patches.shape}; {X_AND_Y_ADVICE}."
                )
            if len(patches) != len(labels):
                raise UserError(
                    f"Expected as many patches in {x} as labels in {y}, but found {len(patches):,} and "
                    f"{len(labels):,}; fetch both files of the same split."
                )
            ids = [f"{self.split}/{index:07d}" for index in range(len(labels))]
            yield _OfficialSplit(ids=ids, labels=labels, slides=slides, patches=patches, path=x)


@dataclass(frozen=True, kw_only=True)
class _OfficialSplit(Split):
    patches: h5py.Dataset
    path: Path

    def portions(self, count: int) -> Iterator[Portion]:
        for start in range(0, len(self.ids), count):
            yield _Rows(self.patches, self.path, start, start + count)


@dataclass(frozen=True)
class _Rows(Portion):
    """Rows of the array of patches; h5py reads for one thread at a time."""

    patches: h5py.Dataset
    path: Path
    start: int
    stop: int

    def decode(self) -> PatchArray:
        return read_rows(self.patches, self.path, self.start, self.stop)


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
    return next((path for path in (unpacked, unpacked.with_suffix(".h5.gz")) if os.path.lexists(path)), None)


def official_meta(root: Path, split: SplitName) -> Path | None:
    """Find the CSV that says which slide each patch of a split is from.

    Args:
        root: The folder.
        split: "train", "valid" or "test".

    Returns:
        The file, if it is there.
    """
    path = root / f"camelyonpatch_level_2_split_{split}_meta.csv"
    return path if os.path.lexists(path) else None


def find_official(root: Path, split: SplitName) -> OfficialFiles:
    """Find the files of one split.

    Args:
        root: The folder.
        split: "train", "valid" or "test", of which one of the files is there.

    Returns:
        The files.

    Raises:
        UserError: If patches or labels are missing.
    """
    x, y, meta = official_file(root, split, "x"), official_file(root, split, "y"), official_meta(root, split)
    if x is None or y is None:
        raise UserError(
            f"Expected both camelyonpatch_level_2_split_{split}_x.h5 and ..._y.h5 (or .h5.gz) in {root}, but found no "
            f"{'patches (x)' if x is None else 'labels (y)'}; fetch them with pcam download."
        )
    files = [path for path in (x, y, meta) if path is not None]
    return OfficialFiles(signature((path.name, require_file(path)) for path in files), None, split, x, y, meta)


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


def _verify_md5(path: Path) -> Finding:
    with rich.progress.open(path, "rb", description=f"Reading {escape(path.name)}") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    fault = None
    if found != OFFICIAL_MD5[path.name]:
        fault = f"its MD5 is {found}, not {OFFICIAL_MD5[path.name]}; fetch it anew"
        for other, md5 in OFFICIAL_MD5.items():
            if md5 == found:
                swapped = " and ".join(split for split in SPLIT_NAMES if f"_{split}_" in path.name + other)
                fault = f"{swapped} are swapped: this is the official {other}; rename it"
    return Finding(path.name, f"{path.stat().st_size:,} bytes", fault)
