"""Augmentation of whole batches, on whichever device they are.

Only transforms that cannot change a label: the label lives in the centre, which flips and quarter turns leave in
place and crops and shifts do not.
"""

from typing import Literal

import torch
from torch import Tensor

from pcam.patches import Indices, Patches

Augmentation = Literal["none", "flips", "d4"]


def augment(patches: Patches, indices: Indices, augmentation: Augmentation, *, seed: int, epoch: int) -> Patches:
    """Give each patch its own random symmetry of the square.

    The symmetry is a function of (seed, epoch, index), so a resumed run, any batch size, any device and any number of
    processes see the same.

    Args:
        patches: Shape (batch, 3, size, size), any dtype.
        indices: Shape (batch,), the row of each patch in its packed split.
        augmentation: "none"; "flips", left-right and up-down, four outcomes; or "d4", all eight symmetries of the
            square, that is flips and quarter turns.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Patches of the same shape and dtype; the input itself for "none".
    """
    if augmentation == "none":
        return patches
    codes = _hash(indices ^ _hash(torch.tensor(epoch) ^ _hash(torch.tensor(seed))).item())
    patches = torch.where(_bit(codes, 0), patches.flip(3), patches)
    patches = torch.where(_bit(codes, 1), patches.flip(2), patches)
    if augmentation == "d4":
        patches = torch.where(_bit(codes, 2), patches.transpose(2, 3), patches)
    return patches


def _bit(codes: Tensor, position: int) -> Tensor:
    return ((codes >> position) & 1).bool().view(-1, 1, 1, 1)


def _hash(keys: Tensor) -> Tensor:
    """Scramble int64 keys so that neighbouring keys give unrelated bits.

    Source: the finalizer of splitmix64, Steele et al. 2014, "Fast splittable pseudorandom number generators",
    figure 16. Its constants are written as signed integers; products wrap round.
    """
    keys = keys + -7046029254386353131  # 0x9e3779b97f4a7c15
    keys = (keys ^ _shift_right(keys, 30)) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    keys = (keys ^ _shift_right(keys, 27)) * -7723592293110705685  # 0x94d049bb133111eb
    return keys ^ _shift_right(keys, 31)


def _shift_right(keys: Tensor, bits: int) -> Tensor:
    """Shift without the sign, which `>>` on int64 would copy in from the left."""
    return (keys >> bits) & ((1 << (64 - bits)) - 1)
