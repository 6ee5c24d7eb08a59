"""Parquet files, as a data set of the Hugging Face hub has them."""

import io
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pcam.data.files import require_file, signature, unreadable
from pcam.data.layouts.form import Form, Portion, Split, SplitFiles
from pcam.data.layouts.images import decode_image
from pcam.data.layouts.tables import checked_labels, listed
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray
from pcam.terminal import joined, printable

SPLITS: Final[dict[str, SplitName]] = {
    "train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test",
}  # fmt: skip
"""The split that a file belongs to, by the first word of its name."""


LABEL_TYPES: Final = (
    pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_null,
)  # fmt: skip
IMAGE_TYPES: Final = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_null)


CAMELYON17_COLUMNS: Final = frozenset({"center", "patient", "node"})
"""Columns of WILDS Camelyon17, a form of its own, as its splits are not what the names of its files say."""


class Parquet(Form):
    """Files with the columns `image`, encoded images or structs that hold them as `bytes`, and `label`."""

    name: ClassVar[str] = "parquet files"
    contents: ClassVar[str] = (
        "`train*.parquet`, `valid*` (or `validation*`, `val*`), `test*`, here or in `data/`, with `image` and "
        "`label`, as on the Hugging Face hub"
    )

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for files whose names begin with the name of a split."""
        return [] if has_columns(root, CAMELYON17_COLUMNS) else list(parquet_paths(root))

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Take the files of a split together, in the order of their names; the id of a patch is its row's number."""
        paths = parquet_paths(root)[split]
        return _ParquetFiles(parquet_signature(root, split, paths), None, split, paths)


@dataclass(frozen=True)
class _ParquetFiles(SplitFiles):
    split: SplitName
    paths: Sequence[Path]

    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        table = pd.concat([read_columns(path, ["label"]) for path in self.paths], ignore_index=True)
        where = self.paths[0] if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"
        labels = checked_labels(table["label"], where)
        ids = [f"{self.split}/{index:07d}" for index in range(len(labels))]
        return nullcontext(ParquetSplit(ids=ids, labels=labels, paths=self.paths))


@dataclass(frozen=True, kw_only=True)
class ParquetSplit(Split):
    """A split whose patches are rows of parquet files.

    Args:
        paths: The files.
        kept: Whether each row of these files, one after the other, is in the split; None if all are.
        drop_alpha: Whether an alpha channel is dropped even where it is not opaque.
    """

    paths: Sequence[Path]
    kept: NDArray[np.bool_] | None = None
    drop_alpha: bool = False

    def portions(self, count: int) -> Iterator[Portion]:
        """Go through the rows."""
        before = 0
        for path in self.paths:
            first = 0
            try:
                # A little at a time: else a group of rows is read as a whole, and all rows of a file may be one group.
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    for batch in file.iter_batches(count, columns=["image"], use_threads=False):
                        column = batch.column(0)
                        images = column.field("bytes") if pa.types.is_struct(column.type) else column
                        rows = np.arange(first, first + len(images))
                        if self.kept is not None:
                            kept = self.kept[before + first : before + first + len(images)]
                            rows, images = rows[kept], images.filter(pa.array(kept))
                        first += batch.num_rows
                        if len(rows):
                            yield _Rows(images.to_pylist(), path, rows.tolist(), self.drop_alpha)
                before += first
            except (OSError, KeyError, pa.ArrowException) as error:
                raise unreadable(path, error) from error


@dataclass(frozen=True)
class _Rows(Portion):
    """Encoded images.

    Args:
        images: The bytes of each.
        path: The file they are from.
        rows: The row of each.
        drop_alpha: Whether an alpha channel is dropped even where it is not opaque.
    """

    images: Sequence[bytes | None]
    path: Path
    rows: Sequence[int]
    drop_alpha: bool

    def decode(self) -> PatchArray:
        return np.stack([self._decode(image, row) for image, row in zip(self.images, self.rows, strict=True)])

    def _decode(self, image: bytes | None, row: int) -> NDArray[np.uint8]:
        if image is None:
            raise UserError(
                f"Expected an image in row {row} of {self.path}, but its bytes are missing; write the content of each "
                f"image file into the column image, as a path alone leads nowhere on another machine."
            )
        return decode_image(io.BytesIO(image), f"row {row} of {self.path}", drop_alpha=self.drop_alpha)


def parquet_paths(root: Path) -> dict[SplitName, list[Path]]:
    """Find the files of each split, in the order of their names, here or in `data/`."""
    paths: dict[SplitName, list[Path]] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
        split = SPLITS.get(re.split(r"\W|_", path.name)[0])
        if split is not None:
            paths.setdefault(split, []).append(path)
    return paths


def parquet_signature(root: Path, split: SplitName, paths: Sequence[Path]) -> str:
    """Condense the state of the files of a split, as `signature` does; refuse one that lacks files.

    Raises:
        UserError: If there are fewer files than the name of the first says.
    """
    parts = re.search(r"-of-(\d+)", paths[0].name)
    if parts and int(parts[1]) != len(paths):
        raise UserError(
            f"Expected {int(parts[1])} files of the split '{split}' in {paths[0].parent}, as the name "
            f"{paths[0].name} says, but found {len(paths)}; fetch the others."
        )
    return signature((path.relative_to(root).as_posix(), require_file(path, "a parquet file")) for path in paths)


def has_columns(root: Path, names: Set[str]) -> bool:
    """Whether one of the files in a folder has some columns; a file that cannot be read has none."""
    return any(names <= _columns(path) for of_split in parquet_paths(root).values() for path in of_split)


def _columns(path: Path) -> set[str]:
    try:
        return set(pq.read_schema(path).names) if path.is_file() else set()  # a named pipe would wait for ever
    except (OSError, pa.ArrowException):  # said when the file is read
        return set()


def read_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read some columns of a file with patches.

    Args:
        path: The file.
        names: The columns, besides `image`.

    Returns:
        The columns.

    Raises:
        UserError: If the file is damaged, lacks one, or holds images or labels as what they cannot be.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow, ["image", *names], path)
            table: pd.DataFrame = file.read(list(names)).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return table


def _check_columns(schema: pa.Schema, needed: Sequence[str], path: Path) -> None:
    names: list[str] = schema.names
    if not set(needed) <= set(names):
        raise UserError(
            f"Expected the columns {joined(needed, 'and')} in {path}, but found {listed(names)}; rename them."
        )
    for name in needed:
        if names.count(name) > 1:
            raise UserError(
                f"Expected one column {name} in {path}, but found {names.count(name)}; remove or rename all but one."
            )
    label, image = schema.field("label").type, schema.field("image").type
    if not any(is_kind(label) for is_kind in LABEL_TYPES):
        raise UserError(
            f"Expected the label of each patch in {path} as a number, but found the type {label}; write 0 or 1."
        )
    content = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not any(is_kind(content) for is_kind in IMAGE_TYPES):
        raise UserError(
            f"Expected the column image in {path} to hold encoded images, or structs that hold them as bytes, but "
            f"found the type {printable(str(image))}; write the content of each image file into it."
        )
