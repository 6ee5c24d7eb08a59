"""The patches that are measured on: the user's or synthetic ones, and the same in the forms that others read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import torch
from PIL import Image
from rich.progress import track

from pcam.benchmark.workload import Workload
from pcam.data import PCamDataModule
from pcam.data.packed import PackedSplit
from pcam.data.synthetic import write_class_folders
from pcam.errors import UserError
from pcam.options import Precision, SplitName

SYNTHETIC_COUNTS: Final[dict[SplitName, int]] = {"train": 1024, "valid": 512, "test": 2}
"""Number of synthetic patches in each split, where the user names no folder."""

MOST_IMAGES: Final = 2048
"""The most training patches that are written as PNG files for what reads nothing but class folders."""


@contextmanager
def open_patches(root: Path | None, cache_dir: Path | None) -> Iterator[tuple[PCamDataModule, Path]]:
    """Open the patches that are measured on, and a temporary folder, which is removed in the end.

    Args:
        root: Folder with the data, in any form; None writes synthetic patches into the temporary folder.
        cache_dir: Folder for the packed stores; None is the user's cache folder. Synthetic patches are packed in the
            temporary folder.

    Yields:
        The data and the temporary folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if root is not None:
            yield PCamDataModule(root, cache_dir=cache_dir), folder
            return
        write_class_folders(folder / "synthetic", SYNTHETIC_COUNTS, seed=1)
        yield PCamDataModule(folder / "synthetic", cache_dir=folder / "cache"), folder


@contextmanager
def open_workload(
    root: Path | None,
    cache_dir: Path | None,
    split: SplitName,
    device: str,
    batch_size: int,
    steps: int,
    rounds: int,
    precision: Precision = "32-true",
) -> Iterator[Workload]:
    """Prepare a workload: pack the patches, and write one split as class folders if it is in another form.

    Args:
        root: As for `open_patches`.
        cache_dir: As for `open_patches`.
        split: The split that is written as class folders.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        batch_size: Number of patches in a batch.
        steps: Number of training steps in a turn.
        rounds: Number of turns that each contestant takes.
        precision: What this project's code and the ceiling compute in.

    Yields:
        The workload, whose temporary folder is removed in the end.

    Raises:
        UserError: If there is no GPU although one is asked for, or the data cannot be read.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("Expected a GPU for --device cuda, but PyTorch finds none; take --device cpu.")
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    with open_patches(root, cache_dir) as (data, folder):
        data.prepare_data()
        images = class_folders(data, folder / "images", split)
        yield Workload(data.root, images, data.cache_dir, folder, accelerator, batch_size, steps, rounds, precision)


def class_folders(data: PCamDataModule, folder: Path, split: SplitName) -> Path:
    """Find a split's patches in class folders, or write them there as PNG files.

    Args:
        data: The data.
        folder: Where the class folders are made if the data have none.
        split: The split. Of train, at most `MOST_IMAGES` patches are written.

    Returns:
        The root of the data, or `folder`: its `<split>/0` and `<split>/1` hold the images.
    """
    if (data.root / split / "0").is_dir():
        return data.root
    store = data.packed(split)
    count = min(MOST_IMAGES, len(store)) if split == "train" else len(store)
    for row in track(range(count), f"Writing {split} as PNG files"):
        path = folder / split / str(store.labels[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(store.patches[row]).save(path)
    return folder


def write_official_files(store: PackedSplit, folder: Path, split: SplitName, count: int) -> None:
    """Write patches of a store in the form of the official HDF5 files.

    Args:
        store: The patches.
        folder: An existing folder, for the two files of the split.
        split: The split that the files are named after.
        count: Number of patches to write; more than the store has repeats it from its first patch on.
    """
    stem = f"camelyonpatch_level_2_split_{split}"
    with h5py.File(folder / f"{stem}_x.h5", "w") as x, h5py.File(folder / f"{stem}_y.h5", "w") as y:
        patches = x.create_dataset("x", (count, *store.patches.shape[1:]), np.uint8)
        labels = y.create_dataset("y", (count, 1, 1, 1), np.uint8)
        for start in range(0, count, len(store)):
            stop = min(start + len(store), count)
            patches[start:stop] = store.patches[: stop - start]
            labels[start:stop] = store.labels[: stop - start].reshape(-1, 1, 1, 1)


def repeat_patches(store: PackedSplit, path: Path, count: int) -> None:
    """Write an HDF5 file that repeats the patches of a store, as a virtual array, which stores them once.

    Args:
        store: The patches.
        path: The file; another is written beside it, with the patches.
        count: Number of patches that the file has.
    """
    once = path.with_name(f"{path.stem}_once.h5")
    with h5py.File(once, "w") as file:
        file["x"] = store.patches[:]
    rows = h5py.VirtualLayout((count, *store.patches.shape[1:]), np.uint8)
    patches = h5py.VirtualSource(once, "x", store.patches.shape)
    for start in range(0, count, len(store)):
        stop = min(start + len(store), count)
        rows[start:stop] = patches[: stop - start]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", rows)
