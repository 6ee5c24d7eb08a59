"""Patches that are in several data sets at once, found by the hash of their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from pcam.data.datamodule import PCamDataModule
from pcam.data.layouts import find_layout
from pcam.data.packed import PackedSplit
from pcam.options import SplitName
from pcam.terminal import printable


@dataclass(frozen=True)
class SharedPixels:
    """Patches with identical pixels in a split of one data set and a split of another.

    Args:
        roots: The folders of the two data sets.
        splits: The split of each.
        pairs: The id of each such patch in the one and in the other; of repeats, the first.
        conflicts: How many of them have different labels in the two.
    """

    roots: tuple[Path, Path]
    splits: tuple[SplitName, SplitName]
    pairs: list[tuple[str, str]]
    conflicts: int

    def is_leak(self) -> bool:
        """Whether patches of the train split of one are in the valid or test split of the other."""
        return bool(self.pairs) and self.splits.count("train") == 1

    def as_dict(self) -> dict[str, Any]:
        """Give what `audit.json` says."""
        return {
            "roots": [str(root) for root in self.roots],
            "splits": self.splits,
            "identical": len(self.pairs),
            "conflicts": self.conflicts,
            "ids": self.pairs,
        }


def shared_pixels(data_sets: Sequence[PCamDataModule]) -> list[SharedPixels]:
    """Look for patches with identical pixels in each split of each pair of data sets.

    Copies that were cut elsewhere, scaled or compressed again have other pixels, and are not found.

    Args:
        data_sets: At least two; splits that are not packed yet are packed first.

    Returns:
        What each pair of splits shares, in the order of the data sets.
    """
    hashed = [{split: _by_hash(data.packed(split)) for split in find_layout(data.root).splits} for data in data_sets]
    found = []
    for (data, of_data), (other, of_other) in combinations(zip(data_sets, hashed, strict=True), 2):
        for split, patches in of_data.items():
            for other_split, others in of_other.items():
                both = sorted(patches.keys() & others.keys())
                found.append(
                    SharedPixels(
                        (data.root, other.root),
                        (split, other_split),
                        [(patches[pixels][0], others[pixels][0]) for pixels in both],
                        sum(patches[pixels][1] != others[pixels][1] for pixels in both),
                    )
                )
    return found


def shared_table(found: Sequence[SharedPixels]) -> Table:
    """Make a table to print of what data sets share."""
    table = Table(title="Identical patches in several folders")
    for heading in ("folder", "split", "other folder", "split"):
        table.add_column(heading, overflow="fold")
    table.add_column("patches", justify="right")
    table.add_column("with another label", justify="right")
    for shared in found:
        (root, other), (split, other_split) = shared.roots, shared.splits
        numbers = (f"{len(shared.pairs):,}", f"{shared.conflicts:,}")
        table.add_row(printable(str(root)), split, printable(str(other)), other_split, *numbers)
    return table


def leaks(found: Sequence[SharedPixels]) -> str | None:
    """Say which patches of a train split are in the valid or test split of another folder; None if none are."""
    said = [
        f"{len(shared.pairs):,} identical patches in {split} of {root} and {other_split} of {other}"
        for shared in found
        if shared.is_leak()
        for (root, other), (split, other_split) in [(shared.roots, shared.splits)]
    ]
    return " and ".join(said) or None


def _by_hash(store: PackedSplit) -> dict[str, tuple[str, int]]:
    """The id and label of the first patch with each SHA-1."""
    rows = zip(store.pixel_hashes(), store.ids(), store.labels.tolist(), strict=True)
    found: dict[str, tuple[str, int]] = {}
    for pixels, patch_id, label in rows:
        found.setdefault(pixels, (patch_id, label))
    return found
