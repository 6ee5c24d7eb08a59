"""Augmentation of whole batches, on the device that the batch is on.

There are only transforms that cannot change a label: it depends on the centre of a patch, and flips and quarter turns
leave the centre in place, which crops and shifts do not.
"""

from typing import Literal

import torch
from torch import Tensor

from pcam.data.draws import Codes, draw_bits
from pcam.patches import Indices, Patches

Augmentation = Literal["none", "d4"]


def augment(patches: Patches, indices: Indices, augmentation: Augmentation, *, seed: int, epoch: int) -> Patches:
    """Give each patch its own random symmetry of the square.

    Args:
        patches: Shape (batch, 3, size, size), any dtype.
        indices: Shape (batch,), the row of each patch in its packed split.
        augmentation: "none", or "d4", all eight symmetries of the square: flips and quarter turns.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Patches of the same shape and dtype; the input itself for "none".
    """
    if augmentation == "none":
        return patches
    codes = draw_bits(indices, seed=seed, epoch=epoch)
    patches = torch.where(_bit(codes, 0), patches.flip(3), patches)
    patches = torch.where(_bit(codes, 1), patches.flip(2), patches)
    return torch.where(_bit(codes, 2), patches.transpose(2, 3), patches)


def _bit(codes: Codes, position: int) -> Tensor:
    return ((codes >> position) & 1).bool().view(-1, 1, 1, 1)
