"""Scores of a network that is adapted, without labels, to the patches that it scores."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcam.data.packed import PackedSplit
from pcam.data.stain import Staining, stain_matrix
from pcam.errors import UserError
from pcam.models.batch_norm import adapt_batch_norm
from pcam.models.normalization import NormalizingNetwork, StainNormalization
from pcam.options import Adaptation, AdaptationUnit
from pcam.patches import Logits, PatchBatch, Patches

MIN_PATCHES: Final = 256
"""Patches that are needed to adapt to a slide, a hospital or inputs; with fewer, their mean depends on what few of them
happen to show. docs/shift.md has what was measured."""

MAX_PATCHES: Final = 1024
"""Patches that statistics are estimated on, at most: chosen at random, and enough for the first layers."""

BATCH: Final = 64

SEED: Final = 0
"""The seed of what patches are chosen, and of their order."""


def adapt(
    network: nn.Module, batches: Iterable[Patches], adaptation: Adaptation, trained_on: Staining | None
) -> nn.Module:
    """Copy a network, and adapt the copy to patches, which need no labels.

    Args:
        network: Left as it is.
        batches: Patches that are from one hospital or slide, mixed at random and as many in each batch, on the
            network's device.
        adaptation: The method, and how many layers of batch norm.
        trained_on: The staining of the training patches, which the method "batch_norm" does not need.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UserError: If the network has no batch norm or does not say how it normalises, or there is no tissue.
    """
    kept = list(batches)
    adapted = network
    if adaptation.method != "batch_norm":
        assert trained_on is not None
        adapted = _stain_normalized(network, Staining.of(iter(kept)), trained_on)
    if adaptation.method != "stains":
        adapted = adapt_batch_norm(adapted, kept, adaptation)
    return adapted


def _stain_normalized(network: nn.Module, found: Staining, trained_on: Staining) -> nn.Module:
    """Copy a network, and let the copy bring what it sees to the staining that it was trained on."""
    copy = deepcopy(network).eval()
    if not isinstance(copy, NormalizingNetwork):
        raise UserError(
            f"Expected a network whose attribute normalization is its first layer, a pcam.models.Normalization, but "
            f"{type(network).__name__} has none; adapt batch norm instead (batch_norm), or leave the adaptation out."
        )
    copy.normalization = StainNormalization(copy.normalization, stain_matrix(found.shift_to(trained_on)))
    return copy


def units_of(store: PackedSplit, unit: AdaptationUnit) -> dict[str, NDArray[np.int64]]:
    """Find the rows of each unit that a network is adapted to.

    Args:
        store: The split.
        unit: "all" for all rows together, "slide" or "hospital".

    Returns:
        The rows of each unit by its name.

    Raises:
        UserError: If the data do not tell the slides or hospitals.
    """
    if unit == "all":
        return {"all": np.arange(len(store))}
    names = store.origins().get(unit)
    if names is None:
        raise UserError(
            f"Expected the {unit} of each patch, which the adaptation is for, but the data behind {store.path} do not "
            f"tell it; adapt to all patches together (--adapt all), or leave the adaptation out."
        )
    of_row = np.asarray(names)
    return {name: np.flatnonzero(of_row == name) for name in sorted(set(names))}


def sample_batches(count: int) -> Iterator[NDArray[np.int64]]:
    """Choose which of some patches statistics are estimated on.

    Args:
        count: The number of patches, at least 1.

    Yields:
        Batches of different numbers below `count`, mixed at random, `MAX_PATCHES` in all at most.
    """
    chosen = np.random.default_rng(SEED).permutation(count)[:MAX_PATCHES]
    yield from np.array_split(chosen, -(-len(chosen) // BATCH))


def adapted_logits(
    network: nn.Module,
    store: PackedSplit,
    adaptation: Adaptation,
    trained_on: Staining | None,
    classifier: Callable[[nn.Module], Callable[[Patches], Tensor]],
    *,
    change: Callable[[PatchBatch], PatchBatch] | None,
    device: torch.device,
    batch_size: int,
) -> tuple[Logits, list[str]]:
    """Classify every patch of a split, each unit by a network that is adapted to it.

    Args:
        network: The trained network; left as it is.
        store: The split.
        adaptation: The unit, and how the network is adapted.
        trained_on: The staining of the training patches; None if the method does not need it.
        classifier: Makes what computes logits from a network.
        change: Changes each batch before the network sees it; None changes nothing.
        device: Where the network computes.
        batch_size: Patches that are classified at once.

    Returns:
        The logit of each row, and the units that have fewer than `MIN_PATCHES` patches and were left unadapted.

    Raises:
        UserError: If the data do not tell the units, or the network has no batch norm.
    """

    def patches(rows: NDArray[np.int64]) -> Patches:
        batch = store[rows]
        return (batch if change is None else change(batch)).patches.to(device)

    logits, unadapted = torch.empty(len(store)), []
    as_trained: Callable[[Patches], Logits] | None = None
    for name, rows in units_of(store, adaptation.unit).items():
        if len(rows) < MIN_PATCHES or not name:
            unadapted.append(name)
            classify = as_trained = as_trained or classifier(network)
        else:
            some_patches = (patches(rows[few]) for few in sample_batches(len(rows)))
            classify = classifier(adapt(network, some_patches, adaptation, trained_on))
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            logits[some] = classify(patches(some)).float().cpu()
    return logits, unadapted
