"""Folders of images, one for each class."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pcam.data.files import signature
from pcam.data.layouts.form import Form, Split, SplitFiles
from pcam.data.layouts.images import ImageSplit, image_files, is_image
from pcam.data.layouts.tables import listed
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import CLASS_NAMES

CLASS_FOLDERS = [str(label) for label in range(len(CLASS_NAMES))]


class _Folders(Form):
    """Folders of images, wherever those of train and valid lie below the root."""

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for folders of classes."""
        return list(self._folders(root))

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """List the images of the folders `0` and `1`; the id of a patch is its path below `root`."""
        return _find(root, self._folders(root)[split])

    def unlabelled(self, root: Path) -> Path | None:
        """Find the folder `test`, if images lie in it rather than in folders of classes."""
        return unlabelled_folder(root)

    def _folders(self, root: Path) -> dict[SplitName, Path]:
        base = self._base(root)
        if base is None:
            return {}
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
        return folders

    @abstractmethod
    def _base(self, root: Path) -> Path | None:
        """Give the folder in which the folders of train and valid lie, or None if `root` is not of this form."""


class ClassFolders(_Folders):
    """`train`, `valid` (or `val`) and `test`, each with `0` and `1`, as torchvision's ImageFolder reads them."""

    name: ClassVar[str] = "class folders"
    contents: ClassVar[str] = (
        "`train/{0,1}`, `valid/{0,1}` (or `val`), `test/{0,1}` with jpg, jpeg, png, tif or tiff images"
    )

    def _base(self, root: Path) -> Path | None:
        return None if (root / "train+val").is_dir() else root


class CourseFolders(_Folders):
    """The TU/e course's `train+val/{train,valid}/{0,1}`; its `test` has images without labels."""

    name: ClassVar[str] = "course folders"
    contents: ClassVar[str] = (
        "`train+val/train/{0,1}`, `train+val/valid/{0,1}`; `test/*.tif` has no labels and is for prediction only"
    )

    def _base(self, root: Path) -> Path | None:
        base = root / "train+val"
        return base if base.is_dir() else None


def unlabelled_folder(root: Path) -> Path | None:
    """Find the folder `test`, if images lie in it rather than in folders of classes.

    Args:
        root: The folder that it may lie in.

    Returns:
        The folder, if it is there.
    """
    folder = root / "test"
    return folder if folder.is_dir() and any(is_image(path.name) for path in folder.iterdir()) else None


@dataclass(frozen=True)
class _FolderFiles(SplitFiles):
    split: Split

    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        return nullcontext(self.split)


def _find(root: Path, folder: Path) -> SplitFiles:
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
    split = ImageSplit(ids=ids, labels=np.array(labels, dtype=np.uint8), root=root, names=ids)
    return _FolderFiles(signature(files), None, split)
