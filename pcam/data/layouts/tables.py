"""Labels, ids and slides as users' tables give them, checked."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pcam.data.layouts.files import unreadable
from pcam.errors import UserError
from pcam.patches import CLASS_NAMES


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV as text.

    Args:
        path: The file.
        columns: Columns that must be there.

    Returns:
        The whole table; what is not given is "".

    Raises:
        UserError: If the file is no CSV, or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # bytes that are no text, or text that is no table
        raise unreadable(path, error) from error
    if not set(columns) <= set(table):
        raise UserError(
            f"Expected the columns {listed(columns)} in {path}, but found {listed(map(str, table))}; fetch it anew, or "
            f"rename its columns."
        )
    return table


def checked_ids(ids: pd.Series, path: Path) -> pd.Index:
    """Take ids that are each there once.

    Args:
        ids: The ids.
        path: The file they are from.

    Returns:
        The same.

    Raises:
        UserError: If one is there more than once.
    """
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise UserError(
            f"Expected each id once in {path}, but found {len(repeated):,} repeats ({listed(repeated)}); remove them."
        )
    index: pd.Index = pd.Index(ids)
    return index


def checked_labels(values: pd.Series | NDArray[np.generic], where: Path | str) -> NDArray[np.uint8]:
    """Take labels that are 0 or 1, and not all the same.

    Args:
        values: Labels as numbers of any type, or as text.
        where: What messages call the place they are from.

    Returns:
        Shape (patches,).

    Raises:
        UserError: If a label is missing or something else, or one of the two does not occur.
    """
    given = pd.Series(values).reset_index(drop=True)
    labels = pd.to_numeric(given, errors="coerce")
    wrong = np.flatnonzero(~labels.isin([0, 1]))
    if len(wrong):
        raise UserError(
            f"Expected labels 0 (normal) or 1 (tumour) in {where}, but found {len(wrong):,} others, the first "
            f"'{given[wrong[0]]}' in row {wrong[0]}; correct them."
        )
    if labels.nunique() < len(CLASS_NAMES):
        found = f"only {int(labels[0])}" if len(labels) else "none"
        raise UserError(f"Expected both labels, 0 and 1, in {where}, but found {found}; add the other class.")
    return labels.to_numpy(dtype=np.uint8)


def listed(names: Iterable[str]) -> str:
    """Name the first few, in alphabetical order."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "") or "nothing"
