"""Image files as they go wrong, each with the sentence that says so; and images that nobody has thought of."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base

from pcam.data import PCamDataModule
from pcam.data.inputs import read_inputs
from pcam.data.layouts import find_layout, read_image
from pcam.data.layouts.images import decode_image
from pcam.errors import UserError
from tests.conftest import write_patches

RGB = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (96, 96), image_format: str = "PNG") -> bytes:
    return encoded(Image.new(mode, size), image_format)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(side: int = 100_000) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def tiff(bits: int = 8, channels: int = 3, **tags: tuple[int, ...]) -> bytes:
    """A TIFF of 96x96 pixels in one strip, as a program other than Pillow may write it; its pixels are `RGB`.

    Args:
        bits: Bits a channel.
        channels: The first three are `RGB` in the lowest bits, the others 255.
        tags: Other tags, by their names, which replace those that follow from the pixels.
    """
    pixels = np.full((96, 96, channels), 255, dtype=f"<u{bits // 8}")
    pixels[..., :3] = RGB
    fields = {
        Base.ImageWidth: (96,), Base.ImageLength: (96,), Base.BitsPerSample: (bits,) * channels, Base.Compression: (1,),
        Base.PhotometricInterpretation: (2,), Base.StripOffsets: (8,), Base.SamplesPerPixel: (channels,),
        Base.RowsPerStrip: (96,), Base.StripByteCounts: (pixels.nbytes,),
    }  # fmt: skip
    if channels > 3:
        fields[Base.ExtraSamples] = (0,) * (channels - 3)
    fields |= {Base[name]: values for name, values in tags.items()}
    start = 8 + pixels.nbytes
    entries, beyond = b"", b""
    for tag, values in sorted(fields.items()):
        content = struct.pack(f"<{len(values)}I", *values)
        if len(content) > 4:
            beyond += content
            content = struct.pack("<I", start + 2 + 12 * len(fields) + 4 + len(beyond) - len(content))
        entries += struct.pack("<HHI", tag, 4, len(values)) + content
    return (
        struct.pack("<2sHI", b"II", 42, start) + pixels.tobytes() + struct.pack("<H", len(fields)) + entries
        + bytes(4) + beyond
    )  # fmt: skip


def png(depth: int, pixels: bytes, color_type: int = 2) -> bytes:
    """A PNG of 96x96 pixels, which Pillow writes in 8 bits only."""
    rows = len(pixels) // 96
    lines = b"".join(b"\0" + pixels[row * rows : (row + 1) * rows] for row in range(96))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 96, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def with_alpha(alpha: int) -> Image.Image:
    """`RGB` with an alpha channel that is opaque but for one pixel."""
    pixels = np.dstack([RGB, np.full((96, 96), 255, dtype=np.uint8)])
    pixels[50, 60, 3] = alpha
    return Image.fromarray(pixels)


WHOLE = {name: encoded(Image.fromarray(RGB), name) for name in ("PNG", "JPEG", "TIFF")}
PNG, JPEG, TIFF = (WHOLE[name] for name in ("PNG", "JPEG", "TIFF"))
FRAMES = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}

FAULTS: list[tuple[str, bytes, str]] = [
    ("zero bytes.png", b"", "it is no image of a known format"),
    ("truncated.png", PNG[: len(PNG) // 2], r"cannot be read \(.*truncated"),
    ("truncated.jpg", JPEG[: len(JPEG) // 2], r"cannot be read \(.*truncated"),
    ("truncated.tif", TIFF[: len(TIFF) // 2], "cannot be read"),
    ("page.jpg", b"<!DOCTYPE html><html>Quota exceeded</html>", "it is no image of a known format"),
    ("text.png", b"no image", "it is no image of a known format"),
    ("small.png", plain(size=(95, 96)), "96x96 pixels, but .* has 95x96; remove it or cut it to size"),
    ("large.png", plain(size=(97, 97)), "96x96 pixels, but .* has 97x97; remove it or cut it to size"),
    ("grey.png", plain("L"), "8-bit RGB, but .* has mode 'L'; convert it"),
    ("palette.png", plain("P"), "8-bit RGB, but .* has mode 'P'; convert it"),
    ("16bit.png", plain("I;16"), "8-bit RGB, but .* has mode 'I;16'; convert it"),
    ("inks.jpg", plain("CMYK", image_format="JPEG"), "8-bit RGB, but .* has mode 'CMYK'; convert it"),
    ("animated.png", encoded(Image.fromarray(RGB), "PNG", **FRAMES), r"one image in .*, but found 2 \(animation"),
    ("pages.tif", encoded(Image.fromarray(RGB), "TIFF", **FRAMES), r"one image in .*, but found 2 \(animation"),
    ("bomb.png", bomb(), r"cannot be read \(.*decompression bomb"),
    ("larger bomb.png", bomb(1_000_000), r"cannot be read \(.*decompression bomb"),
    ("alpha.png", encoded(with_alpha(254)), "8-bit RGB, but .* has pixels that are transparent; convert it"),
    ("alpha.tif", encoded(with_alpha(0), "TIFF"), "8-bit RGB, but .* has pixels that are transparent; convert it"),
    ("alpha.webp", encoded(with_alpha(0), "WEBP", lossless=True), "has pixels that are transparent; convert it"),
    ("colour.png", encoded(Image.fromarray(RGB), "PNG", transparency=tuple(RGB[3, 4].tolist())),
     "has pixels that are transparent; convert it"),
    ("16bit rgb.png", png(16, RGB.astype(">u2").tobytes()), "8-bit RGB, but .* has 16 bits for each channel; convert"),
    ("16bit rgba.png", png(16, bytes(96 * 96 * 8), 6), "8-bit RGB, but .* has 16 bits for each channel; convert"),
    ("12bit in 16.tif", tiff(16), "8-bit RGB, but .* has 16 bits for each channel; convert"),
    ("16bit alpha.tif", tiff(16, 4, ExtraSamples=(2,)), "8-bit RGB, but .* has 16 bits for each channel; convert"),
    ("four.tif", tiff(channels=4), "8-bit RGB, but .* has 4 channels; convert"),
    ("five.tif", tiff(channels=5), "8-bit RGB, but .* has 5 channels; convert"),
    ("signed.tif", tiff(SampleFormat=(2, 2, 2)), "cannot be read"),
    ("sparse.tif", tiff(StripOffsets=(0,), StripByteCounts=(0,)), "a sparse TIFF, some of whose tiles or strips are"),
    ("jpeg 2000.tif", tiff(Compression=(34712,)), "is a TIFF compressed with JPEG 2000, which Pillow does not decode"),
    ("aperio.tif", tiff(Compression=(33003,)), "is a TIFF compressed with JPEG 2000, which Pillow does not decode"),
    ("lerc.tif", tiff(Compression=(34887,)), "is a TIFF compressed with LERC, which Pillow does not decode"),
    ("jpeg xl.tif", tiff(Compression=(50002,)), "is a TIFF compressed with JPEG XL, which Pillow does not decode"),
    ("of another format.png", encoded(Image.fromarray(RGB), "PPM"), "it is no image of a known format"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_what_is_no_patch_is_named(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        read_image(path)
    assert str(path) in str(raised.value)


def turned(image_format: str, orientation: int = 6) -> bytes:
    """An image with a note that the camera was turned."""
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    content = encoded(Image.fromarray(RGB), image_format, exif=exif, **lossless)
    with Image.open(io.BytesIO(content)) as image:
        assert image.getexif()[Base.Orientation] == orientation
    return content


@pytest.mark.parametrize(
    "content",
    [
        turned("PNG"),
        turned("WEBP"),
        *(turned("TIFF", orientation) for orientation in range(2, 9)),
        tiff(Orientation=(6,)),
        tiff(),
        png(8, RGB.tobytes()),
        encoded(with_alpha(255)),
        encoded(with_alpha(255), "TIFF"),
        encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(RGB), "TIFF", tiffinfo={Base.Software: "a\0b"}),
        encoded(Image.fromarray(RGB), "PNG", transparency=(1, 1, 1)),
    ],
)
def test_pixels_are_taken_as_they_are_stored_by_every_reader(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "patch.png"  # Pillow goes by the content
    path.write_bytes(content)
    assert not (RGB == 1).all(axis=-1).any()
    assert np.array_equal(read_image(path), RGB)
    assert np.array_equal(decode_image(io.BytesIO(content), "row 0"), RGB)
    (batch,) = read_inputs([path], 2)
    assert np.array_equal(batch.patches[0], RGB)


def test_the_size_in_a_message_is_that_of_the_stored_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    Image.new("RGB", (96, 50)).save(tmp_path / "turned.tif", exif=exif)
    with pytest.raises(UserError, match=r"but .* has 96x50; remove it"):
        read_image(tmp_path / "turned.tif")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rgb12in16.tif", "has 16 bits for each channel; convert"),
        ("five.tif", "has 5 channels; convert"),
        ("sparse_deflate.tif", "has 256x256; remove it or cut it to size"),
        ("software_nul.tif", "has 256x256; remove it or cut it to size"),
        ("thumbnail_first_page.tif", "has 116x116; remove it or cut it to size"),
    ],
)
def test_cases_from_bug_reports_are_answered(name: str, sentence: str, real_data: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_image(real_data / "cases" / name)


@pytest.mark.real_data
def test_the_turned_tiff_of_a_bug_report_is_read_as_it_is_stored(real_data: Path) -> None:
    path = real_data / "cases" / "orient6.tif"
    stored = np.frombuffer(path.read_bytes(), np.uint8, count=96 * 96 * 3, offset=152).reshape(96, 96, 3)
    assert np.array_equal(read_image(path), stored)


def block(path: Path, kind: str) -> None:
    """Put something there that to open would wait for ever, or fail."""
    path.unlink(missing_ok=True)
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link to nothing":
        path.symlink_to(path.with_name("nothing"))
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a link to nothing", "a device"])
def test_what_is_no_file_is_said_and_not_opened(kind: str, tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (2, 2)})
    path = tmp_path / "patches" / "train" / "0" / "patch0000000.png"
    block(path, kind)
    with pytest.raises(UserError, match=rf"Expected an image in {path}, but it is {kind}; mend it or remove it"):
        PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train")
    with pytest.raises(UserError, match=rf"Expected an image in {path}, but it is {kind}; mend it or remove it"):
        read_image(path)
    if kind != "a folder":
        (batch,) = read_inputs([tmp_path / "patches" / "train" / "0"], 8)
        assert len(batch.ids) == 1
        assert f"but it is {kind}" in batch.unreadable[0][1]


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"there can be none .*null"):
        read_image(Path("a\0b.png"))


@settings(max_examples=int(os.environ.get("PCAM_FUZZ_EXAMPLES", "150")), deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.integers(1, len(TIFF)),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage and reads on
def test_a_damaged_image_is_a_patch_or_a_sentence(
    name: str, changes: list[tuple[int, int]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(WHOLE[name])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(bytes(damaged[:length]))
    try:
        patch = read_image(path)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = f"{path} of {patch.dtype}" if patch.shape == (96, 96, 3) else ""
    assert str(path) in sentence


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_any_file_name_is_an_id_that_comes_back(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    write_patches(folder / "patches", {"train": (1, 1)})
    (source,) = (folder / "patches" / "train" / "0").iterdir()
    target = source.with_name(f"a{name}.png")
    source.rename(target)
    ids = PCamDataModule(folder / "patches", cache_dir=folder / "cache").packed("train").ids()
    assert f"train/0/{target.name}" in ids


def test_a_file_name_that_is_no_text_is_an_id_that_comes_back(patch_root: Path, tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (1, 1)})
    (source,) = (tmp_path / "patches" / "train" / "0").iterdir()
    name = os.fsdecode(b"caf\xe9.png")
    source.rename(source.with_name(name))
    ids = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train").ids()
    assert f"train/0/{name}" in ids


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    write_patches(tmp_path, {"train": (2, 2)})
    link = tmp_path / "train" / "1" / "gone.png"
    link.symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=rf"Expected an image in {link}, but it is a link to nothing"):
        find_layout(tmp_path).split("train")


def test_a_link_that_loops_is_refused(tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (2, 2)})
    loop = tmp_path / "patches" / "train" / "0" / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises((UserError, OSError)) as raised:
        PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train")
    assert str(loop) in str(raised.value)


def open_to_all(folder: Path) -> None:
    """Let anybody enter a folder of a test: those above it are root's own, and more where tests run in parallel."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)


def as_nobody(work: Callable[[], object]) -> None:
    """Do something without root's rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        work()
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_what_may_not_be_read_is_named(what: str, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    write_patches(tmp_path / "patches", {"train": (2, 2)})
    folder = tmp_path / "patches" / "train" / "0"
    path = folder if what == "a folder" else sorted(folder.iterdir())[0]
    path.chmod(0)
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)

    def pack() -> None:
        with pytest.raises((PermissionError, UserError)) as raised:
            PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train")
        assert str(path) in str(raised.value)

    as_nobody(pack)
    if what == "a file":
        as_nobody(lambda: none_is_read(path))
    path.chmod(0o755)


def none_is_read(path: Path) -> None:
    (batch,) = read_inputs([path], 2)
    assert "Permission denied" in batch.unreadable[0][1]


def test_a_root_that_may_not_be_written_trains(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    write_patches(tmp_path / "patches", {"train": (2, 2)})
    for path in (tmp_path / "patches").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    as_nobody(lambda: PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train"))
    assert list((tmp_path / "cache").rglob("*.h5"))
