"""TFRecord files, as TensorFlow Datasets writes PatchCamelyon; read without TensorFlow.

A file is a sequence of records: the length (8 bytes) and its checksum (4), the record, and its checksum (4). A record
is a protocol buffer, `tf.train.Example`. The checksums are not computed, which would take longer in Python than all
else: images are PNG, which has its own, and a damaged length or label is no possible one.

Source: TensorFlow, "TFRecord and tf.train.Example" (tutorial), and example.proto, feature.proto.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
import pandas as pd

from pcam.data.files import require_file, signature, unreadable
from pcam.data.layouts.form import Form, Portion, Split, SplitFiles
from pcam.data.layouts.images import decode_image
from pcam.data.layouts.tables import checked_ids, checked_labels
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray

NAME: Final = re.compile(r"patch_camelyon-(train|validation|test)\.tfrecord-(\d{5})-of-(\d{5})")

SPLITS: Final[dict[str, SplitName]] = {"train": "train", "validation": "valid", "test": "test"}
"""What TensorFlow Datasets calls the splits."""

LENGTH_BYTES: Final = 8
CHECKSUM_BYTES: Final = 4


class Tfds(Form):
    """The shards of each split, here or in the folders `patch_camelyon/<version>/` that TensorFlow Datasets makes."""

    name: ClassVar[str] = "TensorFlow Datasets' files"
    contents: ClassVar[str] = (
        "`patch_camelyon-{train,validation,test}.tfrecord-*`, here or in `patch_camelyon/<version>/`"
    )

    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look for files with the names that TensorFlow Datasets gives."""
        return list(_shards(root))

    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Take the shards of a split, in the order of their numbers; the id of a patch is what the file says."""
        paths = _shards(root)[split]
        named = NAME.fullmatch(paths[0].name)
        assert named is not None
        if int(named[3]) != len(paths):
            raise UserError(
                f"Expected {int(named[3])} files of the split '{split}' in {paths[0].parent}, as the name "
                f"{paths[0].name} says, but found {len(paths)}; let TensorFlow Datasets write them anew."
            )
        files = [(path.name, require_file(path, "a TFRecord file")) for path in paths]
        return _TfdsFiles(signature(files), None, paths)


@dataclass(frozen=True)
class _TfdsFiles(SplitFiles):
    paths: Sequence[Path]

    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        found = pd.DataFrame(
            [(record.id, record.label) for path in self.paths for record in _records(path)], columns=["id", "label"]
        )
        labels = checked_labels(found["label"], self.paths[0].parent)
        ids = checked_ids(found["id"], self.paths[0].parent)
        return nullcontext(_TfdsSplit(ids=ids.tolist(), labels=labels, paths=self.paths))


@dataclass(frozen=True, kw_only=True)
class _TfdsSplit(Split):
    paths: Sequence[Path]

    def portions(self, count: int) -> Iterator[Portion]:
        for path in self.paths:
            few: list[_Record] = []
            for record in _records(path):
                few.append(record)
                if len(few) == count:
                    yield _Few(few, path)
                    few = []
            if few:
                yield _Few(few, path)


class _Record(NamedTuple):
    id: str
    label: int
    image: bytes


@dataclass(frozen=True)
class _Few(Portion):
    records: Sequence[_Record]
    path: Path

    def decode(self) -> PatchArray:
        return np.stack(
            [decode_image(io.BytesIO(record.image), f"{record.id} of {self.path}") for record in self.records]
        )


def _shards(root: Path) -> dict[SplitName, list[Path]]:
    folders = [root, *sorted(root.glob("patch_camelyon/*"))]
    there = [folder for folder in folders if folder.is_dir() and any(map(NAME.fullmatch, _names(folder)))]
    if len(there) > 1:
        raise UserError(
            f"Expected TensorFlow Datasets' files in one folder, but found them in {there[0]} and {there[1]}; set root "
            f"to the one that is meant (--data.root {there[-1]})."
        )
    found: dict[SplitName, list[Path]] = {}
    for name in sorted(_names(there[0])) if there else []:
        named = NAME.fullmatch(name)
        if named:
            found.setdefault(SPLITS[named[1]], []).append(there[0] / name)
    return found


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _records(path: Path) -> Iterator[_Record]:
    """Read one record after the other; memory holds one."""
    try:
        with path.open("rb") as file:
            while head := file.read(LENGTH_BYTES + CHECKSUM_BYTES):
                length = int.from_bytes(head[:LENGTH_BYTES], "little")
                if len(head) < LENGTH_BYTES + CHECKSUM_BYTES or length > path.stat().st_size:
                    raise ValueError("it ends within a record")
                record = file.read(length)
                if len(record) < length or len(file.read(CHECKSUM_BYTES)) < CHECKSUM_BYTES:
                    raise ValueError("it ends within a record")
                yield _parse(record)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(path, error) from error


def _parse(record: bytes) -> _Record:
    """Parse a `tf.train.Example` with the features id, image and label.

    Raises:
        ValueError: If it is none.
        KeyError: If a feature is missing.
    """
    values: dict[str, bytes | int] = {}
    for features in _fields(record, 1):
        for entry in _fields(features, 1):
            ((key,), (feature,)) = (list(_fields(entry, number)) for number in (1, 2))
            for texts in _fields(feature, 1):  # a list of bytes
                values |= {_bytes(key).decode(): _bytes(text) for text in islice(_fields(texts, 1), 1)}
            for numbers in _fields(feature, 3):  # a list of whole numbers, packed or not
                for number in islice(_fields(numbers, 1), 1):
                    values[_bytes(key).decode()] = number if isinstance(number, int) else _varint(number, 0)[0]
    name, image, label = values["id"], values["image"], values["label"]
    if not (isinstance(name, bytes) and isinstance(image, bytes) and isinstance(label, int)):
        raise ValueError("a record has features of other types than id, image and label")
    return _Record(name.decode(), label, image)


def _fields(message: bytes | int, wanted: int) -> Iterator[bytes | int]:
    """Give the values of one field of a message.

    Source: Protocol Buffers documentation, "Encoding"; wire types 0 (a varint) and 2 (with a length).
    """
    data, at = _bytes(message), 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: bytes | int
        value, at = _varint(data, at)
        if tag & 7 == 2:
            length = value
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("a record has a field that is longer than it")
        elif tag & 7 != 0:
            raise ValueError("a record has a field of another type than it can have")
        if tag >> 3 == wanted:
            yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number whose bytes have 7 bits each; return it and the place behind it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a record has a number in the place of a text")
    return value
