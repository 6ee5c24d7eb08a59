"""Resolutions that files say, and those that are none."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from pcam.errors import UserError
from pcam.slides.slide import open_slide

WIDTH, HEIGHT = 400, 300
X, Y, UNIT, TEXT = Base.XResolution, Base.YResolution, Base.ResolutionUnit, Base.ImageDescription


def write_tiff(tags: dict[int, Any], path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, tiffinfo=tags)
    return path


def ome(pixels: str, size: str = f'SizeX="{WIDTH}" SizeY="{HEIGHT}"') -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><!-- a comment --><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/'
        f'2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" {size} {pixels}/></Image></OME>'
    )


def scaled(path: Path) -> tuple[float, float]:
    """Open an image, and find the micrometres per pixel by which it is resampled, to half a percent."""
    slide = open_slide(path, None)
    across, down = slide.resolution[:2]
    assert slide.width == pytest.approx(WIDTH * across / 0.972, abs=1)
    assert slide.height == pytest.approx(HEIGHT * down / 0.972, abs=1)
    return across, down


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        pytest.param({X: 25400 / 0.5, Y: 25400 / 0.5, UNIT: 2}, (0.5, 0.5), id="inch"),
        pytest.param({X: 25400 / 0.5, Y: 25400 / 0.5}, (0.5, 0.5), id="no unit tag, which is the inch"),
        pytest.param({X: 20000.0, Y: 10000.0, UNIT: 3}, (0.5, 1.0), id="pixels that are not square, in cm"),
        pytest.param({TEXT: "Aperio Image Library|AppMag = 20|MPP = 0.4990|Left = 1"}, (0.499, 0.499), id="Aperio"),
        pytest.param({TEXT: "Aperio|MPP = 0.499", X: 72.0, Y: 72.0, UNIT: 2}, (0.499, 0.499), id="Aperio, screen"),
        pytest.param({TEXT: "Aperio|MPP = 0.5", X: 20010.0, Y: 20010.0, UNIT: 3}, (0.5, 0.5), id="two that agree"),
        pytest.param({TEXT: ome('PhysicalSizeX="0.5" PhysicalSizeY="0.7"')}, (0.5, 0.7), id="OME"),
        pytest.param(
            {
                TEXT: ome(
                    'PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.0007" PhysicalSizeYUnit="mm"'
                )
            },
            (0.5, 0.7),
            id="OME, nm and mm",
        ),
        pytest.param(
            {
                TEXT: ome(
                    'PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.7" PhysicalSizeYUnit="μm"'
                ).encode()
            },
            (0.5, 0.7),
            id="OME, micro sign and Greek letter",
        ),
        pytest.param({TEXT: "ImageJ=1.53t\nunit=micron\n", X: 2.0, Y: 1.0, UNIT: 1}, (0.5, 1.0), id="ImageJ"),
        pytest.param({TEXT: "ImageJ=1.53t\nunit=micron\n", X: 2.0, Y: 1.0}, (0.5, 1.0), id="ImageJ, no unit tag"),
        pytest.param({TEXT: "ImageJ=1.53t\nunit=\\u00B5m\n", X: 2.0, Y: 2.0, UNIT: 1}, (0.5, 0.5), id="ImageJ, u00B5"),
        pytest.param({TEXT: b"ImageJ=1.53t\nunit=\xb5m\n", X: 2.0, Y: 2.0, UNIT: 1}, (0.5, 0.5), id="ImageJ, Latin-1"),
        pytest.param({TEXT: "ImageJ=1.5\nunit=mm\nyunit=nm\n", X: 2e3, Y: 2e-3, UNIT: 1}, (0.5, 0.5), id="ImageJ mm"),
        pytest.param({TEXT: "ImageJ=1.53t\nimages=1\n", X: 2e4, Y: 2e4, UNIT: 3}, (0.5, 0.5), id="ImageJ without unit"),
    ],
)  # fmt: skip
def test_what_a_tiff_says_counts(tags: dict[int, Any], expected: tuple[float, float], tmp_path: Path) -> None:
    assert scaled(write_tiff(tags, tmp_path / "image.tif")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({}, id="nothing"),
        pytest.param({X: 300.0, Y: 300.0, UNIT: 1}, id="no unit"),
        pytest.param({X: 20000.0, Y: 20000.0, UNIT: 1}, id="no unit, but a number that would do"),
        pytest.param({X: 20000.0, Y: 20000.0, UNIT: 7}, id="an unknown unit"),
        pytest.param({X: 0.0, Y: 0.0, UNIT: 3}, id="zero"),
        pytest.param({X: 20000.0, Y: 0.0, UNIT: 3}, id="zero in height"),
        pytest.param({X: 20000.0, UNIT: 3}, id="no height"),
        pytest.param({TEXT: "Aperio Image Library|MPP = 0"}, id="Aperio, zero"),
        pytest.param({TEXT: "Aperio Image Library|MPP = unknown"}, id="Aperio, text"),
        pytest.param({TEXT: "Aperio Image Library|MPP = inf"}, id="Aperio, infinite"),
        pytest.param({TEXT: "Aperio Image Library|SMPP = 0.5"}, id="another field"),
        pytest.param({TEXT: ome("")}, id="OME, no size"),
        pytest.param({TEXT: ome('PhysicalSizeX="0.5"')}, id="OME, no height"),
        pytest.param(
            {TEXT: ome('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"')},
            id="OME, a unit that is no length",
        ),
        pytest.param(
            {TEXT: ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 'SizeX="80" SizeY="60"')}, id="OME, another image"
        ),
        pytest.param({TEXT: "<OME><Image><Pixels "}, id="OME, damaged"),
        pytest.param(
            {TEXT: '<!DOCTYPE a [<!ENTITY b "c">]>' + ome('PhysicalSizeX="1" PhysicalSizeY="1"').split("?>")[1]},
            id="OME, entities",
        ),
        pytest.param({TEXT: "ImageJ=1.53t\nunit=pixel\n", X: 2.0, Y: 2.0, UNIT: 1}, id="ImageJ, pixel"),
    ],
)
def test_what_a_tiff_does_not_say_is_asked_for(tags: dict[int, Any], tmp_path: Path) -> None:
    path = write_tiff(tags, tmp_path / "image.tif")
    with pytest.raises(UserError, match="how many micrometres a pixel is, but found no resolution; give it with --mpp"):
        open_slide(path, None)


def test_two_resolutions_that_differ_are_asked_about(tmp_path: Path) -> None:
    path = write_tiff({TEXT: "Aperio|MPP = 0.25", X: 20000.0, Y: 20000.0, UNIT: 3}, tmp_path / "image.tif")
    expected = (
        "one resolution, but found 0.25 um per pixel by its MPP of Aperio and 0.5 by its tag XResolution; "
        "give the right one with --mpp"
    )
    with pytest.raises(UserError, match=expected):
        open_slide(path, None)
    assert open_slide(path, 0.972).width == WIDTH


def write_png(across: int, down: int, unit: int, path: Path) -> Path:
    """Write a PNG with a chunk pHYs, which has the pixels per unit."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, dpi=(72, 72))
    content = path.read_bytes()
    start = content.index(b"pHYs")
    chunk = b"pHYs" + struct.pack(">IIB", across, down, unit)
    path.write_bytes(content[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[start + len(chunk) + 4 :])
    return path


def write_jpeg(unit: int, across: int, down: int, exif: dict[int, Any], path: Path) -> Path:
    tags = Image.Exif()
    for tag, value in exif.items():
        tags[tag] = value
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=tags)
    content = path.read_bytes()
    assert content[6:11] == b"JFIF\0"
    path.write_bytes(content[:13] + struct.pack(">BHH", unit, across, down) + content[18:])
    return path


def test_what_a_png_says_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(2_000_000, 1_000_000, 1, tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Image.open would refuse it
    assert scaled(path) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
    ("across", "down", "unit"), [(1, 1, 0), (2_000_000, 2_000_000, 0), (0, 0, 1), (2_000_000, 0, 1)]
)
def test_what_a_png_does_not_say_is_asked_for(across: int, down: int, unit: int, tmp_path: Path) -> None:
    path = write_png(across, down, unit, tmp_path / "image.png")
    with pytest.raises(UserError, match="found no resolution; give it with --mpp"):
        open_slide(path, None)


@pytest.mark.parametrize(
    ("unit", "across", "down", "exif", "expected"),
    [
        pytest.param(1, 50800, 25400, {}, (0.5, 1.0), id="inch"),
        pytest.param(2, 20000, 10000, {}, (0.5, 1.0), id="cm"),
        pytest.param(0, 1, 1, {X: 20000.0, Y: 10000.0, UNIT: 3}, (0.5, 1.0), id="Exif"),
    ],
)
def test_what_a_jpeg_says_counts(
    unit: int, across: int, down: int, exif: dict[int, Any], expected: tuple[float, float], tmp_path: Path
) -> None:
    assert scaled(write_jpeg(unit, across, down, exif, tmp_path / "image.jpg")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("unit", "across", "down", "exif"),
    [
        pytest.param(0, 1, 1, {}, id="aspect"),
        pytest.param(0, 50800, 50800, {}, id="aspect with numbers that would do"),
        pytest.param(1, 0, 0, {}, id="zero"),
        pytest.param(0, 1, 1, {X: 20000.0, Y: 20000.0, UNIT: 1}, id="Exif, no unit"),
    ],
)
def test_what_a_jpeg_does_not_say_is_asked_for(
    unit: int, across: int, down: int, exif: dict[int, Any], tmp_path: Path
) -> None:
    path = write_jpeg(unit, across, down, exif, tmp_path / "image.jpg")
    with pytest.raises(UserError, match="found no resolution; give it with --mpp"):
        open_slide(path, None)


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_what_only_pyvips_reads_says_no_resolution(name: str, tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("comment", "a" * 2_000_000, zip=True)  # more than Pillow takes
    options = {"pnginfo": text} if name.endswith("png") else {"exif": b"Exif\0\0no tags at all"}
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name, **options)
    with pytest.raises(UserError, match="found no resolution; give it with --mpp"):
        open_slide(tmp_path / name, None)
    assert open_slide(tmp_path / name, 0.972).width == WIDTH


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.tif"])
def test_the_resolution_of_a_screen_is_none(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name, dpi=(72, 72))
    expected = (
        r"no resolution of a scan \(352.[78] um per pixel by its (chunk pHYs|JFIF header|tag XResolution)\); give"
    )
    with pytest.raises(UserError, match=expected):
        open_slide(tmp_path / name, None)


@pytest.mark.parametrize("mpp", [1e9, math.inf, math.nan, 1000.0, 0.001, 0.0, -1.0])
def test_a_resolution_that_no_scan_has_is_refused(mpp: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mpp from 0.01 to 10 um per pixel, because .*, but found .*; correct it"):
        open_slide(write_tiff({}, tmp_path / "image.tif"), mpp)
