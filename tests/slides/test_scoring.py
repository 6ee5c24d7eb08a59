"""A grid of windows over a larger image: which are scored, where, at which resolution, in how much memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pcam.evaluation.large_image import open_image
from pcam.evaluation.tiles import MINIMUM_SATURATION, largest_saturation, overlay_figure, score_map
from pcam.models import MobileNetV2

NATIVE_DPI = 25400 / 0.972


def mean_red(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A classifier whose answer is easily known: the mean of red in the centre."""
    return patches[:, 32:64, 32:64, 0].mean(axis=(1, 2)).astype(np.float32) / 255


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (32 * rows, 32 * columns, 3), dtype=np.uint8)


def save(pixels: NDArray[np.uint8], path: Path, dpi: float | None = NATIVE_DPI) -> Path:
    Image.fromarray(pixels).save(path, **({} if dpi is None else {"dpi": (dpi, dpi)}))
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_square_has_the_score_of_the_window_round_it(ending: str, tmp_path: Path) -> None:
    pixels = noise(5, 7)
    padded = np.pad(pixels, ((0, 20), (0, 11), (0, 0)))  # what is no whole square belongs to none
    image = open_image(save(padded, tmp_path / f"image.{ending}"), None)
    scores = score_map(image.strips(), mean_red, batch_size=4)
    assert scores.shape == (image.rows, image.columns) == (5, 7)
    expected = expit(pixels[..., 0].reshape(5, 32, 7, 32).mean(axis=(1, 3)) / 255)
    assert scores[1:-1, 1:-1] == pytest.approx(expected[1:-1, 1:-1], abs=1e-6)
    assert np.isnan(scores).sum() == 35 - 15


def test_saturation_is_that_of_hsv() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (6, 3), dtype=np.uint8)
    colors[0] = 0  # black has no hue; its saturation is 0
    strip = np.repeat(np.repeat(colors[None], 32, axis=1), 32, axis=0)
    flat = [largest_saturation(strip[:, 32 * column : 32 * (column + 1)])[0] for column in range(6)]
    assert flat == pytest.approx(rgb_to_hsv(colors / 255)[:, 1], abs=1e-6)


def test_background_is_not_scored(tmp_path: Path) -> None:
    pixels = np.full((32 * 8, 32 * 8, 3), 240, np.uint8)
    pixels[130:158, 130:158] = (200, 120, 180)  # the blur carries it no further than its square of 32x32
    scores = score_map(open_image(save(pixels, tmp_path / "image.png"), None).strips(), mean_red, 4)
    seen = np.zeros((8, 8), dtype=bool)
    seen[3:6, 3:6] = True  # the windows that have some of it
    assert np.array_equal(~np.isnan(scores), seen)


@pytest.mark.parametrize("row", [50, 63], ids=["within a row of squares", "at its edge"])
def test_a_speck_is_blurred_away(row: int, tmp_path: Path) -> None:
    pixels = np.full((96, 96, 3), 240, np.uint8)
    pixels[row, 50] = (255, 0, 0)
    assert largest_saturation(pixels).max() == pytest.approx(1 / 25)
    assert MINIMUM_SATURATION > 1 / 25
    assert np.isnan(score_map(open_image(save(pixels, tmp_path / "image.png"), None).strips(), mean_red, 4)).all()


@pytest.mark.parametrize("given", [True, False])
def test_a_finer_image_is_brought_to_the_size_of_patches(given: bool, tmp_path: Path) -> None:
    smooth = np.array(Image.fromarray(noise(1, 1)[:6, :7]).resize((224, 192), Image.Resampling.BICUBIC))
    fine = np.array(Image.fromarray(smooth).resize((448, 384), Image.Resampling.BICUBIC))
    path = save(fine, tmp_path / "fine.tif", None if given else 2 * NATIVE_DPI)
    scores = score_map(open_image(path, 0.486 if given else None).strips(), mean_red, 4)
    expected = score_map(open_image(save(smooth, tmp_path / "native.png"), None).strips(), mean_red, 4)
    assert scores == pytest.approx(expected, abs=0.01, nan_ok=True)


@pytest.mark.slow  # takes some seconds
def test_memory_does_not_grow_with_the_height() -> None:
    def strips() -> Iterator[NDArray[np.uint8]]:
        for row in range(300):
            yield noise(1, 20, seed=row)

    tracemalloc.start()
    try:
        scores = score_map(strips(), mean_red, batch_size=16)
        assert tracemalloc.get_traced_memory()[1] < 4e6  # of 18 MB
    finally:
        tracemalloc.stop()
    assert np.count_nonzero(~np.isnan(scores)) == 298 * 18


def test_the_picture_has_the_image_the_map_a_colour_bar_and_says_what_has_no_score(tmp_path: Path) -> None:
    image = open_image(save(noise(5, 6), tmp_path / "image.png"), None)
    scores = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)
    scores[0, 1] = np.nan
    figure = overlay_figure(image, scores)
    left, right, bar = figure.axes
    assert left.images[0].get_array().shape == (160, 192, 3)
    grey, scored, unscored = (shown.get_array() for shown in right.images)
    assert grey.shape == (160, 192)
    assert np.argwhere(~np.ma.getmaskarray(unscored)).tolist() == [[0, 1]]
    assert np.argwhere(np.ma.getmaskarray(scored) | np.isnan(np.ma.getdata(scored))).tolist() == [[0, 1]]
    (legend,) = figure.legends
    assert (
        legend.get_texts()[0].get_text().startswith("no score: background without tissue, or the border of one square")
    )
    assert (left.get_title(), right.get_title()) == ("image.png", "Score of tumour in each square of 31 um")
    assert right.get_xlim() == pytest.approx((0, 0.972 * 192 / 1000))
    assert bar.get_ylabel() == "score"


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_neither_map_nor_picture_is_turned_as_the_file_says(ending: str, tmp_path: Path) -> None:
    path, mark = tmp_path / f"image.{ending}", Image.Exif()
    mark[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(noise(3, 7)).save(path, exif=mark)
    image = open_image(path, 0.972)
    assert image.thumbnail(1000).shape == (96, 224, 3)
    assert score_map(image.strips(), mean_red, 4).shape == (3, 7)
    left, *_ = overlay_figure(image, np.zeros((3, 7), np.float32)).axes
    assert left.images[0].get_array().shape == (96, 224, 3)


@pytest.mark.real_data
def test_a_mosaic_of_real_patches_has_the_auroc_of_the_patches(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "pcam" / "valid"
    files = [(label, path) for label in (0, 1) for path in sorted((folder / str(label)).iterdir())]
    chosen = [files[index] for index in np.random.default_rng(0).permutation(len(files))[:120]]
    labels = np.array([label for label, _ in chosen])
    patches = np.stack([np.asarray(Image.open(path)) for _, path in chosen])
    mosaic = patches.reshape(10, 12, 96, 96, 3).swapaxes(1, 2).reshape(960, 1152, 3)
    torch.manual_seed(0)
    weights = real_data / "weights" / "mobilenet_v2_imagenet1k_v1_features.pth"
    network = MobileNetV2(weights=str(weights), dropout=0.0).eval()

    @torch.inference_mode()
    def classify(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        return network(torch.from_numpy(patches).permute(0, 3, 1, 2)).numpy()

    image = open_image(save(mosaic, tmp_path / "mosaic.png"), None)
    centres = score_map(image.strips(), classify, 64)[1::3, 1::3].ravel()
    scored = ~np.isnan(centres)
    assert scored[labels == 1].all()  # no tumour is taken for background
    assert scored.mean() > 0.9
    expected = expit(classify(patches))
    assert centres[scored] == pytest.approx(expected[scored], abs=1e-5)
    assert roc_auc_score(labels[scored], centres[scored]) == pytest.approx(
        roc_auc_score(labels[scored], expected[scored]), abs=1e-3
    )
