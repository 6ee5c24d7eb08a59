"""Every form PatchCamelyon comes in, found by looking at the folder and read as splits.

One reader a form: a function that takes the root and returns a `Layout`, or None if the root does not hold its form.
Adding a form is writing a reader and naming it in `READERS`.
"""

from pathlib import Path
from typing import Final

from pcam.data.layouts.folders import read_class_folders, read_course_folders
from pcam.data.layouts.images import pixel_hash, read_image
from pcam.data.layouts.kaggle import read_kaggle
from pcam.data.layouts.layout import Layout, Split, SplitFiles
from pcam.data.layouts.official import read_official
from pcam.data.layouts.parquet import read_parquet
from pcam.data.layouts.tables import listed
from pcam.errors import UserError

__all__ = ["READERS", "Layout", "Split", "SplitFiles", "find_layout", "pixel_hash", "read_image"]

READERS: Final = (read_official, read_kaggle, read_class_folders, read_course_folders, read_parquet)


def find_layout(root: Path) -> Layout:
    """Recognise the form of PatchCamelyon that lies in a folder.

    Args:
        root: The folder.

    Returns:
        What was found.

    Raises:
        UserError: If `root` is missing, is no folder, or holds no form that a reader knows, or more than one.
    """
    if not root.exists():
        raise UserError(
            f"Expected a folder with PatchCamelyon at {root}, but found nothing there; correct --data.root."
        )
    if not root.is_dir():
        raise UserError(f"Expected a folder with PatchCamelyon at {root}, but found a file; correct --data.root.")
    layouts = [layout for reader in READERS if (layout := reader(root)) is not None]
    if not layouts:
        raise UserError(
            f"Expected PatchCamelyon in {root} as the official files (camelyonpatch_level_2_split_train_x.h5 or "
            f".h5.gz, ...), Kaggle's (train_labels.csv, train/*.tif), class folders (train/0, train/1, valid/0, ...), "
            f"the course's (train+val/train/0, ...) or parquet files (train-*.parquet, ...), but found "
            f"{listed(entry.name for entry in root.iterdir())}; point --data.root at the folder that holds the splits."
        )
    if len(layouts) > 1:
        raise UserError(
            f"Expected one form of PatchCamelyon in {root}, but found {' and '.join(layout.name for layout in layouts)}"
            f"; move all but one to other folders."
        )
    return layouts[0]
