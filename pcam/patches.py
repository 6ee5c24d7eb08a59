"""What a patch is: its size, its label rule, and the types under which patches travel through the code."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from torch import Tensor

PATCH_SIZE: Final = 96
"""Height and width of a patch in pixels."""

PATCH_SHAPE: Final = (PATCH_SIZE, PATCH_SIZE, 3)
"""The shape of a patch where its channels, red, green and blue, come last."""

CENTRE_START: Final = 32
CENTRE_STOP: Final = 64
"""Rows and columns 32..63 decide the label: 1 if at least one of their pixels is tumour, whatever surrounds them.

Source: Veeling et al. 2018, "Rotation equivariant CNNs for digital pathology", section 3.
"""

MICROMETRES_PER_PIXEL: Final = 0.972
"""Slides scanned at 0.243 um per pixel, undersampled four times (the same source)."""

CLASS_NAMES: Final = ("normal", "tumour")
"""Name of each label: 0 is normal, 1 is tumour in the centre."""

Patches = Shaped[Tensor, "batch 3 height width"]
"""Patches as the networks take them: RGB, values 0..255, uint8 or float."""

Labels = Integer[Tensor, " batch"]
"""0 or 1 for each patch."""

Indices = Integer[Tensor, " batch"]
"""Row of each patch in its packed split."""

Logits = Float[Tensor, " batch"]
"""Log-odds of label 1; their sigmoid is the score."""

Embeddings = Float[Tensor, "batch features"]
"""What a network makes of each patch before its last, linear unit."""

PatchArray = UInt8[np.ndarray, "batch 96 96 3"]
"""Patches as they lie on disk: RGB, values 0..255, channels last."""


class PatchBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        patches: Shape (batch, 3, 96, 96), uint8, channels last in memory.
        labels: Shape (batch,), int64, 0 or 1.
        indices: Shape (batch,), int64, the row of each patch in its packed split.
    """

    patches: Patches
    labels: Labels
    indices: Indices
