"""Look for what can be wrong with patches before a network is trained on them.

That is repeated patches, patches of one split in another, conflicting labels, and patches that show almost nothing.
Exact repeats are found by the hash of their pixels; copies that went through JPEG as `pcam.data.near_repeats` says.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

from pcam.atomic import atomic_path
from pcam.data.datamodule import PCamDataModule
from pcam.data.layouts import find_layout
from pcam.data.near_repeats import MAX_DISTANCE, MIN_CONTRAST, MIN_CORRELATION, close_pairs, correlate, look_at
from pcam.data.packed import PackedSplit
from pcam.data.shared_pixels import SharedPixels
from pcam.options import SPLIT_NAMES, SplitName
from pcam.patches import CLASS_NAMES, PATCH_SIZE
from pcam.terminal import printable

PANELS: Final = 8
"""How many finds of each kind the contact sheet shows."""


class Patch(NamedTuple):
    """A patch: its split, its row in the packed store, its id and its label."""

    split: SplitName
    row: int
    id: str
    label: int

    def __str__(self) -> str:
        return f"{self.split}, {CLASS_NAMES[self.label]}: {self.id}"

    def as_dict(self) -> dict[str, str | int]:
        """Give what `audit.json` says about the patch."""
        return {"split": self.split, "id": self.id, "label": self.label}


class Likeness(NamedTuple):
    """Two patches of different splits whose perceptual hashes are close, but whose pixels are not identical."""

    first: Patch
    second: Patch
    distance: int
    correlation: float

    @property
    def splits(self) -> tuple[SplitName, SplitName]:
        """The splits of the two patches."""
        return self.first.split, self.second.split

    def __str__(self) -> str:
        return f"{self.distance} bits, correlation {self.correlation:.2f}"

    def as_dict(self) -> dict[str, object]:
        """Give what `audit.json` says about the pair."""
        return self._asdict() | {"first": self.first.as_dict(), "second": self.second.as_dict()}


@dataclass(frozen=True)
class SplitCounts:
    """How much was found in one split. The number of slides is None if the data do not tell them."""

    patches: int
    tumour: int
    groups_of_repeats: int
    extra_copies: int
    conflicting_groups: int
    almost_empty: int
    slides: int | None


@dataclass(frozen=True)
class SharedCounts:
    """How much two splits share. The number of slides is None if the data do not tell those of both splits."""

    identical: int
    near_repeats: int
    look_alikes: int
    slides: int | None


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        stores: The splits that were audited.
        skipped: For each split that was not audited, the reason.
        repeats: Groups of patches with identical pixels, within one split or in several.
        near_repeats: Pairs of patches in different splits that are one patch, stored in different ways.
        look_alikes: Pairs of patches in different splits whose hashes are as close, but whose pixels differ.
        almost_empty: Patches with hardly any contrast.
        slides: The names of the slides, for each split whose slides are known.
    """

    stores: dict[SplitName, PackedSplit]
    skipped: dict[SplitName, str]
    repeats: list[list[Patch]]
    near_repeats: list[Likeness]
    look_alikes: list[Likeness]
    almost_empty: list[Patch]
    slides: dict[SplitName, frozenset[str]]

    def conflicts(self) -> list[list[Patch]]:
        """Give the groups of identical patches that carry both labels."""
        return [group for group in self.repeats if len({patch.label for patch in group}) > 1]

    def counts(self) -> dict[SplitName, SplitCounts]:
        """Count what was found in each split."""
        copies = {split: [_copies(group, split) for group in self.repeats] for split in self.stores}
        return {
            split: SplitCounts(
                patches=len(store),
                tumour=int(store.labels.sum()),
                groups_of_repeats=sum(count > 1 for count in copies[split]),
                extra_copies=sum(count - 1 for count in copies[split] if count > 1),
                conflicting_groups=sum(_copies(group, split) > 0 for group in self.conflicts()),
                almost_empty=sum(patch.split == split for patch in self.almost_empty),
                slides=len(self.slides[split]) if split in self.slides else None,
            )
            for split, store in self.stores.items()
        }

    def shared(self) -> dict[tuple[SplitName, SplitName], SharedCounts]:
        """Count what each pair of splits shares."""
        return {
            (one, other): SharedCounts(
                identical=sum(_copies(group, one) > 0 and _copies(group, other) > 0 for group in self.repeats),
                near_repeats=sum(near.splits == (one, other) for near in self.near_repeats),
                look_alikes=sum(like.splits == (one, other) for like in self.look_alikes),
                slides=len(self.shared_slides(one, other)) if {one, other} <= set(self.slides) else None,
            )
            for one, other in combinations(self.stores, 2)
        }

    def shared_slides(self, one: SplitName, other: SplitName) -> list[str]:
        """Give the names of the slides that two splits share, as far as slides are known, in alphabetical order."""
        return sorted(self.slides.get(one, frozenset()) & self.slides.get(other, frozenset()))

    def leak(self) -> str | None:
        """Say in words which patches of train are in valid or test too; None if there are none."""
        leaks = [
            f"{shared.identical:,} identical and {shared.near_repeats:,} nearly identical patches shared by "
            f"{one} and {other}"
            for (one, other), shared in self.shared().items()
            if one == "train" and (shared.identical or shared.near_repeats)
        ]
        return " and ".join(leaks) or None

    def tables(self) -> list[Table]:
        """Make two tables to print: what was found in each split, and what each pair of splits shares."""
        of_splits = Table("split", "patches", "tumour", "groups of\nrepeats", "extra\ncopies")
        of_splits.add_column("with both\nlabels")
        of_splits.add_column("almost\nempty")
        of_splits.add_column("slides")
        for split, counts in self.counts().items():
            share = counts.tumour / counts.patches
            values = [counts.groups_of_repeats, counts.extra_copies, counts.conflicting_groups, counts.almost_empty]
            words = [*(f"{value:,}" for value in values), _count_words(counts.slides)]
            of_splits.add_row(split, f"{counts.patches:,}", f"{share:.1%}", *words)
        for split, reason in self.skipped.items():
            of_splits.add_row(split, reason)
        of_pairs = Table("splits", "identical\npatches", "near-\nrepeats", "look-\nalikes", "slides")
        for (one, other), shared in self.shared().items():
            values = [shared.identical, shared.near_repeats, shared.look_alikes]
            of_pairs.add_row(f"{one}, {other}", *(f"{value:,}" for value in values), _count_words(shared.slides))
        return [of_splits, of_pairs]

    def write(self, folder: Path, elsewhere: Sequence[SharedPixels] = ()) -> None:
        """Write `audit.json`, with every find, and `contact_sheet.png`, with the first few of each kind.

        Args:
            folder: Where to; made if it does not exist.
            elsewhere: What the data set shares with others.
        """
        contents = {
            "thresholds": {
                "min_contrast": MIN_CONTRAST,
                "max_distance": MAX_DISTANCE,
                "min_correlation": MIN_CORRELATION,
            },
            "splits": {split: asdict(counts) for split, counts in self.counts().items()},
            "skipped": self.skipped,
            "shared": [
                {"splits": pair, **asdict(counts), "slide_names": self.shared_slides(*pair)}
                for pair, counts in self.shared().items()
            ],
            "near_repeats": [likeness.as_dict() for likeness in self.near_repeats],
            "look_alikes": [likeness.as_dict() for likeness in self.look_alikes],
            "conflicting_labels": [[patch.as_dict() for patch in group] for group in self.conflicts()],
            "repeats": [[patch.as_dict() for patch in group] for group in self.repeats],
            "almost_empty": [patch.as_dict() for patch in self.almost_empty],
            "shared_with_other_folders": [shared.as_dict() for shared in elsewhere],
        }
        with atomic_path(folder / "audit.json") as temporary:
            temporary.write_text(json.dumps(contents, indent=1), encoding="utf-8")
        with atomic_path(folder / "contact_sheet.png") as temporary:
            self.contact_sheet().savefig(temporary, format="png", dpi=160)

    def contact_sheet(self) -> Figure:
        """Draw the first few finds of each kind, the gravest first."""
        repeats: dict[tuple[bool, bool], list[list[Patch]]] = defaultdict(list)
        for group in self.repeats:
            repeats[len({patch.split for patch in group}) > 1, len({patch.label for patch in group}) > 1].append(group)
        finds: list[tuple[str, list[Patch]]] = []
        finds += [("identical, across splits, both labels", _ends(group)) for group in repeats[True, True][:PANELS]]
        finds += [("identical, across splits", _ends(group)) for group in repeats[True, False][:PANELS]]
        finds += [(f"near-repeat, {near}", [near.first, near.second]) for near in self.near_repeats[:PANELS]]
        finds += [("identical, both labels", _ends(group)) for group in repeats[False, True][:PANELS]]
        finds += [(f"look-alike, no repeat, {like}", [like.first, like.second]) for like in self.look_alikes[:PANELS]]
        finds += [("identical, within a split", _ends(group)) for group in repeats[False, False][:PANELS]]
        finds += [("almost empty", [patch]) for patch in self.almost_empty[:PANELS]]
        columns = 4
        rows = max(1, -(-len(finds) // columns))
        figure = Figure(figsize=(3 * columns, 2 * rows + 0.6), layout="constrained")
        total = len(self.repeats) + len(self.near_repeats) + len(self.look_alikes) + len(self.almost_empty)
        figure.suptitle(f"{len(finds):,} of {total:,} finds" if finds else "Nothing was found")
        grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, (kind, patches) in zip(grid, finds, strict=False):
            gap = np.full((PATCH_SIZE, 4, 3), 255, dtype=np.uint8)
            images = [part for patch in patches for part in (gap, self.stores[patch.split].patches[patch.row])]
            axes.imshow(np.concatenate(images[1:], axis=1))
            axes.set_title(
                "\n".join([kind, *(printable(str(patch)) for patch in patches)]), fontsize=6, parse_math=False
            )
        return figure


def audit(data: PCamDataModule) -> Audit:
    """Audit a data set: examine every patch, and compare every pair of patches of different splits.

    It reads the packed stores chunk by chunk: memory grows by a few hundred bytes a patch.

    Args:
        data: The data set; splits that are not packed yet are packed first.

    Returns:
        What was found.
    """
    there = find_layout(data.root).splits
    skipped: dict[SplitName, str] = {
        split: "not there, or without labels" for split in SPLIT_NAMES if split not in there
    }
    stores = {split: data.packed(split) for split in SPLIT_NAMES if split in there}
    patches = {split: _list(split, store) for split, store in stores.items()}
    with Progress() as progress:
        looks = {split: look_at(store, progress, f"Reading {split}") for split, store in stores.items()}
        likenesses: list[Likeness] = []
        for one, other in combinations(stores, 2):
            pairs = close_pairs(looks[one], looks[other], progress, f"Comparing {one} with {other}")
            likenesses += _compare(stores[one], stores[other], patches[one], patches[other], pairs)
    return Audit(
        stores,
        skipped,
        _groups(stores, patches),
        near_repeats=[likeness for likeness in likenesses if likeness.correlation >= MIN_CORRELATION],
        look_alikes=[likeness for likeness in likenesses if likeness.correlation < MIN_CORRELATION],
        almost_empty=[
            patches[split][row] for split, look in looks.items() for row in np.flatnonzero(look.contrast < MIN_CONTRAST)
        ],
        slides={split: frozenset(slides) for split, store in stores.items() if (slides := store.slides()) is not None},
    )


def _list(split: SplitName, store: PackedSplit) -> list[Patch]:
    return [
        Patch(split, row, patch_id, int(label))
        for row, (patch_id, label) in enumerate(zip(store.ids(), store.labels, strict=True))
    ]


def _groups(stores: Mapping[SplitName, PackedSplit], patches: Mapping[SplitName, list[Patch]]) -> list[list[Patch]]:
    """Gather the patches whose pixels are identical to another's."""
    groups = defaultdict(list)
    for split, store in stores.items():
        for patch, pixels in zip(patches[split], store.pixel_hashes(), strict=True):
            groups[pixels].append(patch)
    return [group for group in groups.values() if len(group) > 1]


def _compare(
    store: PackedSplit,
    other_store: PackedSplit,
    patches: list[Patch],
    other_patches: list[Patch],
    pairs: NDArray[np.int64],
) -> list[Likeness]:
    """Correlate the pixels of pairs, closest first; identical ones are left out."""
    likenesses = []
    for row, other_row, distance in pairs.tolist():
        one, other = store.patches[row], other_store.patches[other_row]
        if not np.array_equal(one, other):
            correlation = correlate(one, other)
            likenesses.append(Likeness(patches[row], other_patches[other_row], distance, correlation))
    return sorted(likenesses, key=lambda likeness: -likeness.correlation)


def _count_words(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def _copies(group: list[Patch], split: SplitName) -> int:
    return sum(patch.split == split for patch in group)


def _ends(group: list[Patch]) -> list[Patch]:
    """Two of a group: of different splits if it has such, else of different labels if it has such."""
    first = group[0]
    return [first, max(group[1:], key=lambda patch: (patch.split != first.split, patch.label != first.label))]
