"""WILDS Camelyon17 as parquet files, as its mirror on the Hugging Face hub has it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from pcam.data.layouts.camelyon17 import Origins, note, rows_of
from pcam.data.layouts.form import Form, Split, SplitFiles
from pcam.data.layouts.parquet import (
    CAMELYON17_COLUMNS,
    ParquetSplit,
    has_columns,
    parquet_paths,
    parquet_signature,
    read_columns,
)
from pcam.data.layouts.tables import checked_labels
from pcam.options import SplitName


class Camelyon17Parquet(Form):
    """Parquet files with the columns `center`, `patient` and `node` besides `image` and `label`.

    The splits are made by hospital, as those of WILDS's folder: the mirror's `validation` holds hospital 1 (WILDS's
    val) and the random tenth of the hospitals of train that WILDS calls id_val, which is left out.
    """

    name: ClassVar[str] = "WILDS Camelyon17 as parquet files"
    contents: ClassVar[str] = (
        "`train*.parquet`, `validation*`, `test*`, here or in `data/`, with `image`, `label`, `center`, `patient` and "
        "`node`, as its mirror on the Hugging Face hub"
    )

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for files whose columns tell the hospital."""
        return list(parquet_paths(root)) if has_columns(root, CAMELYON17_COLUMNS) else []

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Take the files of a split together; the id of a patch is its row's number in them."""
        paths = parquet_paths(root)[split]
        return _Camelyon17ParquetFiles(parquet_signature(root, split, paths), note(split), split, paths)


@dataclass(frozen=True)
class _Camelyon17ParquetFiles(SplitFiles):
    split: SplitName
    paths: Sequence[Path]

    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        columns = ["label", *sorted(CAMELYON17_COLUMNS)]
        table = pd.concat([read_columns(path, columns) for path in self.paths], ignore_index=True)
        kept = rows_of(table["center"], self.split, self.paths[0])
        labels = checked_labels(table.loc[kept, "label"], f"the split '{self.split}' of {self.paths[0].parent}")
        origins = Origins.of(table[kept], self.paths[0])
        return nullcontext(
            ParquetSplit(
                ids=[f"{self.split}/{row:07d}" for row in np.flatnonzero(kept)],
                labels=labels,
                slides=origins.slides,
                patients=origins.patients,
                hospitals=origins.hospitals,
                paths=self.paths,
                kept=kept,
                drop_alpha=True,
            )
        )
