"""Tables that users give, such as those of labels and slides, and checks of what they hold."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pcam.data.files import require_file, unreadable
from pcam.errors import UserError
from pcam.patches import CLASS_NAMES
from pcam.terminal import printable

SEPARATORS: Final = ",;\t"
MAX_HEADER: Final = 1 << 16
"""Characters of a CSV's first line that are read: a file without line ends may be of any length."""


def csv_columns(path: Path) -> tuple[list[str], str]:
    """Read the names of a CSV's columns.

    Args:
        path: The file.

    Returns:
        The names, without spaces round them and in lower case; and what separates them: a comma, a semicolon (as
        spreadsheets write in countries with a decimal comma) or a tab.

    Raises:
        UserError: If there is no file.
    """
    require_file(path, "a CSV")
    with path.open(encoding="utf-8-sig", errors="replace") as file:  # a spreadsheet's CSV may begin with a mark
        line = file.readline(MAX_HEADER)
    separator = max(SEPARATORS, key=line.count)  # the first of those that are there equally often
    return [name.strip(' "\r\n').lower() for name in line.split(separator)], separator


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV as text.

    Args:
        path: The file, as `csv_columns` describes it.
        columns: Columns that must be there, each once, in lower case.

    Returns:
        The whole table, under names in lower case; what is not given is "".

    Raises:
        UserError: If the file is no CSV, or lacks a column, or has one twice.
    """
    names, separator = csv_columns(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator, skipinitialspace=True)
    except ValueError as error:  # bytes that are no text, or text that is no table
        raise unreadable(path, error) from error
    given = [str(name) for name in table.columns]
    table.columns = pd.Index([name.strip().lower() for name in given])
    twice = sorted({name for name in columns if names.count(name) > 1})
    if not set(columns) <= set(table) or twice:
        found = f"{listed(twice)} more than once" if twice else listed(given)
        raise UserError(
            f"Expected the columns {listed(columns)} in {path}, but found {found}; fetch it anew, or rename its "
            f"columns."
        )
    return table


def checked_ids(ids: pd.Series, path: Path) -> pd.Index:
    """Check that each id occurs once.

    Args:
        ids: The ids.
        path: The file that they are from, for the message.

    Returns:
        The ids as an index.

    Raises:
        UserError: If one occurs more than once.
    """
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise UserError(
            f"Expected each id once in {path}, but found {len(repeated):,} repeats ({listed(repeated)}); remove them."
        )
    index: pd.Index = pd.Index(ids)
    return index


def checked_labels(values: pd.Series | NDArray[np.generic], where: Path | str) -> NDArray[np.uint8]:
    """Check that labels are 0 or 1, and that both occur.

    Args:
        values: Shape (patches,), labels as numbers of any type or as text.
        where: The place that they are from, for the message.

    Returns:
        Shape (patches,), the labels as uint8.

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
    """Name the first few, in alphabetical order.

    Args:
        names: Any number of names. Control characters in them are escaped, as a terminal would act on them.

    Returns:
        Such as "a, b, c, d, e, ..."; "nothing" if there are none.
    """
    ordered = [printable(name) for name in sorted(names)]
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "") or "nothing"
