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

from pcam.data import PCamDataModule
from pcam.data.layouts import find_layout, read_image
from pcam.errors import UserError
from tests.conftest import write_patches

RGB = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (96, 96), image_format: str = "PNG") -> bytes:
    return encoded(Image.new(mode, size), image_format)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 100,000 x 100,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


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
    ("alpha.png", plain("RGBA"), "8-bit RGB, but .* has mode 'RGBA'; convert it"),
    ("palette.png", plain("P"), "8-bit RGB, but .* has mode 'P'; convert it"),
    ("16bit.png", plain("I;16"), "8-bit RGB, but .* has mode 'I;16'; convert it"),
    ("inks.jpg", plain("CMYK", image_format="JPEG"), "8-bit RGB, but .* has mode 'CMYK'; convert it"),
    ("animated.png", encoded(Image.fromarray(RGB), "PNG", **FRAMES), r"one image in .*, but found 2 \(animation"),
    ("pages.tif", encoded(Image.fromarray(RGB), "TIFF", **FRAMES), r"one image in .*, but found 2 \(animation"),
    ("bomb.png", bomb(), r"cannot be read \(.*decompression bomb"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_what_is_no_patch_is_named(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        read_image(path)
    assert str(path) in str(raised.value)


def test_pixels_are_taken_as_they_are_stored(tmp_path: Path) -> None:
    """A note that the camera was turned does not turn the patch."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(RGB), "PNG", exif=exif))
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert np.array_equal(read_image(path), RGB)


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
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
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
    path.chmod(0o755)


def test_a_root_that_may_not_be_written_trains(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    write_patches(tmp_path / "patches", {"train": (2, 2)})
    for path in (tmp_path / "patches").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    as_nobody(lambda: PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train"))
    assert list((tmp_path / "cache").rglob("*.h5"))
