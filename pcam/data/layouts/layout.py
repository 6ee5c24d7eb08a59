"""What a reader finds: a layout, the files of its splits, and a split that is open for reading."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray

Tasks = Iterable[Callable[[], PatchArray]]
"""Each decodes some patches, as many as were asked for; they may run in several threads."""


@dataclass(frozen=True)
class Split:
    """One split of one data set, open for reading.

    Args:
        ids: A name for each patch, unique in the split.
        labels: Shape (patches,), 0 or 1; both are there.
        read: Takes a number, and gives the tasks that decode as many patches each, in order. A task raises `UserError`
            naming the file if a patch cannot be read.
        slides: The slide that each patch is from, if that is known.
    """

    ids: Sequence[str]
    labels: NDArray[np.uint8]
    read: Callable[[int], Tasks]
    slides: Sequence[str] | None = None


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: cheap to find, at every start; to open them may mean to unpack or hash gigabytes.

    Args:
        signature: Changes when the files that matter to the split change.
        open: Opens the split; takes a folder for temporary files.
    """

    signature: str
    open: Callable[[Path], AbstractContextManager[Split]]


@dataclass(frozen=True)
class Layout:
    """A data set as it was found on disk.

    Args:
        name: The form, for messages: "class folders".
        root: Where it was found.
        splits: For each split that is there, a function that finds its files.
        unlabelled: A folder with the images of a test split without labels, if there is one.
    """

    name: str
    root: Path
    splits: Mapping[SplitName, Callable[[], SplitFiles]]
    unlabelled: Path | None = None

    def split(self, name: SplitName) -> SplitFiles:
        """Find the files of one split.

        Args:
            name: "train", "valid" or "test".

        Returns:
            The files.

        Raises:
            UserError: If the split, or a part of it, is not there, or has no labels.
        """
        if name in self.splits:
            return self.splits[name]()
        if name == "test" and self.unlabelled is not None:
            raise UserError(
                f"Expected labels for the split 'test' of {self.root} ({self.name}), but {self.unlabelled} has images "
                f"without labels, which are for prediction only; choose another split."
            )
        raise UserError(
            f"Expected a split '{name}' in {self.root} ({self.name}), but found only {', '.join(self.splits)}; "
            f"add it, or choose another folder with --data.root."
        )


def signature(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Condense the names, sizes and times of files.

    Args:
        files: Name and state of each, in an order that does not change by itself.

    Returns:
        A SHA-256.
    """
    digest = hashlib.sha256()
    for name, status in files:
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that is truncated, damaged, or something else than its name says."""
    return UserError(f"Expected a whole file in {path}, but it cannot be read ({error}); fetch it anew.")
