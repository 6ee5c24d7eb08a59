"""Parquet files, as a data set of the Hugging Face hub has them."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pcam.data.layouts.images import decode_image
from pcam.data.layouts.layout import Layout, Split, SplitFiles, signature, unreadable
from pcam.data.layouts.tables import checked_labels, listed
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray

SPLITS: Final[dict[str, SplitName]] = {
    "train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test",
}  # fmt: skip
"""What a file's name begins with."""


def read_parquet(root: Path) -> Layout | None:
    """Read `train*.parquet`, `valid*` (or `validation*`, `val*`) and `test*`, here or in `data`.

    Column `image`: encoded images, or structs with such in the field `bytes`. Column `label`.
    """
    files: dict[SplitName, list[Path]] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
        split = SPLITS.get(re.split(r"\W|_", path.name)[0])
        if split is not None:
            files.setdefault(split, []).append(path)
    splits: dict[SplitName, Callable[[], SplitFiles]] = {
        split: partial(_find, root, split, paths) for split, paths in files.items()
    }
    return Layout("parquet files", root, splits) if splits else None


def _find(root: Path, split: SplitName, paths: Sequence[Path]) -> SplitFiles:
    """Take files together, in the order of their names; ids are the indices of their rows."""
    parts = re.search(r"-of-(\d+)", paths[0].name)
    if parts and int(parts[1]) != len(paths):
        raise UserError(
            f"Expected {int(parts[1])} files of the split '{split}' in {paths[0].parent}, as the name {paths[0].name} "
            f"says, but found {len(paths)}; fetch the others."
        )
    names = ((path.relative_to(root).as_posix(), path.stat()) for path in paths)
    return SplitFiles(signature(names), lambda scratch: nullcontext(_list(split, paths)))


def _list(split: SplitName, paths: Sequence[Path]) -> Split:
    columns = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if not {"image", "label"} <= set(names):
                    raise UserError(
                        f"Expected the columns image and label in {path}, but found {listed(names)}; rename them."
                    )
                columns.append(file.read(["label"])["label"].to_pandas())
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
    where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    labels = checked_labels(pd.concat(columns), where)
    return Split([f"{split}/{index:07d}" for index in range(len(labels))], labels, partial(_read, paths))


def _read(paths: Sequence[Path], count: int) -> Iterator[Callable[[], PatchArray]]:
    """Read the encoded images here, in order, and leave it to the tasks to decode them."""

    def decode(images: Sequence[bytes | None], path: Path, first: int) -> PatchArray:
        rows = enumerate(images, first)
        return np.stack([decode_image(io.BytesIO(image or b""), f"row {row} of {path}") for row, image in rows])

    for path in paths:
        first = 0
        try:
            # A little at a time: else a group of rows is read as a whole, and all rows of a file may be one group.
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for batch in file.iter_batches(count, columns=["image"], use_threads=False):
                    column = batch.column(0)
                    images = column.field("bytes") if pa.types.is_struct(column.type) else column
                    yield partial(decode, images.to_pylist(), path, first)
                    first += len(images)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
