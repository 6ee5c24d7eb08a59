"""What verifying finds, part by part."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Finding:
    """What verifying found of one part of a data set.

    Args:
        subject: The part: a file, a split or a packed store.
        found: What is there, such as its size or its number of patches.
        fault: What is wrong with it and what to do, or None if it is right.
    """

    subject: str
    found: str
    fault: str | None = None


def balance(labels: NDArray[np.uint8]) -> str:
    """Say how many patches there are, and which share of them is tumour.

    Args:
        labels: Shape (patches,), 0 or 1.

    Returns:
        Such as "3,000 patches, 50.0% tumour".
    """
    return f"{len(labels):,} patches, {labels.mean():.1%} tumour"


def first_fault(faults: Iterable[Sequence[str | None]]) -> str | None:
    """Give the first fault, and how many others there are.

    Args:
        faults: For each patch, what is wrong with it, or None; in groups.

    Returns:
        A sentence, or None if nothing is wrong.
    """
    found = [fault for several in faults for fault in several if fault is not None]
    return None if not found else found[0] + (f" ({len(found) - 1:,} more)" if len(found) > 1 else "")
