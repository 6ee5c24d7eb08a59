"""Slides with a known truth: mosaics of patches, written as scanners write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

APERIO = "Aperio Image Library v12\r\n{width}x{height} (256x256) JPEG/RGB Q=90|AppMag = 40{mpp}"


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Squares of random pixels, 32 pixels a side."""
    return np.random.default_rng(seed).integers(0, 256, (32 * rows, 32 * columns, 3), dtype=np.uint8)


def mosaic(
    normal: NDArray[np.uint8], tumour: NDArray[np.uint8], has_tumour: NDArray[np.bool_], is_tissue: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Lay patches side by side, each as often as needed, on white.

    Returns:
        The pixels, and the number of the patch in each place: of the normal ones, or of the tumour ones after them; -1
        for white.
    """
    rows, columns = is_tissue.shape
    patches = np.concatenate([normal, tumour, np.full((1, 96, 96, 3), 245, np.uint8)])
    numbers = np.full((rows, columns), -1)
    for chosen, first, count in ((is_tissue & ~has_tumour, 0, len(normal)), (has_tumour, len(normal), len(tumour))):
        numbers[chosen] = first + np.arange(np.count_nonzero(chosen)) % count
    pixels = patches[numbers].swapaxes(1, 2).reshape(96 * rows, 96 * columns, 3)
    return pixels, numbers


def write_slide(
    pixels: NDArray[np.uint8],
    path: Path,
    *,
    zoom: int = 4,
    mpp: float | None = 0.243,
    aperio: bool = False,
    **options: Any,
) -> Path:
    """Write pixels of 0.972 um, enlarged, as a tiled, pyramidal TIFF.

    Args:
        aperio: Whether it is to look like a file of Aperio's, for OpenSlide.
    """
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb").zoom(zoom, zoom)
    if aperio:
        text = APERIO.format(width=image.width, height=image.height, mpp="" if mpp is None else f"|MPP = {mpp}")
        image = image.copy()
        image.set_type(pyvips.GValue.gstr_type, "image-description", text)
    elif mpp is not None:
        image = image.copy(xres=1000 / mpp, yres=1000 / mpp)
    saved = {"compression": "deflate", "tile_width": 256, "tile_height": 256, "resunit": "cm"}
    image.tiffsave(str(path), **(saved | {"tile": True, "pyramid": True} | options))
    return path
