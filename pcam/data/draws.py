"""Random numbers for each patch that are a function of the seed, the epoch and the patch, and of nothing else.

So they are the same in a resumed run, with any batch size, on any device and with any number of processes; PyTorch's
global generator is neither used nor changed.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pcam.patches import Indices

Codes = Integer[Tensor, " batch"]
"""64 random bits for each patch, as int64."""

_FRACTION_BITS = 24
"""Random bits of a number between 0 and 1: as many as a float32 can hold."""


def draw_bits(indices: Indices, *, seed: int, epoch: int) -> Codes:
    """Draw 64 bits for each patch.

    Args:
        indices: The row of each patch in its packed split.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Shape (batch,), int64.
    """
    return _hash(indices ^ _hash(torch.tensor(epoch) ^ _hash(torch.tensor(seed))).item())


def draw_uniform(indices: Indices, count: int, *, seed: int, epoch: int) -> Float[Tensor, "batch count"]:
    """Draw numbers for each patch, uniformly distributed from -1 to below 1.

    Args:
        indices: The row of each patch in its packed split.
        count: How many numbers for each patch.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Shape (batch, count), float32.
    """
    codes = draw_bits(indices, seed=seed, epoch=epoch)
    numbers = torch.arange(1, count + 1, device=indices.device)
    fractions = _shift_right(_hash(codes[:, None] ^ _hash(numbers)), 64 - _FRACTION_BITS)
    return fractions * 2.0 ** (1 - _FRACTION_BITS) - 1


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
