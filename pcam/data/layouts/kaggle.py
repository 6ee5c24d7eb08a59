"""The files of Kaggle's competition "Histopathologic Cancer Detection"."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pcam.data.files import require_file, signature
from pcam.data.layouts.findings import Finding, balance, first_fault
from pcam.data.layouts.folders import unlabelled_folder
from pcam.data.layouts.form import Form, Portion, Split, SplitFiles
from pcam.data.layouts.images import ImageFiles, ImageSplit, image_files, is_image, pixel_hash, read_image
from pcam.data.layouts.official import find_official, official_file, official_meta
from pcam.data.layouts.tables import checked_ids, checked_labels, csv_columns, listed, read_csv
from pcam.data.threads import TASK_PATCHES, in_threads
from pcam.errors import UserError
from pcam.options import SplitName

VALID_SHARE: Final = 0.1
"""Share of the labelled patches that makes the valid split; a ninth in the official splits, a tenth in the course's."""


class Kaggle(Form):
    """`train_labels.csv` and `train/*.tif`, of which a tenth becomes the valid split; `test` has no labels.

    The valid split is made of whole slides if they are known: from a CSV with the columns `id` and `slide` (or `wsi`),
    or from the official files of train with their meta CSV, all beside `train_labels.csv`. Otherwise a hash of the id
    decides, and both splits have patches of the same slides.
    """

    name: ClassVar[str] = "Kaggle's files"
    contents: ClassVar[str] = "`train_labels.csv`, `train/*.tif` and `test/*.tif`"

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for the table of labels."""
        return ["train", "valid"] if os.path.lexists(root / "train_labels.csv") else []

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Find the patches of both splits, and all that decides which of the two a patch is in."""
        table, official = _slide_table(root), _official_train(root)
        if table is not None:
            how = f"of whole slides, by {table}"
        elif official is not None:
            how = "of whole slides, by the official files of train beside them"
        else:
            how = (
                "by a seeded hash of their ids: slides are not known, so both splits have patches of the same ones, "
                "and validation scores are too good"
            )
        note = f"A tenth of the labelled patches in {root} makes the split 'valid', chosen {how}."
        tables = [path for path in (root / "train_labels.csv", table) if path is not None]
        own = signature([*((path.name, require_file(path, "a CSV")) for path in tables), *_files(root)])
        whole = f"{own} {official.signature if official else None}"
        return _KaggleFiles(whole, note if split == "valid" else None, root, split)  # the note once for both splits

    def unlabelled(self, root: Path) -> Path | None:
        """Find the folder `test`."""
        return unlabelled_folder(root)

    def verify(self, root: Path) -> Iterator[Finding]:
        """Compare the labels with the files there are, and the name of every image with the hash of its pixels."""
        try:
            yield Finding("train_labels.csv", balance(kaggle_labels(root).to_numpy()))
        except UserError as error:
            yield Finding("train_labels.csv", "labels", str(error))
        for folder in (root / "train", self.unlabelled(root)):
            if folder is not None and folder.is_dir():
                names = sorted(path.name for path in folder.iterdir() if is_image(path.name))
                starts = range(0, len(names), TASK_PATCHES)
                groups = (ImageFiles(folder, names[start : start + TASK_PATCHES]) for start in starts)
                fault = first_fault(in_threads(_faults_of_names, groups, len(names), f"Hashing {folder.name}"))
                yield Finding(f"{folder.name}/*.tif", f"{len(names):,} images", fault)


@dataclass(frozen=True)
class _KaggleFiles(SplitFiles):
    root: Path
    split: SplitName

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Split]:
        labels = kaggle_labels(self.root)
        slides = _slides(self.root, labels.index, scratch)
        valid = _choose_patches(labels.index) if slides is None else _choose_slides(slides, self.root)
        rows = valid == (self.split == "valid")
        ids = labels.index[rows].tolist()
        where = f"the split '{self.split}' made of {self.root / 'train_labels.csv'}"
        yield ImageSplit(
            ids=ids,
            labels=checked_labels(labels[rows], where),
            slides=None if slides is None else slides[rows].tolist(),
            root=self.root,
            names=[f"train/{patch_id}.tif" for patch_id in ids],
        )


def kaggle_labels(root: Path) -> pd.Series:
    """Read the label of each of Kaggle's train patches.

    Args:
        root: The folder with `train_labels.csv`.

    Returns:
        The labels, under their ids.

    Raises:
        UserError: If the CSV is wrong in itself, or does not name the files of `train`.
    """
    path, folder = root / "train_labels.csv", root / "train"
    table = read_csv(path, ["id", "label"])
    labels = pd.Series(checked_labels(table["label"], path), checked_ids(table["id"], path))
    files = {name.removesuffix(".tif") for name, _ in _files(root)}
    missing, extra = set(labels.index) - files, files - set(labels.index)
    if missing:
        raise UserError(
            f"Expected a file {folder}/<id>.tif for each id in {path}, but found none for {len(missing):,} of them "
            f"({listed(missing)}); unpack Kaggle's archive anew."
        )
    if extra:
        raise UserError(
            f"Expected a row in {path} for each file in {folder}, but found none for {len(extra):,} of them "
            f"({listed(extra)}); move these files away, or unpack Kaggle's archive anew."
        )
    return labels


def _files(root: Path) -> list[tuple[str, os.stat_result]]:
    folder = root / "train"
    if not folder.is_dir():
        raise UserError(
            f"Expected a folder {folder} beside train_labels.csv, but found none; unpack Kaggle's archive anew."
        )
    return image_files(folder)


def _choose_patches(ids: pd.Index) -> NDArray[np.bool_]:
    """Choose a tenth; whether a patch is chosen depends on its id alone."""
    digests = (hashlib.sha256(f"valid/{patch_id}".encode()).digest() for patch_id in ids)
    return np.array([int.from_bytes(digest[:8]) < VALID_SHARE * 2**64 for digest in digests])


def _choose_slides(slides: pd.Series, root: Path) -> NDArray[np.bool_]:
    """Choose whole slides, in the order of their hashes, that have a tenth of the patches together or a little less."""
    counts = slides.value_counts()
    if len(counts) < 2:
        raise UserError(
            f"Expected patches of at least two slides in {root}, to make a split 'valid' of whole slides, but found "
            f"only {listed(counts.index)}; move the file that says so away to choose by id."
        )
    room = max(VALID_SHARE * len(slides), counts.min())
    chosen = []
    for slide in sorted(counts.index, key=lambda slide: hashlib.sha256(f"valid/{slide}".encode()).digest()):
        if counts[slide] <= room:
            chosen.append(slide)
            room -= counts[slide]
    return slides.isin(chosen).to_numpy()


def _slides(root: Path, ids: pd.Index, scratch: Path) -> pd.Series | None:
    """The slide of each patch, if that is known."""
    table, official = _slide_table(root), _official_train(root)
    if table is not None:
        rows = read_csv(table, ["id"])
        column = "slide" if "slide" in rows else "wsi"
        known = pd.Series(rows[column].to_numpy(), checked_ids(rows["id"], table)).replace("", None)
    elif official is not None:
        known = _slides_by_pixels(official, scratch)
    else:
        return None
    slides = known.reindex(ids)
    unknown = slides.index[slides.isna()]
    if len(unknown):
        raise UserError(
            f"Expected {table or 'the official files of train'} to tell the slide of each patch in "
            f"{root / 'train_labels.csv'}, but found none for {len(unknown):,} of {len(ids):,} ({listed(unknown)}); "
            f"complete it, or move it away to choose by id."
        )
    return slides


def _slide_table(root: Path) -> Path | None:
    """Find the CSV with the columns `id` and `slide` or `wsi`.

    A CSV that is one by its name has to have them: if it were passed over, both splits would have patches of one slide.
    """
    tables = []
    for path in sorted(root.glob("*.csv")):
        named = "slide" in path.name.lower()
        if path.is_file() or named:
            columns = set(csv_columns(path)[0])
            if "id" in columns and columns & {"slide", "wsi"}:
                tables.append(path)
            elif named:
                raise UserError(
                    f"Expected the columns id and slide in {path}, but found {listed(columns)}; rename its columns, or "
                    f"move it away to choose by id."
                )
    if len(tables) > 1:
        raise UserError(
            f"Expected one CSV with the columns id and slide in {root}, but found "
            f"{listed(path.name for path in tables)}; move all but one away."
        )
    return tables[0] if tables else None


def _official_train(root: Path) -> SplitFiles | None:
    """Find the official files that Kaggle's patches were taken from, if all three are there."""
    there = official_file(root, "train", "x") and official_file(root, "train", "y") and official_meta(root, "train")
    return find_official(root, "train") if there else None


def _slides_by_pixels(files: SplitFiles, scratch: Path) -> pd.Series:
    """Look up the slide of each SHA-1 of a patch's pixels."""
    with files.open(scratch) as split:
        portions = split.portions(TASK_PATCHES)
        chunks = in_threads(_hashes, portions, len(split.ids), "Looking up slides in the official files")
        slides = pd.Series(split.slides, [pixels for chunk in chunks for pixels in chunk])
    return slides[~slides.index.duplicated()]


def _hashes(portion: Portion) -> list[str]:
    return [pixel_hash(patch).hex() for patch in portion.decode()]


def _faults_of_names(files: ImageFiles) -> list[str | None]:
    """Say what is wrong with each of Kaggle's images, whose names are the hashes of their pixels."""
    faults: list[str | None] = []
    for name in files.names:
        path = files.root / name
        try:
            right = pixel_hash(read_image(path)).hex() == path.stem
            faults.append(
                None if right else f"{path} has other pixels than its name says; unpack Kaggle's archive anew"
            )
        except UserError as error:
            faults.append(str(error))
    return faults
