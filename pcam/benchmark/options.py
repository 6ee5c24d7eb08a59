"""The options that the benchmarks share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class MeasuredPatches:
    """The patches that are measured on.

    Args:
        root: Folder with the data, in any form; null measures on synthetic patches, which are made first.
        cache_dir: Folder for the packed stores, 28 kB a patch; null is the user's cache folder, or a temporary one for
            synthetic patches.
    """

    root: Path | None = None
    cache_dir: Path | None = None


SYNTHETIC: Final = MeasuredPatches()
"""Synthetic patches."""
