"""Patches as other laboratories would have stained them, computed on the device that the patches are on.

Light that passes a section is absorbed by each stain in proportion to its amount, so in optical density, the negative
logarithm of the transmitted share, the stains add up. Other amounts of haematoxylin and eosin are then a linear map of
each pixel's three optical densities.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from math import inf
from typing import Final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pcam.data.draws import draw_uniform
from pcam.errors import UserError
from pcam.optical_density import optical_densities, pixels_of
from pcam.patches import Indices, PatchBatch, Patches

STAINS: Final = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical density in red, green and blue of haematoxylin, eosin and DAB, each of length 1. Sections with H&E hold no
DAB: the third takes what the first two do not explain.

Source: Ruifrok and Johnston 2001, "Quantification of histochemical staining by color deconvolution", table 1.
"""

TISSUE_DENSITY: Final = 0.15
"""Pixels are tissue if their optical density is above this in red, green and blue.

Source: Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", section 2.
"""

FAINTEST: Final = 0.01
"""The least mean amount of a stain with which patches can be adapted to. Tissue has about .7 and .4."""

Amounts = Float[Tensor, "batch 3"]
"""A number for each stain of each patch, in the order of `STAINS`."""


@dataclass(frozen=True)
class StainShift:
    """The staining of another laboratory, as factors of the amounts of stain in the patches.

    Args:
        haematoxylin: What the amount of haematoxylin is multiplied by, above 0; 1 leaves it as it is.
        eosin: What the amount of eosin is multiplied by, above 0.
        residual: What the amount that neither stain explains is multiplied by, above 0.
    """

    haematoxylin: float = 1.0
    eosin: float = 1.0
    residual: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 < factor < inf for factor in astuple(self)):
            raise UserError(f"Expected the factors of a stain shift to be finite and above 0, but found {self}.")


@dataclass(frozen=True)
class Staining:
    """How strongly patches are stained: the mean amounts of stain over pixels of tissue.

    Args:
        haematoxylin: The mean amount of haematoxylin, in optical density (natural logarithm), above 0.
        eosin: The mean amount of eosin, above 0.
    """

    haematoxylin: float
    eosin: float

    @classmethod
    def of(cls, batches: Iterable[Patches]) -> "Staining":
        """Measure patches.

        Args:
            batches: Each of shape (batch, 3, height, width), values 0..255, any dtype.

        Returns:
            The means over all pixels of tissue in all batches.

        Raises:
            UserError: If there is no tissue, or it lacks one of the stains.
        """
        count, total = 0, torch.zeros(3, dtype=torch.float64)
        for patches in batches:
            densities = optical_densities(patches)
            tissue = densities.transpose(1, 2)[(densities > TISSUE_DENSITY).all(dim=1)].cpu()
            count, total = count + len(tissue), total + tissue.sum(dim=0, dtype=torch.float64)
        haematoxylin, eosin, _ = torch.linalg.solve(torch.tensor(STAINS).double().T, total / max(count, 1)).tolist()
        if min(haematoxylin, eosin) < FAINTEST:
            raise UserError(
                f"Expected patches of tissue with haematoxylin and eosin to adapt to, but found {count:,} pixels of "
                f"tissue with mean amounts of {haematoxylin:.3f} and {eosin:.3f}; score them without adaptation."
            )
        return cls(haematoxylin, eosin)

    def shift_to(self, other: "Staining") -> StainShift:
        """Find the shift that gives patches of this staining the mean amounts of the other."""
        return StainShift(other.haematoxylin / self.haematoxylin, other.eosin / self.eosin)


def stain_matrix(shift: StainShift) -> Float32[Tensor, "3 3"]:
    """Compute what the optical densities of each pixel are multiplied by in a shift of the stains."""
    to_densities = torch.tensor(STAINS).T
    scaled: Tensor = to_densities @ torch.diag(torch.tensor(astuple(shift))) @ torch.linalg.inv(to_densities)
    return scaled


def scale_stains(patches: Patches, factors: Amounts, offsets: Amounts | None = None) -> Patches:
    """Change the amounts of stain in patches.

    Args:
        patches: Shape (batch, 3, height, width), values 0..255, any dtype.
        factors: What each stain's amount is multiplied by.
        offsets: What is added to it everywhere, in optical density (natural logarithm); None adds nothing.

    Returns:
        Patches of the same shape, float32, values 0..255.
    """
    stains = torch.tensor(STAINS, device=patches.device)
    # Pixels are columns here: amounts = inverse(stains)^T densities, densities = stains^T amounts.
    maps = stains.T @ (factors.unsqueeze(2) * torch.linalg.inv(stains).T)
    added = torch.zeros_like(factors) if offsets is None else offsets @ stains
    scaled = torch.baddbmm(added.unsqueeze(2), maps, optical_densities(patches))
    return pixels_of(scaled).view(patches.shape)


def jitter_stains(patches: Patches, indices: Indices, strength: float, *, seed: int, epoch: int) -> Patches:
    """Give each patch its own random amounts of stain.

    Args:
        patches: Shape (batch, 3, height, width), values 0..255, any dtype.
        indices: Shape (batch,), the row of each patch in its packed split.
        strength: 0 to below 1. Each amount is multiplied by a random number between 1 - strength and 1 + strength;
            then a random number between -strength / 2 and strength / 2 is added to it, in optical density.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        Patches of the same shape, float32; the input itself for strength 0.

    Source: Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference", who
    call it HED jitter.
    """
    if strength == 0:
        return patches
    draws = strength * draw_uniform(indices, 6, seed=seed, epoch=epoch)
    return scale_stains(patches, 1 + draws[:, :3], draws[:, 3:] / 2)


def shift_stains(batch: PatchBatch, shifts: Sequence[StainShift]) -> PatchBatch:
    """Give each patch of a batch the staining of another laboratory; the laboratories take turns, row by row.

    Args:
        batch: Patches with values 0..255.
        shifts: The laboratories, at least one. Row i of the split gets number i modulo how many there are.

    Returns:
        The batch, with patches rounded to uint8, as they would be in an image file.
    """
    factors = torch.tensor([astuple(shift) for shift in shifts], device=batch.patches.device)
    shifted = scale_stains(batch.patches, factors[batch.indices % len(shifts)])
    return batch._replace(patches=shifted.round_().to(torch.uint8))
