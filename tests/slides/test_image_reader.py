"""Larger images: which page of which file is read, its pixels as they are stored, and what is refused."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import AppendingTiffWriter

from pcam.data.layouts.tiff import read_pages
from pcam.errors import UserError
from pcam.slides.slide import open_slide

NATIVE_DPI = 25400 / 0.972


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_pages(path: Path, *pages: tuple[NDArray[np.uint8], Mapping[int, Any]]) -> Path:
    """Write a TIFF of several pages, each with its own tags."""
    with AppendingTiffWriter(str(path), new=True) as writer:
        for pixels, tags in pages:
            Image.fromarray(pixels).save(writer, format="TIFF", tiffinfo=dict(tags))
            writer.newFrame()
    return path


def read(path: Path, mpp: float | None = 0.972) -> NDArray[np.uint8]:
    """Decode an image."""
    slide = open_slide(path, mpp)
    return slide.read(0, 0, slide.width, slide.height)


@pytest.mark.parametrize(
    ("name", "size", "mode", "dpi", "expected"),
    [
        ("image.png", (95, 300), "RGB", NATIVE_DPI, "at least 96x96 pixels at 0.972 um .* has 95x300"),
        ("image.tif", (96, 96), "I;16", NATIVE_DPI, r"8-bit RGB, but .* 1 channels of type ushort \(grey16\); convert"),
        ("image.png", (96, 96), "L", NATIVE_DPI, r"8-bit RGB, but .* 1 channels of type uchar \(b-w\); convert"),
        ("image.jpg", (96, 96), "CMYK", NATIVE_DPI, r"8-bit RGB, but .* 4 channels of type uchar \(cmyk\); convert"),
        ("image.png", (96, 96), "RGBA", NATIVE_DPI, "8-bit RGB, but .* has pixels that are transparent; convert it"),
        ("image.tif", (96, 96), "RGBA", NATIVE_DPI, "8-bit RGB, but .* has pixels that are transparent; convert it"),
    ],
)
def test_what_is_no_rgb_or_too_small_is_refused(
    name: str, size: tuple[int, int], mode: str, dpi: float, expected: str, tmp_path: Path
) -> None:
    Image.new(mode, size).save(tmp_path / name, dpi=(dpi, dpi))
    with pytest.raises(UserError, match=expected):
        open_slide(tmp_path / name, None)


@pytest.mark.parametrize(
    ("bands", "kind", "ending"), [(3, "ushort", "png"), (3, "ushort", "tif"), (5, "uchar", "tif"), (3, "float", "tif")]
)
def test_other_types_and_five_channels_are_refused(bands: int, kind: str, ending: str, tmp_path: Path) -> None:
    pixels = pyvips.Image.black(96, 96, bands=bands).cast(kind)
    path = tmp_path / f"image.{ending}"
    pixels.copy(interpretation="rgb16" if kind == "ushort" else "srgb").write_to_file(str(path))
    with pytest.raises(UserError, match=f"8-bit RGB, but .* has {bands} channels of type {kind} "):
        open_slide(path, 0.972)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_opaque_alpha_channel_is_dropped(ending: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / f"image.{ending}", noise(96, 96, channels=4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(path)
    assert np.array_equal(read(path), pixels[..., :3])
    pixels[95, 95, 3] = 254
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match="has pixels that are transparent"):
        open_slide(path, 0.972)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected a slide or an image at .*nothing.png, but there is no such file"):
        open_slide(tmp_path / "nothing.png", None)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text.png, but it cannot be read \(it is no image of a known format\); repl"):
        open_slide(tmp_path / "text.png", None)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_damaged_image_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    Image.fromarray(noise(640, 640)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot be read \(.{1,200}\); replace it"):
        read(path)


def test_damaged_pixels_of_jpeg_within_a_tiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(noise(640, 640)).save(path, compression="jpeg")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_odd_tags_do_no_harm(tmp_path: Path) -> None:
    path, pixels = tmp_path / "image.tif", noise(96, 96)
    Image.fromarray(pixels).save(path, tiffinfo={Base.Software: "scanQner"})
    path.write_bytes(path.read_bytes().replace(b"scanQner", b"scan\0ner"))
    assert np.array_equal(read(path), pixels)


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", (noise(96, 96, seed=1), {}))
    pixels = noise(128, 96, seed=2)
    path = write_pages(tmp_path / "a.tif[page=0]", (pixels, {}))
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("mark", [{Base.NewSubfileType: 1}, {Base.NewSubfileType: 4}, {}], ids=["reduced", "mask", "-"])
def test_the_page_in_full_resolution_is_read(mark: dict[int, int], tmp_path: Path) -> None:
    full = noise(128, 160)
    path = write_pages(tmp_path / "slide.tif", (noise(96, 96, 1), mark), (full, {}), (noise(96, 128, 2), mark))
    assert np.array_equal(read(path), full)


def test_a_larger_page_that_is_marked_as_reduced_is_not_read(tmp_path: Path) -> None:
    slide = noise(96, 96)
    overview = noise(256, 256, 1), {Base.NewSubfileType: 9}
    assert np.array_equal(read(write_pages(tmp_path / "slide.tif", overview, (slide, {}))), slide)


def test_pages_that_leave_a_choice_or_none_are_refused(tmp_path: Path) -> None:
    page, reduced = noise(96, 128), {Base.NewSubfileType: 1}
    path = write_pages(tmp_path / "stack.tif", (page, {}), (page, {}), (page, reduced))
    with pytest.raises(UserError, match=r"one image in .*stack.tif, but found 2 pages of 128x96 pixels; save the one"):
        open_slide(path, 0.972)
    path = write_pages(tmp_path / "reduced.tif", (page, reduced))
    with pytest.raises(UserError, match=r"full resolution in .*, but found only pages that are marked .* \(1\); take"):
        open_slide(path, 0.972)


def test_a_damaged_list_of_pages_is_refused(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "slide.tif", (noise(128, 128), {}), (noise(96, 96), {}))
    content = path.read_bytes()
    (first,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[first : first + 2])
    (second,) = struct.unpack("<I", content[first + 2 + 12 * count :][:4])
    path.write_bytes(content[: second + 2 + 12 * 4])
    with pytest.raises(UserError, match=r"cannot be read \(the tags of 2 of its 1 pages can be read\)"):
        open_slide(path, 0.972)
    path.write_bytes(content[: second + 2])
    with pytest.raises(UserError, match=r"cannot be read \(a page is missing, or does not say its size\)"):
        open_slide(path, 0.972)


def write_sparse(pixels: NDArray[np.uint8], path: Path, compression: str, **options: bool | int) -> Path:
    """Write a TIFF in parts of 64 pixels, and take the second from its lists."""
    image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
    image.tiffsave(str(path), compression=compression, tile_width=64, tile_height=64, **options)
    (tags,) = read_pages(path)
    content = path.read_bytes()
    for kind in ("Offsets", "ByteCounts"):
        values = next(tags[Base[part + kind]] for part in ("Tile", "Strip") if Base[part + kind] in tags)
        forms = [f"<{len(values)}{letter}" for letter in ("H", "I") if max(values) < 256 ** struct.calcsize(letter)]
        (form,) = (form for form in forms if content.count(struct.pack(form, *values)) == 1)
        content = content.replace(struct.pack(form, *values), struct.pack(form, values[0], 0, *values[2:]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_tiles_that_were_not_written_are_white(compression: str, tmp_path: Path) -> None:
    pixels = noise(160, 160)
    path = write_sparse(pixels, tmp_path / "sparse.tif", compression, tile=True)
    pixels[:64, 64:128] = 255
    assert np.array_equal(read(path), pixels)


def test_strips_that_were_not_written_are_refused(tmp_path: Path) -> None:
    path = write_sparse(noise(160, 160), tmp_path / "sparse.tif", "deflate")
    with pytest.raises(
        UserError, match=r"it is a sparse TIFF, some of whose strips or tiles are not stored, .*; write it again"
    ):
        open_slide(path, 0.972)


def test_a_missing_codec_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(noise(96, 96)).save(path)
    uncompressed, jpeg_xr = (struct.pack("<HHII", Base.Compression, 3, 1, code) for code in (1, 34934))
    content = path.read_bytes()
    assert content.count(uncompressed) == 1
    path.write_bytes(content.replace(uncompressed, jpeg_xr))
    with pytest.raises(UserError, match=r"TIFF compressed with JPEG XR, which pyvips does not decode here; save it as"):
        open_slide(path, None)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cases/resunit_none_300.tif", "but found no resolution; give it with --mpp"),
        ("cases/xres_0.tif", "but found no resolution; give it with --mpp"),
        ("cases/rgb12in16.tif", "has 3 channels of type ushort"),
        ("cases/five.tif", "has 5 channels of type uchar"),
        ("slides/tcga_no_resolution.svs", "found no resolution; give it with --mpp"),
    ],
)
def test_cases_from_bug_reports_are_answered(name: str, expected: str, real_data: Path) -> None:
    with pytest.raises(UserError, match=expected):
        open_slide(real_data / name, None)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [
        ("cases/software_nul.tif", (256, 256), 167.47),
        ("cases/thumbnail_first_page.tif", (576, 576), 170.15),
        ("cases/sparse_deflate.tif", (256, 256), 189.35),
        ("slides/cmu_small_region.svs", (1523, 1139), 205.54),  # 2967 and 2220 times .499 / .972
    ],
)
def test_cases_from_bug_reports_are_read(name: str, shape: tuple[int, int], mean: float, real_data: Path) -> None:
    pixels = read(real_data / name, None)
    assert pixels.shape[:2] == shape
    assert pixels.mean() == pytest.approx(mean, abs=0.01)
    if "sparse" in name:
        assert pixels[:128, :128].min() == 255


@pytest.mark.real_data
def test_the_turned_tiff_of_a_bug_report_is_read_as_it_is_stored(real_data: Path) -> None:
    path = real_data / "cases" / "orient6.tif"
    stored = np.frombuffer(path.read_bytes(), np.uint8, count=96 * 96 * 3, offset=152).reshape(96, 96, 3)
    assert np.array_equal(read(path), stored)
