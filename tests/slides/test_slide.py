"""A slide at 0.972 um per pixel: which version of its file is taken, how it is resampled, and what is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

from pcam.errors import UserError
from pcam.slides.openslide_reader import OpenSlideReader
from pcam.slides.resolution import Resolution
from pcam.slides.slide import Slide, open_slide
from tests.slides.mosaics import noise, write_slide


@dataclass
class ArrayReader:
    """Versions of a slide in memory."""

    images: Sequence[NDArray[np.uint8]]
    bounds: tuple[int, int, int, int] = (0, 0, 0, 0)
    objective_power: str | None = None
    read_from: list[int] = field(default_factory=list)

    @property
    def levels(self) -> list[tuple[int, int]]:
        return [(image.shape[1], image.shape[0]) for image in self.images]

    def stated_resolutions(self) -> list[Resolution]:
        return []

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        self.read_from.append(level)
        part = self.images[level][top : top + height, left : left + width]
        assert part.shape == (height, width, 3), "what lies outside was asked for"
        return part


def slide_of(reader: ArrayReader, across: float, down: float | None = None) -> Slide:
    down = across if down is None else down
    height, width, _ = reader.images[0].shape
    if not reader.bounds[2]:
        reader.bounds = (0, 0, width, height)
    scale = (0.972 / across, 0.972 / down)
    width, height = int(reader.bounds[2] / scale[0]), int(reader.bounds[3] / scale[1])
    return Slide(Path("slide"), reader, Resolution(across, down, "test"), scale, width, height)


def waves(width: int, height: int, period: float, axis: int) -> NDArray[np.uint8]:
    """A sine of a known period in pixels."""
    places = np.arange(width if axis == 1 else height) + 0.5
    wave = np.rint(128 + 100 * np.sin(2 * np.pi * places / period)).astype(np.uint8)
    line = wave[None, :, None] if axis == 1 else wave[:, None, None]
    return np.broadcast_to(line, (height, width, 3)).copy()


def period_of(pixels: NDArray[np.uint8], axis: int) -> float:
    """The period that a least-squares fit finds, among many."""
    values = pixels[..., 0].mean(axis=1 - axis) - 128
    places = np.arange(len(values)) + 0.5
    periods = np.linspace(5, 40, 7001)
    angles = 2 * np.pi * places / periods[:, None]
    power = (np.sin(angles) @ values) ** 2 + (np.cos(angles) @ values) ** 2
    return float(periods[np.argmax(power)])


@pytest.mark.parametrize(("across", "down"), [(0.499, 0.499), (0.2527, 0.2527), (1.01, 1.01), (0.5, 0.25)])
def test_a_pattern_keeps_its_period_in_micrometres(across: float, down: float) -> None:
    for axis, mpp in ((1, across), (0, down)):
        slide = slide_of(ArrayReader([waves(1200, 1300, 14.58 / mpp, axis)]), across, down)
        pixels = slide.read(0, 0, slide.width, slide.height)
        assert period_of(pixels, axis) == pytest.approx(14.58 / 0.972, rel=2e-3)
        assert np.ptp(pixels[20:-20, 20:-20, 0].astype(int)) == pytest.approx(200, abs=12)  # nor is it blurred away


def test_details_that_are_too_fine_do_not_become_coarse_ones() -> None:
    slide = slide_of(ArrayReader([waves(1200, 200, 2.1, 1)]), 0.25)  # a period of half a pixel that comes out
    assert slide.read(5, 5, 250, 30).std() < 3


@pytest.mark.parametrize("mpp", [0.499, 0.31, 0.972])
def test_parts_fit_together_without_seams(mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(20, 17)
    slide = slide_of(ArrayReader([pixels]), mpp)
    whole = slide.read(0, 0, slide.width, slide.height)
    half = slide.width // 2, slide.height // 2
    rows = [
        np.hstack([slide.read(x, y, width, height) for x, width in ((0, half[0]), (half[0], slide.width - half[0]))])
        for y, height in ((0, half[1]), (half[1], slide.height - half[1]))
    ]
    assert np.abs(np.vstack(rows).astype(int) - whole).max() <= 1
    monkeypatch.setattr("pcam.slides.slide.MOST_READ", 5000)
    assert np.abs(slide.read(0, 0, slide.width, slide.height).astype(int) - whole).max() <= 1


def test_the_version_next_above_is_taken_whatever_its_file_says() -> None:
    full = noise(32, 32)
    honest, other_shape = noise(8, 8, 1), noise(8, 12, 2)
    reader = ArrayReader([full, noise(16, 16, 3), honest, other_shape, np.zeros((0, 0, 3), np.uint8), noise(2, 2)])
    slide = slide_of(reader, 0.243)
    assert np.array_equal(slide.read(7, 11, 100, 90), honest[11:101, 7:107])
    assert slide.level(3) == (2, (4.0, 4.0))
    assert slide.level(4) == (5, (16.0, 16.0))
    assert slide_of(reader, 0.3).level() == (1, (2.0, 2.0))  # 4 x 0.3 um would be too coarse


def test_what_was_scanned_begins_where_the_file_says() -> None:
    full = noise(32, 32)
    slide = slide_of(ArrayReader([full, full[::4, ::4].copy()], bounds=(400, 200, 600, 500)), 0.243)
    assert (slide.width, slide.height, slide.offset) == (150, 125, (400, 200))
    assert np.array_equal(slide.read(3, 5, 100, 90), full[::4, ::4][55:145, 103:203])


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        ({"aperio": True}, "OpenSlideReader"),
        ({}, "OpenSlideReader"),
        ({"zoom": 1, "mpp": 0.972, "tile": False, "pyramid": False}, "ImageReader"),
    ],
)
def test_what_reads_a_file_is_chosen_by_looking(options: dict[str, object], reader: str, tmp_path: Path) -> None:
    pixels = noise(5, 7)
    slide = open_slide(write_slide(pixels, tmp_path / "slide.svs", **options))
    assert type(slide.reader).__name__ == reader
    assert (slide.rows, slide.columns) == (5, 7)
    assert np.array_equal(slide.read(0, 0, 224, 160), pixels)
    assert slide.resolution.across == pytest.approx(options.get("mpp", 0.243), rel=1e-6)


def test_a_slide_without_resolution_is_said_with_its_objective(tmp_path: Path) -> None:
    path = write_slide(noise(5, 5), tmp_path / "slide.svs", mpp=None, aperio=True, xres=1e-3, yres=1e-3)
    with pytest.raises(UserError, match=r"found no resolution.* \(only its objective, 40x\); give it with --mpp"):
        open_slide(path)
    assert open_slide(path, 0.243).width == 160


@pytest.mark.parametrize(("mpp", "expected"), [(5.0, "at most 1.21 um .*has 5 by"), (0.01, "at least 96x96 .*6x6")])
def test_a_resolution_that_leaves_nothing_to_see_is_refused(mpp: float, expected: str, tmp_path: Path) -> None:
    path = write_slide(noise(5, 5), tmp_path / "slide.tif")
    with pytest.raises(UserError, match=expected):
        open_slide(path, mpp)


def test_a_file_of_no_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(noise(5, 5), tmp_path / "slide.svs", aperio=True)
    monkeypatch.setattr(openslide.OpenSlide, "level_dimensions", ((0, 0),))
    with pytest.raises(UserError, match=r"Expected a slide in .*slide.svs, but it has no pixels; copy it again"):
        open_slide(path)


def damaged(path: Path, share: float) -> Path:
    """Overwrite some bytes of a file."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * share)
    content[start : start + 3000] = bytes(3000)
    path.write_bytes(content)
    return path


def read_all(path: Path) -> None:
    slide = open_slide(path)
    slide.read(0, 0, slide.width, slide.height)


@pytest.mark.parametrize("aperio", [True, False])
def test_what_is_truncated_or_damaged_is_refused(aperio: bool, tmp_path: Path) -> None:
    options = {"aperio": aperio, "compression": "deflate"}
    with pytest.raises(UserError, match="cannot be read"):
        read_all(damaged(write_slide(noise(8, 8), tmp_path / "damaged.svs", zoom=1, mpp=0.972, **options), 0.5))
    path = write_slide(noise(8, 8), tmp_path / "cut.svs", zoom=1, mpp=0.972, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        read_all(path)


def test_a_text_by_the_name_of_a_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_text("no slide")
    with pytest.raises(UserError, match=r"slide.svs, but it cannot be read \(it is no image of a known format\)"):
        open_slide(tmp_path / "slide.svs")


def test_what_was_not_scanned_is_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(noise(5, 5), tmp_path / "slide.svs", aperio=True)
    region = np.full((2, 2, 4), 100, np.uint8)
    region[..., 3] = [[255, 0], [51, 255]]
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *_: region)
    assert OpenSlideReader(path).read(0, 0, 0, 2, 2)[..., 0].tolist() == [[100, 255], [224, 100]]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("8", "16", "90", "80"), (8, 16, 90, 80)),
        (("600", "0", "90", "80"), (600, 0, 40, 80)),
        (("-1", "0", "9", "9"), None),
    ],
)
def test_bounds_are_kept_within_the_slide(
    stated: tuple[str, ...], expected: tuple[int, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(noise(5, 5), tmp_path / "slide.svs", aperio=True)
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    monkeypatch.setattr(openslide.OpenSlide, "properties", dict(zip(names, stated, strict=True)))
    assert OpenSlideReader(path).bounds == (expected or (0, 0, 640, 640))


@pytest.mark.real_data
def test_real_slides_are_read(real_data: Path) -> None:
    slide = open_slide(real_data / "slides" / "cmu_small_region.svs")
    assert slide.resolution == Resolution(0.499, 0.499, "openslide.mpp")
    assert (slide.width, slide.height) == (1139, 1523)
    assert slide.read(0, 0, 1139, 1523).mean() == pytest.approx(205.54, abs=0.1)
    with pytest.raises(UserError, match=r"tcga_no_resolution.svs to say how many micrometres"):
        open_slide(real_data / "slides" / "tcga_no_resolution.svs")
    assert open_slide(real_data / "slides" / "tcga_no_resolution.svs", 0.5).read(500, 500, 96, 96).mean() < 240
