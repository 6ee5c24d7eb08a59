"""Every form PatchCamelyon comes in, found by looking at the folder and read as splits.

One reader a form: a function that takes the root and returns a `Layout`, or None if the root does not hold its form.
Adding a form is writing a reader and naming it in `READERS`.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pcam.errors import UserError
from pcam.patches import CLASS_NAMES, PATCH_SIZE, PatchArray, SplitName

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
"""Compared in lower case."""


@dataclass(frozen=True)
class Split:
    """One split of one data set, in the form it was found in.

    Args:
        ids: A name for each patch, unique in the split.
        labels: Shape (patches,), 0 or 1.
        signature: Changes when the files that hold the split change.
        read: Decodes the patches from one row to before another, shape (stop - start, 96, 96, 3), values 0..255. Safe
            to call from several threads. Raises `UserError` naming the file if a patch cannot be read.
    """

    ids: Sequence[str]
    labels: NDArray[np.uint8]
    signature: str
    read: Callable[[int, int], PatchArray]


@dataclass(frozen=True)
class Layout:
    """A data set as it was found on disk.

    Args:
        name: The form, for messages: "class folders".
        root: Where it was found.
        splits: For each split that is there, a function that lists it (listing costs time, so only on demand).
    """

    name: str
    root: Path
    splits: Mapping[SplitName, Callable[[], Split]]

    def split(self, name: SplitName) -> Split:
        """List one split.

        Args:
            name: "train", "valid" or "test".

        Returns:
            The split, with at least one patch of each class.

        Raises:
            UserError: If the split, or one of its classes, is not there.
        """
        if name not in self.splits:
            raise UserError(
                f"Expected a split '{name}' in {self.root} ({self.name}), but found only {', '.join(self.splits)}; "
                f"add it, or choose another folder with --data.root."
            )
        return self.splits[name]()


def find_layout(root: Path) -> Layout:
    """Recognise the form of PatchCamelyon that lies in a folder.

    Args:
        root: The folder.

    Returns:
        What was found.

    Raises:
        UserError: If `root` is missing, is no folder, or holds no form that a reader knows.
    """
    if not root.exists():
        raise UserError(
            f"Expected a folder with PatchCamelyon at {root}, but found nothing there; correct --data.root."
        )
    if not root.is_dir():
        raise UserError(f"Expected a folder with PatchCamelyon at {root}, but found a file; correct --data.root.")
    for reader in READERS:
        layout = reader(root)
        if layout is not None:
            return layout
    entries = sorted(entry.name for entry in root.iterdir())
    found = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "") or "nothing"
    raise UserError(
        f"Expected class folders (train/0, train/1, valid/0, ...) or the course's (train+val/train/0, ...) in {root}, "
        f"but found {found}; point --data.root at the folder that holds the splits."
    )


def read_class_folders(root: Path) -> Layout | None:
    """Read `train|valid(or val)|test/{0,1}`, as torchvision's ImageFolder does."""
    return _class_folders("class folders", root, root)


def read_course_folders(root: Path) -> Layout | None:
    """Read the TU/e course's `train+val/{train,valid}/{0,1}`."""
    return _class_folders("course folders", root, root / "train+val")


READERS: Final = (read_class_folders, read_course_folders)


def _class_folders(form: str, root: Path, base: Path) -> Layout | None:
    names: dict[str, SplitName] = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
    folders: dict[SplitName, Path] = {}
    for folder_name, split in names.items():
        folder = base / folder_name
        if not any((folder / str(label)).is_dir() for label in range(len(CLASS_NAMES))):
            continue
        if split in folders:
            raise UserError(
                f"Expected one folder for the split '{split}', but found both {folders[split]} and {folder}; "
                f"remove one of them."
            )
        folders[split] = folder

    def listing(folder: Path) -> Callable[[], Split]:
        return lambda: _list_classes(root, folder)

    return Layout(form, root, {split: listing(folder) for split, folder in folders.items()}) if folders else None


def _list_classes(root: Path, folder: Path) -> Split:
    """List the images of `folder/0` and `folder/1`; ids are their paths below `root`."""
    ids: list[str] = []
    labels: list[int] = []
    signature = hashlib.sha256()
    for label, class_name in enumerate(CLASS_NAMES):
        class_folder = folder / str(label)
        if not class_folder.is_dir():
            raise UserError(
                f"Expected a folder {class_folder} with the patches of class {label} ({class_name}), but found none; "
                f"both classes must be there."
            )
        prefix = class_folder.relative_to(root).as_posix()
        with os.scandir(class_folder) as entries:
            images = [entry for entry in entries if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise UserError(
                f"Expected images (jpg, jpeg, png, tif or tiff) of class {label} ({class_name}) in {class_folder}, "
                f"but found none."
            )
        for entry in sorted(images, key=lambda entry: entry.name):
            status = entry.stat()
            patch_id = f"{prefix}/{entry.name}"
            signature.update(os.fsencode(f"{patch_id}\0{status.st_size}\0{status.st_mtime_ns}\n"))
            ids.append(patch_id)
            labels.append(label)

    def read(start: int, stop: int) -> PatchArray:
        return np.stack([read_image(root / patch_id) for patch_id in ids[start:stop]])

    return Split(ids, np.array(labels, dtype=np.uint8), signature.hexdigest(), read)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: A JPEG, PNG or TIFF file of 96x96 pixels in 8-bit RGB.

    Returns:
        Shape (96, 96, 3), values 0..255.

    Raises:
        UserError: If the file cannot be read, or is of another size or mode.
    """
    try:
        with Image.open(path) as image:
            if image.size != (PATCH_SIZE, PATCH_SIZE):
                raise UserError(
                    f"Expected patches of {PATCH_SIZE}x{PATCH_SIZE} pixels, but {path} has "
                    f"{image.width}x{image.height}; remove it or cut it to size."
                )
            if image.mode != "RGB":
                raise UserError(
                    f"Expected patches in 8-bit RGB, but {path} has mode '{image.mode}'; convert it or remove it."
                )
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        reason = "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(
            f"Expected an image in {path}, but it cannot be read ({reason}); replace it or remove it."
        ) from error
