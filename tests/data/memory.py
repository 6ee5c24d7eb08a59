"""A split in memory, which a store can be packed from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcam.data.layouts import Portion, Split, SplitFiles
from pcam.patches import PatchArray
from tests.data.forms import noise

IMAGES, LABELS = noise()["train"]


@dataclass(frozen=True)
class Rows(Portion):
    images: PatchArray

    def decode(self) -> PatchArray:
        return self.images


@dataclass(frozen=True, kw_only=True)
class InMemory(Split):
    images: PatchArray
    before_portion: Callable[[int], object]

    def portions(self, count: int) -> Iterator[Portion]:
        for start in range(0, len(self.images), count):
            self.before_portion(start)
            yield Rows(self.images[start : start + count])


@dataclass(frozen=True)
class Files(SplitFiles):
    split: Split
    unpacked: bytes = b""

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Split]:
        if self.unpacked:
            (scratch / "unpacked").write_bytes(self.unpacked)
        yield self.split


def files(
    images: PatchArray = IMAGES, labels: NDArray[np.uint8] = LABELS, signature: str = "one",
    before_portion: Callable[[int], object] = lambda start: None, unpacked: bytes = b"",
) -> SplitFiles:  # fmt: skip
    """Patches in memory, as a form gives them; a call before each portion can do harm."""
    rows = range(len(images))
    split = InMemory(
        ids=[f"patch {row}" for row in rows], labels=labels, slides=[f"s{row}" for row in rows], images=images,
        before_portion=before_portion,
    )  # fmt: skip
    return Files(signature, None, split, unpacked)
