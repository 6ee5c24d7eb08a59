"""Folders of images, one a class."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from pcam.data.layouts.images import image_files, is_image, read_images
from pcam.data.layouts.layout import Layout, Split, SplitFiles, signature
from pcam.data.layouts.tables import listed
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import CLASS_NAMES

CLASS_FOLDERS = [str(label) for label in range(len(CLASS_NAMES))]


def read_class_folders(root: Path) -> Layout | None:
    """Read `train|valid(or val)|test/{0,1}`, as torchvision's ImageFolder does."""
    return None if (root / "train+val").is_dir() else _read_folders("class folders", root, root)


def read_course_folders(root: Path) -> Layout | None:
    """Read the TU/e course's `train+val/{train,valid}/{0,1}`; its `test` has images without labels."""
    return _read_folders("course folders", root, root / "train+val") if (root / "train+val").is_dir() else None


def unlabelled_folder(root: Path) -> Path | None:
    """The folder `test`, if images lie in it rather than in folders of classes."""
    folder = root / "test"
    return folder if folder.is_dir() and any(is_image(path.name) for path in folder.iterdir()) else None


def _read_folders(form: str, root: Path, base: Path) -> Layout | None:
    candidates: list[tuple[SplitName, Path]] = [
        ("train", base / "train"), ("valid", base / "valid"), ("valid", base / "val"), ("test", root / "test"),
    ]  # fmt: skip
    folders: dict[SplitName, Path] = {}
    for split, folder in candidates:
        if not any((folder / name).is_dir() for name in CLASS_FOLDERS):
            continue
        if split in folders:
            raise UserError(
                f"Expected one folder for the split '{split}', but found both {folders[split]} and {folder}; "
                f"remove one of them."
            )
        folders[split] = folder
    splits: dict[SplitName, Callable[[], SplitFiles]] = {
        split: partial(_find, root, folder) for split, folder in folders.items()
    }
    return Layout(form, root, splits, unlabelled_folder(root)) if splits else None


def _find(root: Path, folder: Path) -> SplitFiles:
    """List the images of `folder/0` and `folder/1`; ids are their paths below `root`."""
    others = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    others -= set(CLASS_FOLDERS)
    if others:
        raise UserError(
            f"Expected only the classes 0 (normal) and 1 (tumour) in {folder}, but found also {listed(others)}; "
            f"move it away."
        )
    files: list[tuple[str, os.stat_result]] = []
    labels: list[int] = []
    for label, class_name in enumerate(CLASS_NAMES):
        class_folder = folder / CLASS_FOLDERS[label]
        if not class_folder.is_dir():
            raise UserError(
                f"Expected a folder {class_folder} with the patches of class {label} ({class_name}), but found none; "
                f"both classes must be there."
            )
        images = image_files(class_folder)
        if not images:
            raise UserError(
                f"Expected images (jpg, jpeg, png, tif or tiff) of class {label} ({class_name}) in {class_folder}, "
                f"but found none."
            )
        prefix = class_folder.relative_to(root).as_posix()
        files += [(f"{prefix}/{name}", status) for name, status in images]
        labels += [label] * len(images)
    ids = [name for name, _ in files]
    split = Split(ids, np.array(labels, dtype=np.uint8), partial(read_images, root, ids))
    return SplitFiles(signature(files), lambda scratch: nullcontext(split))
