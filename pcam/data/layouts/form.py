"""What a form has to provide so that its patches can be found, read and verified.

A *form* is a way in which patches lie on disk, such as class folders or parquet files. To add one, write a module with
a subclass of `Form`, and name it in the list `FORMS` of this package. A patch then takes this way from disk to the
packed store: `Form.find` lists the files of a split, `SplitFiles.open` opens them, `Split.portions` goes through the
patches a few at a time, and `Portion.decode` turns each few into pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pcam.data.layouts.findings import Finding, balance, first_fault
from pcam.data.threads import in_threads
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray


class Portion(ABC):
    """A few consecutive patches of a split that are not decoded yet."""

    @abstractmethod
    def decode(self) -> PatchArray:
        """Decode the patches; portions are decoded in several threads at once.

        Returns:
            Shape (patches, 96, 96, 3), values 0..255.

        Raises:
            UserError: If a patch cannot be read; the message names its file.
        """


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """One split of a data set, open for reading.

    Args:
        ids: A name for each patch, unique in the split.
        labels: Shape (patches,), 0 or 1; both occur.
        slides: The name of the slide that each patch is from, if that is known.
        patients: The name of the patient that each patch is from, if that is known.
        hospitals: The name of the hospital that each patch is from, if that is known.
    """

    ids: Sequence[str]
    labels: NDArray[np.uint8]
    slides: Sequence[str] | None = None
    patients: Sequence[str] | None = None
    hospitals: Sequence[str] | None = None

    @abstractmethod
    def portions(self, count: int) -> Iterator[Portion]:
        """Go through the patches once, in the order of `ids`; one thread does this.

        Args:
            count: Patches in a portion, at most. Memory holds only the portions that are taken and not yet decoded.

        Yields:
            The portions.

        Raises:
            UserError: If a file cannot be read.
        """


@dataclass(frozen=True)
class SplitFiles(ABC):
    """The files of one split. They are found at every start, so that has to be quick; opening them may take minutes.

    Args:
        signature: A text that changes when the files change; a packed store remembers it.
        note: What the user should know about how the split is made, if there is something.
    """

    signature: str
    note: str | None

    @abstractmethod
    def open(self, scratch: Path) -> AbstractContextManager[Split]:
        """Open the split.

        Args:
            scratch: A folder for temporary files, such as what is unpacked from gzip.

        Returns:
            A context manager that gives the split and closes its files in the end.

        Raises:
            UserError: If a file cannot be read, or the files do not fit together.
        """


class Form(ABC):
    """A way in which patches lie on disk.

    Attributes:
        name: What messages and docs/data.md call the form.
        contents: What lies in the folder, in one line.
    """

    name: ClassVar[str]
    contents: ClassVar[str]

    @abstractmethod
    def splits(self, root: Path) -> Sequence[SplitName]:
        """Look which splits lie in a folder in this form, without reading files.

        Args:
            root: The folder, which exists.

        Returns:
            The splits that have labels; none if the folder is not of this form.

        Raises:
            UserError: If a split is there twice.
        """

    @abstractmethod
    def find(self, root: Path, split: SplitName) -> SplitFiles:
        """Find the files of a split.

        Args:
            root: The folder.
            split: One of those that `splits` returned.

        Returns:
            The files.

        Raises:
            UserError: If a part of the split is missing.
        """

    def unlabelled(self, root: Path) -> Path | None:
        """Find the folder with the images of a test split without labels, if this form has one."""
        return None

    def verify(self, root: Path) -> Iterator[Finding]:
        """Read the whole data set and say of each part whether it is right: here, decode every patch of every split.

        A form whose files have known checksums or names compares these instead.

        Args:
            root: The folder.

        Yields:
            What was found of each part.
        """
        for split in self.splits(root):
            found = ""
            try:
                with TemporaryDirectory() as scratch, self.find(root, split).open(Path(scratch)) as patches:
                    found = balance(patches.labels)
                    faults = in_threads(_faults, patches.portions(1), len(patches.ids), f"Reading {split}")
                    fault = first_fault(faults)
            except UserError as error:
                fault = str(error)
            yield Finding(split, found, fault)


def _faults(portion: Portion) -> list[str | None]:
    """Decode a portion of one patch, and say what is wrong with it, if anything is."""
    try:
        portion.decode()
    except UserError as error:
        return [str(error)]
    return [None]


@dataclass(frozen=True)
class Layout:
    """What was found in a folder.

    Args:
        form: The form in which its patches lie.
        root: The folder.
        splits: The splits with labels that are there.
        unlabelled: A folder with the images of a test split without labels, if there is one.
    """

    form: Form
    root: Path
    splits: Sequence[SplitName]
    unlabelled: Path | None

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
            return self.form.find(self.root, name)
        if name == "test" and self.unlabelled is not None:
            raise UserError(
                f"Expected labels for the split 'test' of {self.root} ({self.form.name}), but {self.unlabelled} has "
                f"images without labels, which are for prediction only; choose another split."
            )
        raise UserError(
            f"Expected a split '{name}' in {self.root} ({self.form.name}), but found only {', '.join(self.splits)}; "
            f"add it, or set root to another folder (--data.root DIR)."
        )
