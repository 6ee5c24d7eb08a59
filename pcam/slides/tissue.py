"""What of a slide is tissue, by PatchCamelyon's own rule, so that what is scored looks like what was trained on."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32
from scipy.ndimage import maximum_filter, uniform_filter

from pcam.slides.image_reader import Pixels
from pcam.slides.slide import SQUARE

MINIMUM_SATURATION: Final = 0.07
"""A window is background if its largest saturation, 0..1, is below this.

Source: PatchCamelyon's README, "Patch selection": "slides are converted to HSV, blurred, and patches filtered out if
maximum pixel saturation lies below 0.07 (which was validated to not throw out tumor data in the training set)".
"""

BLUR_SIZE: Final = 5
"""The side in pixels of the mean filter that blurs the saturation; the source does not say how it blurred.

With it, 21 of 10,000 real patches are background, all of them normal; the palest patch with tumour has a saturation of
0.28.
"""

PALEST: Final = MINIMUM_SATURATION / 2
"""Where an overview, 8 times coarser, has no saturation of this size, no window is looked for: a pixel of it is a mean
of 64, and what is tissue in a window may be a few of these."""

DARKEST: Final = 40
"""A pixel is no tissue if its brightest channel, 0..255, is below this: tiles that were not scanned, or black ink."""

INK: Final = 0.85
"""A pixel is ink, blue or green, if its red is less than this part of its green: haematoxylin and eosin both let more
red through than green."""

RED_INK: Final = (0.5, 0.85)
"""A pixel is ink, red or orange, if its saturation is above the first and its blue less than the second part of its
green: eosin and blood let more blue through than green."""

Squares = Bool[np.ndarray, "rows columns"]


def saturation(pixels: Pixels) -> Float32[np.ndarray, "height width"]:
    """Compute the saturation of each pixel, 0..1, and blur it. That of ink and of black counts as 0.

    Args:
        pixels: A part of a slide, at any resolution.
    """
    red, green, blue = (pixels[..., channel] for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = (value - np.minimum(np.minimum(red, green), blue)).astype(np.float32)
    found = np.divide(chroma, value, out=np.zeros_like(chroma), where=value >= DARKEST)
    found[red < INK * green] = 0
    found[(found > RED_INK[0]) & (blue < RED_INK[1] * green)] = 0
    blurred: Float32[np.ndarray, "height width"] = uniform_filter(found, BLUR_SIZE, mode="nearest")
    return blurred


def largest_saturation(pixels: Pixels) -> Float32[np.ndarray, "rows columns"]:
    """Compute the largest blurred saturation in each square.

    Args:
        pixels: Whole squares of a slide, at 0.972 um per pixel.
    """
    height, width, _ = pixels.shape
    squares = saturation(pixels).reshape(height // SQUARE, SQUARE, width // SQUARE, SQUARE)
    largest: Float32[np.ndarray, "rows columns"] = squares.max(axis=(1, 3))
    return largest


def tissue_squares(pixels: Pixels) -> Squares:
    """Find the squares whose windows are not background.

    Args:
        pixels: Whole squares of a slide, with one more on each side.

    Returns:
        For each square, without those on the sides, whether the window around it is to be scored.
    """
    around = maximum_filter(largest_saturation(pixels), 3)[1:-1, 1:-1]
    found: Squares = around >= MINIMUM_SATURATION
    return found
