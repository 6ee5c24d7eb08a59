"""Whether the files of a data set are what they should be, and its packed stores what was packed."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import rich.progress
from numpy.typing import NDArray
from rich.table import Table

from pcam.data.datamodule import PCamDataModule
from pcam.data.download import OFFICIAL_FILES
from pcam.data.layouts import Layout, find_layout, pixel_hash, read_image
from pcam.data.layouts.images import is_image
from pcam.data.layouts.kaggle import KAGGLE, kaggle_labels
from pcam.data.layouts.official import OFFICIAL, official_file
from pcam.data.packed import PackedSplit
from pcam.data.threads import TASK_PATCHES, in_threads
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES
from pcam.patches import PatchArray

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
"""MD5 of every official file, packed and unpacked."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing that was looked at.

    Args:
        subject: A file, a split or a store.
        found: What there is of it.
        fault: What is wrong with it, if anything is.
    """

    subject: str
    found: str
    fault: str | None = None


def verify(data: PCamDataModule, official_md5: Mapping[str, str] = OFFICIAL_MD5) -> list[Finding]:
    """Read every byte of a data set, and of its packed stores if there are any.

    Official files are compared with their MD5, Kaggle's images with their names, which are hashes of their pixels. Of
    other forms each patch is decoded, and counted.

    Args:
        data: The data set.
        official_md5: MD5 of each official file, by name.

    Returns:
        What was found.

    Raises:
        UserError: If a split's files do not fit together.
    """
    layout = find_layout(data.root)
    if layout.name == OFFICIAL:
        findings = list(_verify_official(data.root, official_md5))
    elif layout.name == KAGGLE:
        findings = list(_verify_kaggle(layout))
    else:
        findings = list(_verify_patches(layout))
    return findings + list(_verify_stores(data, layout))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Put findings into a table."""
    rows = Table()
    for heading in ("", "found", "verdict"):
        rows.add_column(heading, overflow="fold")  # paths and hashes are of no use without their end
    for finding in findings:
        rows.add_row(finding.subject, finding.found, finding.fault or "right")
    return rows


def _verify_official(root: Path, md5s: Mapping[str, str]) -> Iterator[Finding]:
    for split in SPLIT_NAMES:
        paths = [official_file(root, split, part) for part in "xy"]
        if any(paths):
            for part, path in zip("xy", paths, strict=True):
                if path is None:
                    name = f"camelyonpatch_level_2_split_{split}_{part}.h5"
                    yield Finding(name, "nothing", "it is missing; fetch it with scripts/prepare_data.py download")
                else:
                    yield _verify_md5(path, md5s)


def _verify_md5(path: Path, md5s: Mapping[str, str]) -> Finding:
    with rich.progress.open(path, "rb", description=f"Reading {path.name}") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    fault = None
    if found != md5s[path.name]:
        fault = f"its MD5 is {found}, not {md5s[path.name]}; fetch it anew"
        for other, md5 in md5s.items():
            if md5 == found:
                swapped = " and ".join(split for split in SPLIT_NAMES if f"_{split}_" in path.name + other)
                fault = f"{swapped} are swapped: this is the official {other}; rename it"
    return Finding(path.name, f"{path.stat().st_size:,} bytes", fault)


def _verify_kaggle(layout: Layout) -> Iterator[Finding]:
    try:
        yield Finding("train_labels.csv", _balance(kaggle_labels(layout.root).to_numpy()))
    except UserError as error:
        yield Finding("train_labels.csv", "labels", str(error))
    for folder in (layout.root / "train", layout.unlabelled):
        if folder is not None and folder.is_dir():
            paths = sorted(path for path in folder.iterdir() if is_image(path.name))
            starts = range(0, len(paths), TASK_PATCHES)
            tasks = (partial(_faults_of_names, paths[start : start + TASK_PATCHES]) for start in starts)
            fault = _first(in_threads(tasks, len(paths), f"Hashing {folder.name}"))
            yield Finding(f"{folder.name}/*.tif", f"{len(paths):,} images", fault)


def _faults_of_names(paths: Sequence[Path]) -> list[str | None]:
    """What is wrong with each of Kaggle's images, whose names are the hashes of their pixels."""
    faults: list[str | None] = []
    for path in paths:
        try:
            right = pixel_hash(read_image(path)).hex() == path.stem
            faults.append(
                None if right else f"{path} has other pixels than its name says; unpack Kaggle's archive anew"
            )
        except UserError as error:
            faults.append(str(error))
    return faults


def _verify_patches(layout: Layout) -> Iterator[Finding]:
    for split in layout.splits:
        found = ""
        try:
            with TemporaryDirectory() as scratch, layout.split(split).open(Path(scratch)) as patches:
                found = _balance(patches.labels)
                tasks = (partial(_faults_of_patch, read) for read in patches.read(1))
                fault = _first(in_threads(tasks, len(patches.ids), f"Reading {split}"))
        except UserError as error:
            fault = str(error)
        yield Finding(split, found, fault)


def _faults_of_patch(read: Callable[[], PatchArray]) -> list[str | None]:
    try:
        read()
    except UserError as error:
        return [str(error)]
    return [None]


def _verify_stores(data: PCamDataModule, layout: Layout) -> Iterator[Finding]:
    for deduplicate in (False, True):
        cache = PCamDataModule(data.root, cache_dir=data.cache_dir, deduplicate=deduplicate)
        for split in layout.splits:
            path = cache.store_path(split)
            if path.exists():
                found, fault = "a packed store", None
                try:
                    store = PackedSplit(path)
                    found = f"packed: {_balance(store.labels)}"
                    if not store.is_of(layout.split(split), deduplicate):
                        found += "; the files have changed since, and the next run packs them again"
                    store.verify()
                except UserError as error:
                    fault = str(error)
                yield Finding(str(path), found, fault)


def _balance(labels: NDArray[np.uint8]) -> str:
    return f"{len(labels):,} patches, {labels.mean():.1%} tumour"


def _first(faults: Iterable[Sequence[str | None]]) -> str | None:
    """The first fault, and how many others there are."""
    found = [fault for several in faults for fault in several if fault is not None]
    return None if not found else found[0] + (f" ({len(found) - 1:,} more)" if len(found) > 1 else "")
