"""Optical density: how much light each pixel absorbs, in which stains add up."""

import torch
from jaxtyping import Float
from torch import Tensor

from pcam.patches import Patches

Densities = Float[Tensor, "batch 3 pixels"]
"""Optical density of each pixel in red, green and blue: the negative natural logarithm of the share of light that
passes; 0 in white, 5.5 in black."""


def optical_densities(patches: Patches) -> Densities:
    """Compute the optical density of each pixel.

    Args:
        patches: Shape (batch, 3, height, width), values 0..255, any dtype.

    Returns:
        Shape (batch, 3, height times width), float32, row by row.
    """
    return torch.log((patches + 1.0) / 256).neg_().flatten(2)


def pixels_of(densities: Densities) -> Densities:
    """Compute pixel values from optical densities, in place.

    Args:
        densities: What `optical_densities` gives, changed or not; overwritten.

    Returns:
        The pixel values, 0..255, in the same shape; the same tensor.
    """
    return densities.neg_().exp_().mul_(256).sub_(1).clamp_(0, 255)
