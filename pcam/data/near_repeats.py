"""Near-repeats: patches that are copies of each other, but for what storing them as JPEG has changed.

They are found in two steps. A perceptual hash of 256 bits names the pairs that may be copies (18 thousand million
pairs of the official splits in about a minute and a half on one core); the correlation of their pixels decides.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.fft import dct

from pcam.data.packed import CHUNK, PackedSplit
from pcam.patches import PATCH_SIZE

LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Brightness from R, G and B. Source: ITU-R BT.601."""

FREQUENCIES: Final = dct(np.eye(PATCH_SIZE), axis=0)[:16].astype(np.float32)
"""The 16 lowest frequencies along a side; their 16 x 16 products make the 256 bits."""

MIN_CONTRAST: Final = 8.0
"""Standard deviation of brightness, in grey levels, below which a patch is almost empty.

What such patches show is mostly noise, so their copies cannot be told from their like: they are counted, and left out
of the search for near-repeats.
"""

MAX_DISTANCE: Final = 32
"""Bits in which the hashes of two candidates may differ, of 256.

Source: measured on 24,000 patches. Of 4,358 and their copies as JPEG of quality 75, all but one pair are as close; the
closest of 280 million pairs of different patches, almost empty ones aside, are 48 bits apart.
"""

MIN_CORRELATION: Final = 0.8
"""Correlation of the pixels of two candidates from which they count as near-repeats.

Source: measured on the same. These copies reach 0.855 or more; different patches within 72 bits reach 0.69.
"""

PAIRS_AT_ONCE: Final = 1 << 17
"""So that what is worked on, 1 MB, stays in a core's cache."""


class Look(NamedTuple):
    """What is compared of each patch of a split, instead of its pixels.

    Attributes:
        hashes: Shape (patches, 4), 256 bits.
        contrast: Shape (patches,), the standard deviation of brightness in grey levels.
    """

    hashes: NDArray[np.uint64]
    contrast: NDArray[np.float32]


def look_at(store: PackedSplit, progress: Progress, description: str) -> Look:
    """Reduce each patch to a perceptual hash, the signs of its low frequencies, and to its contrast.

    Args:
        store: The split.
        progress: The progress bars that one is added to.
        description: What the bar says.

    Returns:
        Hash and contrast of each patch.

    Source: the perceptual hash of ImageHash's `phash` (a bit is whether a coefficient of the discrete cosine transform
    is above the patch's median), with 256 bits and without shrinking the patch first.
    """
    hashes = np.empty((len(store), 4), dtype=np.uint64)
    contrast = np.empty(len(store), dtype=np.float32)
    task = progress.add_task(description, total=len(store))
    for start in range(0, len(store), CHUNK):
        rows = slice(start, start + CHUNK)
        brightness = store.patches[rows].astype(np.float32) @ LUMA
        contrast[rows] = brightness.std(axis=(1, 2))
        waves = (FREQUENCIES @ brightness @ FREQUENCIES.T).reshape(len(brightness), -1)
        hashes[rows] = np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1).view(np.uint64)
        progress.advance(task, len(brightness))
    return Look(hashes, contrast)


def close_pairs(one: Look, other: Look, progress: Progress, description: str) -> NDArray[np.int64]:
    """Find all pairs whose hashes differ in at most `MAX_DISTANCE` bits; almost empty patches are left out.

    Args:
        one: Hashes and contrasts of a split.
        other: Those of another split.
        progress: The progress bars that one is added to.
        description: What the bar says.

    Returns:
        Shape (pairs, 3): row in `one`, row in `other`, bits that differ.
    """
    rows, other_rows = (np.flatnonzero(look.contrast >= MIN_CONTRAST) for look in (one, other))
    hashes, other_hashes = one.hashes[rows], other.hashes[other_rows]
    words = np.ascontiguousarray(other_hashes.T)
    step = max(1, PAIRS_AT_ONCE // max(1, len(other_rows)))
    task = progress.add_task(description, total=len(rows))
    found = [np.empty((0, 3), dtype=np.int64)]
    for start in range(0, len(rows), step):
        block = hashes[start : start + step]
        # Half of the bits rule out nearly every pair; the other half is only looked at for the rest.
        half = np.bitwise_count(block[:, 0, None] ^ words[0]) + np.bitwise_count(block[:, 1, None] ^ words[1])
        first, second = np.nonzero(half <= MAX_DISTANCE)
        distance = np.bitwise_count(block[first] ^ other_hashes[second]).sum(axis=1, dtype=np.int64)
        close = distance <= MAX_DISTANCE
        found.append(np.column_stack([rows[start + first[close]], other_rows[second[close]], distance[close]]))
        progress.advance(task, len(block))
    return np.concatenate(found)


def correlate(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Correlate two patches over all pixels and channels, after the mean of each channel is subtracted.

    Args:
        one: Shape (96, 96, 3).
        other: Shape (96, 96, 3).

    Returns:
        The correlation, -1 to 1.
    """
    first, second = (patch - patch.mean(axis=(0, 1), dtype=np.float64) for patch in (one, other))
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
