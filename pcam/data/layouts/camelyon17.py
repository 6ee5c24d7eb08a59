"""WILDS Camelyon17: patches of five hospitals, by the rule of PatchCamelyon, as WILDS' own folder has them.

Everything that both of its forms share is here; `pcam.data.layouts.camelyon17_parquet` has the other.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pcam.data.files import require_file, signature
from pcam.data.layouts.form import Form, Split, SplitFiles
from pcam.data.layouts.images import ImageSplit, image_files
from pcam.data.layouts.tables import checked_labels, listed, read_csv
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName

VALID_HOSPITAL: Final = 1
TEST_HOSPITAL: Final = 2
"""The hospitals of the splits that WILDS calls val and test, by their numbers, 0 to 4.

Source: WILDS 2.0, wilds/datasets/camelyon17_dataset.py, split scheme "official".
"""

COLUMNS: Final = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")

CAUTION: Final = (
    "CAMELYON16, of which PatchCamelyon is made, came from two of the five hospitals of Camelyon17, and no list rules "
    "out that some slides are in both: audit both folders together, which finds patches that are identical."
)


class Camelyon17(Form):
    """`metadata.csv` and `patches/`, as WILDS unpacks them; the official splits are made by hospital.

    Train is hospitals 0, 3 and 4, valid hospital 1 (WILDS's val) and test hospital 2. The random tenth of hospitals 0,
    3 and 4 that WILDS calls id_val is left out.
    """

    name: ClassVar[str] = "WILDS Camelyon17"
    contents: ClassVar[str] = "`metadata.csv` and `patches/patient_*/*.png`, here or in `camelyon17_v1.0/`"

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for the table and the folder with the patches."""
        return list(SPLIT_NAMES) if _base(root) is not None else []

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Take the rows of a split and their images; the id of a patch is its path below the folder `patches`."""
        base = _base(root)
        assert base is not None
        path = base / "metadata.csv"
        table = read_csv(path, COLUMNS)
        rows = rows_of(table["center"], split, path)
        if split == "train":
            rows[rows] = _is_train(table.loc[rows, "split"], path)
        table = table[rows].reset_index(drop=True)
        labels = checked_labels(table["tumor"], f"the rows of the split '{split}' in {path}")
        origins = Origins.of(table, path)
        names = [
            f"{slide}/patch_{slide}_x_{x}_y_{y}.png"
            for slide, x, y in zip(origins.slides, table["x_coord"], table["y_coord"], strict=True)
        ]
        files = [
            (f"{slide}/{name}", status)
            for slide in sorted(set(origins.slides))
            if (base / "patches" / slide).is_dir()
            for name, status in image_files(base / "patches" / slide)
        ]
        missing = set(names) - {name for name, _ in files}
        if missing:
            raise UserError(
                f"Expected an image in {base / 'patches'} for each row in {path}, but found none for "
                f"{len(missing):,} of the {len(names):,} of the split '{split}' ({listed(missing)}); unpack WILDS's "
                f"archive anew."
            )
        patches = ImageSplit(
            ids=names,
            labels=labels,
            slides=origins.slides,
            patients=origins.patients,
            hospitals=origins.hospitals,
            root=base / "patches",
            names=names,
            drop_alpha=True,
        )
        whole = signature([("metadata.csv", require_file(path, "a CSV")), *files])
        return _Camelyon17Files(f"{whole} {split}", note(split), patches)


@dataclass(frozen=True)
class _Camelyon17Files(SplitFiles):
    split: Split

    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        return nullcontext(self.split)


@dataclass(frozen=True)
class Origins:
    """Where each patch of Camelyon17 is from.

    Args:
        slides: Named as the slides' own files are, such as `patient_004_node_4`.
        patients: Such as `patient_004`.
        hospitals: Such as `hospital_0`.
    """

    slides: Sequence[str]
    patients: Sequence[str]
    hospitals: Sequence[str]

    @classmethod
    def of(cls, table: pd.DataFrame, where: Path) -> "Origins":
        """Name the slides, patients and hospitals of rows.

        Args:
            table: With the columns `patient`, `node` and `center`, as numbers or text, with leading zeros or without.
            where: The file that it is from, for the message.

        Returns:
            The names.

        Raises:
            UserError: If one is no number.
        """
        columns = {name: _whole_numbers(table[name], where) for name in ("patient", "node", "center")}
        patients = [f"patient_{number:03d}" for number in columns["patient"]]
        return cls(
            slides=[f"{patient}_node_{node}" for patient, node in zip(patients, columns["node"], strict=True)],
            patients=patients,
            hospitals=[f"hospital_{number}" for number in columns["center"]],
        )


def rows_of(hospitals: pd.Series, split: SplitName, where: Path) -> NDArray[np.bool_]:
    """Find the rows of the hospitals of a split.

    Args:
        hospitals: The number of the hospital of each row.
        split: "train", "valid" or "test".
        where: The file that they are from, for the message.

    Returns:
        Whether each row is of one of them.

    Raises:
        UserError: If one is no number.
    """
    numbers = np.array(_whole_numbers(hospitals, where))
    if split == "train":
        return ~np.isin(numbers, (VALID_HOSPITAL, TEST_HOSPITAL))
    return np.asarray(numbers == (VALID_HOSPITAL if split == "valid" else TEST_HOSPITAL))


def note(split: SplitName) -> str:
    """What the user should know about a split of Camelyon17."""
    if split == "train":
        return (
            "Train is hospitals 0, 3 and 4. The random tenth of their patches that WILDS calls id_val is left out: it "
            "is from the slides of train, so scores on it say nothing about other slides."
        )
    if split == "valid":
        return f"Valid is hospital {VALID_HOSPITAL}, which WILDS calls val (out of distribution). {CAUTION}"
    return f"Test is hospital {TEST_HOSPITAL}, as in WILDS."


def _base(root: Path) -> Path | None:
    """Find the folder that holds the table and the patches."""
    bases = [base for base in (root, root / "camelyon17_v1.0") if (base / "metadata.csv").is_file()]
    return next((base for base in bases if (base / "patches").is_dir()), None)


def _is_train(splits: pd.Series, path: Path) -> NDArray[np.bool_]:
    """Read the file's own splits: 0 is train and 1 is id_val."""
    others = splits[~splits.isin(["0", "1"])]
    if len(others):
        raise UserError(
            f"Expected 0 (train) or 1 (id_val) as the split of patches of hospitals 0, 3 and 4 in {path}, but found "
            f"{len(others):,} others ({listed(set(others))}); fetch the file anew."
        )
    return (splits == "0").to_numpy()


def _whole_numbers(values: pd.Series, where: Path) -> list[int]:
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = np.flatnonzero(~(numbers >= 0) | (numbers % 1 != 0))
    if len(wrong):
        raise UserError(
            f"Expected a whole number as the {values.name} of each patch in {where}, but found {len(wrong):,} others, "
            f"the first '{values.iloc[wrong[0]]}' in row {wrong[0]}; fetch the file anew."
        )
    return [int(number) for number in numbers]
