"""A slide is scored square by square: which are tissue, where each is, and how a stopped one is gone on with."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from pcam.errors import StoppedError, UserError
from pcam.slides import scoring
from pcam.slides.marked import MarkedPolygons, Polygon
from pcam.slides.scoring import State, has_overview, score
from pcam.slides.slide import open_slide
from pcam.slides.tissue import MINIMUM_SATURATION, largest_saturation, tissue_squares
from tests.slides.mosaics import noise, write_slide
from tests.slides.test_slide import ArrayReader, slide_of


def mean_red(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A classifier whose answer is easily known: the mean of red in the centre."""
    return patches[:, 32:64, 32:64, 0].mean(axis=(1, 2)).astype(np.float32) / 255


@pytest.fixture(params=["png", "tif", "svs"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A slide of noise; what is no whole square belongs to none."""
    pixels = np.pad(noise(70, 40), ((0, 20), (0, 11), (0, 0)))
    file = tmp_path / f"slide.{request.param}"
    if request.param == "png":
        Image.fromarray(pixels).save(file, dpi=(25400 / 0.972,) * 2)
        return file
    return write_slide(pixels, file, zoom=2, mpp=0.486, aperio=request.param == "svs")


def test_a_square_has_the_score_of_the_window_around_it(path: Path) -> None:
    slide = open_slide(path)
    found = score(slide, mean_red, 0.5, batch_size=100)
    assert found.map.shape == (slide.rows, slide.columns) == (70, 40)
    expected = expit(noise(70, 40)[..., 0].reshape(70, 32, 40, 32).mean(axis=(1, 3)) / 255)
    assert found.map[1:-1, 1:-1] == pytest.approx(expected[1:-1, 1:-1], abs=1e-6)
    assert found.windows == 68 * 38
    assert found.resolution == pytest.approx((31.104, 31.104), rel=1e-5)
    coarse = noise(70, 40).reshape(280, 8, 160, 8, 3).mean(axis=(1, 3))
    assert np.abs(found.overview - coarse).max() < 60  # noise, shrunk with another filter
    assert np.corrcoef(found.overview.ravel(), coarse.ravel())[0, 1] > 0.8


def test_saturation_is_that_of_hsv_but_for_ink_and_black() -> None:
    colors = np.array(
        [[200, 120, 180], [150, 140, 160], [90, 60, 130], [250, 235, 245], [20, 2, 9], [40, 60, 120], [30, 120, 60],
         [220, 40, 30]], np.uint8,
    )  # fmt: skip
    strip = np.repeat(np.repeat(colors[None], 32, axis=1), 32, axis=0)
    flat = [largest_saturation(strip[:, 32 * number : 32 * (number + 1)])[0, 0] for number in range(8)]
    assert flat[:4] == pytest.approx(rgb_to_hsv(colors[:4] / 255)[:, 1], abs=1e-6)  # the stain
    assert flat[4:] == [0, 0, 0, 0]  # not scanned, and a blue, a green and a red pen


def test_background_is_not_scored() -> None:
    pixels = np.full((32 * 80, 32 * 80, 3), 240, np.uint8)
    pixels[32 * 41 + 2 : 32 * 42 - 2, 130:158] = (200, 120, 180)  # the blur carries it no further than its square
    pixels[32 * 60 : 32 * 62, :] = (40, 60, 120)  # a pen
    slide = slide_of(ArrayReader([pixels, pixels[::4, ::4].copy(), pixels[::8, ::8].copy()]), 0.972)
    assert has_overview(slide)
    seen = np.zeros((80, 80), dtype=bool)
    seen[40:43, 3:6] = True  # the windows that have some of it
    assert np.array_equal(~np.isnan(score(slide, mean_red, 0.5).map), seen)
    read = slide.reader.read_from
    assert read.count(2) == 9  # each block is looked at
    assert 0 < read.count(0) < 9  # and decoded only where there may be tissue


def test_a_speck_is_blurred_away() -> None:
    for row in (50, 63):  # within a row of squares, and at its edge
        pixels = np.full((96, 96, 3), 240, np.uint8)
        pixels[row, 50] = (255, 0, 128)
        assert largest_saturation(pixels).max() == pytest.approx(1 / 25)
        assert not tissue_squares(pixels).any()
    assert MINIMUM_SATURATION > 1 / 25


@pytest.mark.real_data
def test_tissue_is_what_patches_are(real_data: Path) -> None:
    for label, most in ((0, 4), (1, 0)):
        files = sorted((real_data / "pcam" / "test" / str(label)).iterdir())[:150]
        found = [tissue_squares(np.asarray(Image.open(file))) for file in files]
        assert sum(not one.any() for one in found) <= most


def test_marked_tissue_is_scored_and_nothing_else() -> None:
    pixels = np.full((32 * 40, 32 * 40, 3), 240, np.uint8)
    slide = slide_of(ArrayReader([pixels]), 0.972)
    marked = MarkedPolygons([Polygon([(64.0, 96.0), (127.0, 96.0), (127.0, 120.0), (64.0, 120.0)])])
    found = ~np.isnan(score(slide, mean_red, 0.5, marked).map)
    assert np.argwhere(found).tolist() == [[3, 2], [3, 3]]


class Interrupted:
    """A classifier that is stopped after some batches."""

    def __init__(self, batches: int, error: BaseException) -> None:
        self.left, self.error, self.windows = batches, error, 0

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self.left:
            raise self.error
        self.left -= 1
        self.windows += len(patches)
        return mean_red(patches)


def test_a_slide_that_is_stopped_is_gone_on_with(tmp_path: Path) -> None:
    slide, unfinished, key = slide_of(ArrayReader([noise(70, 70)]), 0.972), tmp_path / "unfinished.npz", {"a": 1}
    whole = score(slide, mean_red, 0.5, batch_size=100)
    with pytest.raises(StoppedError):
        score(slide, Interrupted(25, StoppedError(15, "Stopped.")), 0.5, batch_size=100, unfinished=unfinished, key=key)
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.npz"]
    state = State.load(unfinished, key)
    assert state.blocks == 3  # of 9: of 32x32, 32x32 and 32x4 windows
    assert State.load(unfinished, {"a": 2}) is None
    rest = Interrupted(10**6, AssertionError())
    again = score(slide, rest, 0.5, batch_size=100, unfinished=unfinished, key=key)
    assert np.array_equal(again.map, whole.map, equal_nan=True)
    assert np.array_equal(again.overview, whole.overview)
    assert rest.windows == whole.windows - 32 * 68
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    assert State.load(unfinished, key) is None


def test_what_a_killed_process_loses_is_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SECONDS_BETWEEN_SAVES", 0)
    slide, unfinished = slide_of(ArrayReader([noise(70, 70)]), 0.972), tmp_path / "unfinished.npz"
    reports = []

    def report(done: int, blocks: int, windows: int) -> None:
        reports.append((done, blocks, windows))
        if done == 5:
            assert State.load(unfinished, {}).blocks >= 4

    score(slide, mean_red, 0.5, batch_size=100, unfinished=unfinished, report=report)
    assert reports[-1] == (9, 9, 68 * 68)


def test_a_slide_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    slide, unfinished = slide_of(ArrayReader([noise(70, 70)]), 0.972), tmp_path / "unfinished.npz"
    with pytest.raises(UserError, match="damaged"):
        score(slide, Interrupted(25, UserError("damaged")), 0.5, batch_size=100, unfinished=unfinished)
    assert not list(tmp_path.iterdir())


class Endless:
    """A slide of any size that takes no memory: noise, again and again."""

    objective_power = None

    def __init__(self, side: int) -> None:
        self.levels, self.bounds = [(side, side)], (0, 0, side, side)
        self._pixels = noise(40, 40)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        return self._pixels[:height, :width].copy()


@pytest.mark.slow  # takes some seconds
def test_memory_does_not_grow_with_the_slide() -> None:
    peaks = []
    for squares in (66, 194):
        slide = slide_of(ArrayReader([noise(1, 1)]), 0.972)
        slide = type(slide)(
            slide.path, Endless(32 * squares), slide.resolution, slide.scale, 32 * squares, 32 * squares
        )
        tracemalloc.start()
        try:
            assert score(slide, mean_red, 0.5).windows == (squares - 2) ** 2
            overview = 3 * (4 * squares) ** 2
            peaks.append(tracemalloc.get_traced_memory()[1] - 2 * overview)
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 40e6  # of 103 MB more of pixels; when threads decode varies
