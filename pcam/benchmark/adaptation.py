"""What adapting a network without labels brings, and what it can cost, measured where labels are known.

The same patches are scored after adapting to units of any size and any share of tumour, in the staining of each of the
made-up laboratories that a run was validated on (`data.stain_shifts`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from pcam.atomic import atomic_path
from pcam.data.packed import PackedSplit
from pcam.data.stain import StainShift, shift_stains
from pcam.errors import UserError
from pcam.evaluation.adaptation import adapt
from pcam.evaluation.metrics import Cuts, cross_entropy
from pcam.models.inference import InferenceNetwork
from pcam.options import Adaptation, AdaptationMethod, SplitName
from pcam.patches import Patches
from pcam.trained import TrainedRun

BATCH: Final = 64
"""Patches in a batch, of statistics and of scoring."""


@dataclass(frozen=True)
class Grid:
    """What is tried.

    Args:
        methods: How networks are adapted.
        layers: How many layers of batch norm are adapted, where the method adapts any.
        weights: The shares of the unit's own statistics of batch norm, above 0 to 1.
        shares: The shares of tumour in the unit, 0 to below 1.
        sizes: Numbers of patches in the unit, at least 2.
    """

    methods: Sequence[AdaptationMethod] = ("stains", "batch_norm", "both")
    layers: Sequence[int] = (1, 4, 8, 12, 16, 52)
    weights: Sequence[float] = (1.0,)
    shares: Sequence[float] = (0.5, 0.2, 0.1, 0.05, 0.01, 0.0)
    sizes: Sequence[int] = (16, 64, 256)

    def adaptations(self) -> list[Adaptation]:
        """List every way to adapt."""
        of_layers = list(product(self.layers, self.weights))
        return [
            Adaptation("all", method, *numbers)
            for method in self.methods
            for numbers in ([()] if method == "stains" else of_layers)
        ]


@dataclass(frozen=True)
class Reading:
    """How well patches are classified after one adaptation.

    Args:
        method: How the network was adapted; "none" is the network as it was trained.
        layers: The number of layers of batch norm adapted, 0 if none.
        weight: The share of the unit's own statistics of batch norm, 0 if none.
        size: The number of patches that were adapted to.
        share: The share of tumour among them, which is also what the numbers below are for.
        auroc: The AUROC within a staining, the mean over stainings; it does not depend on how many patches are tumour.
        auroc_pooled: The AUROC of the patches of all stainings together, which is lower if scores have other levels in
            other stainings.
        loss: The negative log-likelihood in nats, where `share` of the patches are tumour.
        accuracy: The accuracy at a score of 0.5, where `share` of the patches are tumour.
        loss_change: `loss` minus that without adaptation.
        loss_change_error: The standard error of `loss_change`, for other patches.
        accuracy_change: `accuracy` minus that without adaptation.
        accuracy_change_error: The standard error of `accuracy_change`, for other patches.
    """

    method: AdaptationMethod | Literal["none"]
    layers: int
    weight: float
    size: int
    share: float
    auroc: float
    auroc_pooled: float
    loss: float
    accuracy: float
    loss_change: float
    loss_change_error: float
    accuracy_change: float
    accuracy_change_error: float


def measure_adaptation(run: TrainedRun, split: SplitName, grid: Grid, scored: int, seed: int) -> list[Reading]:
    """Score the same patches with and without adaptation.

    The patches that are adapted to are others than those that are scored, of the same staining.

    Args:
        run: The trained network, and the data with the stain shifts; without any, patches keep their staining.
        split: What patches are drawn from.
        grid: What is tried. Units that the split has too few patches for are left out.
        scored: The number of patches of each class that are scored in each staining.
        seed: The seed of the draws.

    Returns:
        The readings, those without adaptation first.

    Raises:
        UserError: If the split has too few patches, or the network cannot be adapted so.
    """
    network = run.settings.network(run.network)
    store, shifts = run.data.packed(split), run.data.stain_shifts or [StainShift()]
    stainings = [_Staining.draw(store, shift, scored, (seed, number)) for number, shift in enumerate(shifts)]
    trained_on = run.training_staining() if set(grid.methods) - {"batch_norm"} else None
    source = np.stack([staining.logits(network) for staining in stainings])
    readings = [_reading(None, 0, share, source, source) for share in grid.shares]
    units = [unit for unit in product(grid.sizes, grid.shares) if stainings[0].has(*unit)]
    for (size, share), adaptation in track(list(product(units, grid.adaptations())), f"Adapting {run.folder.path}"):
        found = np.stack(
            [
                staining.logits(adapt(network, staining.unit(size, share), adaptation, trained_on))
                for staining in stainings
            ]
        )
        readings.append(_reading(adaptation, size, share, found, source))
    return readings


@dataclass(frozen=True)
class _Staining:
    """Patches in the staining of one laboratory: those that are scored, and those that units are made of."""

    store: PackedSplit
    shift: StainShift
    scored: NDArray[np.int64]
    others: tuple[NDArray[np.int64], NDArray[np.int64]]
    seed: tuple[int, int]

    @classmethod
    def draw(cls, store: PackedSplit, shift: StainShift, scored: int, seed: tuple[int, int]) -> "_Staining":
        rng = np.random.default_rng(seed)
        of_class = [rng.permutation(np.flatnonzero(store.labels == label)) for label in (0, 1)]
        if min(map(len, of_class)) <= scored:
            raise UserError(
                f"Expected more than {scored:,} patches of each class in {store.path}, but found "
                f"{min(map(len, of_class)):,}; lower --scored."
            )
        chosen = np.concatenate([rows[:scored] for rows in of_class])
        return cls(store, shift, chosen, (of_class[0][scored:], of_class[1][scored:]), seed)

    def has(self, size: int, share: float) -> bool:
        """Whether there are enough patches for a unit."""
        tumour = round(size * share)
        return size - tumour <= len(self.others[0]) and tumour <= len(self.others[1])

    def unit(self, size: int, share: float) -> Iterator[Patches]:
        """Give the patches of a unit, mixed at random."""
        tumour = round(size * share)
        rows = np.concatenate([self.others[0][: size - tumour], self.others[1][:tumour]])
        yield from self._patches(np.random.default_rng(self.seed).permutation(rows))

    def logits(self, network: nn.Module) -> NDArray[np.float64]:
        """Classify the patches that are scored."""
        classify = InferenceNetwork(network)
        return np.concatenate([classify(patches).numpy() for patches in self._patches(self.scored)]).astype(np.float64)

    def _patches(self, rows: NDArray[np.int64]) -> Iterator[Patches]:
        for batch in np.array_split(rows, -(-len(rows) // BATCH)):
            yield shift_stains(self.store[batch], [self.shift]).patches


def _reading(
    adaptation: Adaptation | None,
    size: int,
    share: float,
    logits: NDArray[np.float64],
    source: NDArray[np.float64],
) -> Reading:
    """Compute the numbers of one adaptation, each class counting as its share.

    Logits have a row for each staining, whose first half is of normal patches.
    """
    stainings, patches = logits.shape
    labels = np.tile(np.repeat([0.0, 1.0], patches // 2), stainings)
    weights = np.where(labels == 1, share, 1 - share) / (len(labels) / 2)  # as many patches of each class are scored

    def change(values: NDArray[np.float64]) -> tuple[float, float]:
        spread = sum(
            float((weights[of_class] ** 2).sum() * values[of_class].var()) for of_class in (labels == 0, labels == 1)
        )
        return float(weights @ values), spread**0.5

    def losses_and_hits(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return cross_entropy(labels, found), ((found > 0) == (labels == 1)).astype(np.float64)

    losses, hits = losses_and_hits(logits.ravel())
    source_losses, source_hits = losses_and_hits(source.ravel())
    return Reading(
        "none" if adaptation is None else adaptation.method,
        0 if adaptation is None or adaptation.method == "stains" else adaptation.layers,
        0.0 if adaptation is None or adaptation.method == "stains" else adaptation.weight,
        size,
        share,
        float(np.mean([_auroc(labels[:patches], of_staining) for of_staining in logits])),
        _auroc(labels, logits.ravel()),
        float(weights @ losses),
        float(weights @ hits),
        *change(losses - source_losses),
        *change(hits - source_hits),
    )


def _auroc(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    return float(Cuts.count(labels, logits, np.ones((1, len(labels)))).auroc()[0])


def report_adaptation(title: str, readings: Sequence[Reading], output: Path) -> None:
    """Print a table, and write all numbers to a JSON file.

    Args:
        title: What was measured.
        readings: The readings.
        output: The JSON file; replaced only when the new one is whole.
    """
    shares = list(dict.fromkeys(reading.share for reading in readings))
    rows: dict[tuple[int, str, float, int], dict[float, Reading]] = {}
    for reading in readings:
        rows.setdefault((reading.size, reading.method, reading.weight, reading.layers), {})[reading.share] = reading
    table = Table(
        "patches", "adapted", "layers", "weight", title=f"{title}: AUROC, NLL, accuracy at 0.5, by share of tumour"
    )
    for share in shares:
        table.add_column(f"{share:.0%}", justify="right", no_wrap=True)
    for (size, method, weight, layers), found in rows.items():
        cells = [
            f"{found[share].auroc:.4f} {found[share].loss:.3f} {found[share].accuracy:.4f}" if share in found else ""
            for share in shares
        ]
        table.add_row(f"{size:,}", method, str(layers), f"{weight:g}", *cells)
    Console(width=55 + 22 * len(shares)).print(table)
    with atomic_path(output) as temporary:
        temporary.write_text(
            json.dumps({"title": title, "readings": [asdict(one) for one in readings]}, indent=1), encoding="utf-8"
        )
