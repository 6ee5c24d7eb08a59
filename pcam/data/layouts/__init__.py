"""Every form that PatchCamelyon comes in: found by looking at the folder, read as splits, verified.

`pcam.data.layouts.form` says what a form is and how to add one.
"""

from pathlib import Path
from typing import Final

from pcam.data.files import require_root
from pcam.data.layouts.camelyon17 import Camelyon17
from pcam.data.layouts.camelyon17_parquet import Camelyon17Parquet
from pcam.data.layouts.folders import ClassFolders, CourseFolders
from pcam.data.layouts.form import Form, Layout, Portion, Split, SplitFiles
from pcam.data.layouts.images import pixel_hash, read_image
from pcam.data.layouts.kaggle import Kaggle
from pcam.data.layouts.official import Official
from pcam.data.layouts.parquet import Parquet
from pcam.data.layouts.tables import listed
from pcam.data.layouts.tfds import Tfds
from pcam.errors import UserError

__all__ = ["FORMS", "Form", "Layout", "Portion", "Split", "SplitFiles", "find_layout", "pixel_hash", "read_image"]

FORMS: Final[tuple[Form, ...]] = (
    Official(),
    Kaggle(),
    ClassFolders(),
    CourseFolders(),
    Parquet(),
    Tfds(),
    Camelyon17(),
    Camelyon17Parquet(),
)
"""All forms. The table in docs/data.md lists them too, and a test compares the two."""


def find_layout(root: Path) -> Layout:
    """Recognise the form of PatchCamelyon that lies in a folder.

    Args:
        root: The folder.

    Returns:
        What was found.

    Raises:
        UserError: If `root` is missing, is no folder, or holds no form that is known, or more than one.
    """
    require_root(root)
    found = {form: splits for form in FORMS if (splits := form.splits(root))}
    if not found:
        known = ", ".join(f"{form.name} ({form.contents.replace('`', '')})" for form in FORMS)
        raise UserError(
            f"Expected PatchCamelyon in {root} in one of the forms {known}, but found "
            f"{listed(entry.name for entry in root.iterdir())}; set root to the folder that holds the splits "
            f"(--data.root DIR)."
        )
    if len(found) > 1:
        raise UserError(
            f"Expected one form of PatchCamelyon in {root}, but found {' and '.join(form.name for form in found)}; "
            f"move all but one to other folders."
        )
    ((form, splits),) = found.items()
    return Layout(form, root, splits, form.unlabelled(root))
