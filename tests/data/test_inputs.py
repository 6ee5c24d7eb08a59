"""Patches to classify: found in folders, files and HDF5, read as a stream, refused with a reason."""

import errno
import gzip
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pcam.data.inputs import InputBatch, count_inputs, listed_paths, read_inputs
from pcam.errors import UserError


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (96, 96)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def ids_of(batches: list[InputBatch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


def test_a_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    for number, name in enumerate(["b.png", "a.tif", "deep/er/c.JPG", "deep/d.jpeg", "also/e.png"]):
        write_image(tmp_path / name, 10 * number)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "._a.tif").write_text("what another system leaves beside a file")
    assert count_inputs([tmp_path]) == 5
    batches = list(read_inputs([tmp_path], 3))
    assert [len(batch.ids) for batch in batches] == [3, 2]
    assert ids_of(batches) == ["a.tif", "b.png", "also/e.png", "deep/d.jpeg", "deep/er/c.JPG"]
    assert [int(patch.mean().round()) for batch in batches for patch in batch.patches] == [10, 0, 40, 30, 20]


def test_files_keep_their_paths_and_fill_batches(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / name) for name in ("z.png", "a.png", "c.png")]
    (batch,) = read_inputs(paths, 8)
    assert batch.ids == [str(path) for path in paths]


def test_two_folders_with_the_same_names_are_told_apart(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / folder / "0.png") for folder in ("one", "two")]
    assert ids_of(list(read_inputs([path.parent for path in paths], 8))) == [str(path) for path in paths]


def test_hdf5_is_read_by_rows(tmp_path: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "test_x.h5", "w") as file:
        file["x"] = patches
    image = write_image(tmp_path / "one.png")
    paths = [tmp_path / "test_x.h5", image]
    assert count_inputs(paths) == 6
    batches = list(read_inputs(paths, 2))
    assert ids_of(batches) == [str(image), *(f"{tmp_path}/test_x.h5/{row}" for row in range(5))]
    assert ids_of(list(read_inputs(paths[:1], 2))) == [f"test_x.h5/{row}" for row in range(5)]
    assert np.array_equal(np.concatenate([batch.patches for batch in batches[1:]]), patches)


def test_a_list_is_read_as_the_paths_it_has(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / name) for name in ("b.png", "a b.png", "d\u00e9j\u00e0.png")]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros((2, 96, 96, 3), np.uint8)
    lines = [b"\n", *(bytes(path) + b"\r\n" for path in paths), bytes(tmp_path / "x.h5")]  # the last has no end
    with listed_paths(lines) as listed:
        assert count_inputs(listed) == 5
        assert ids_of(list(read_inputs(listed, 2))) == [*map(str, paths), f"{tmp_path}/x.h5/0", f"{tmp_path}/x.h5/1"]


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(UserError, match="Expected paths on standard input"), listed_paths([b"\n", b" \n"]):
        pass


@pytest.mark.slow  # takes some seconds
def test_memory_does_not_grow_with_the_length_of_a_list(tmp_path: Path) -> None:
    path = bytes(write_image(tmp_path / "one.png")) + b"\n"
    tracemalloc.start()
    try:
        with listed_paths(path for _ in range(50_000)) as listed:
            assert count_inputs(listed) == 50_000
            next(read_inputs(listed, 16))
        assert tracemalloc.get_traced_memory()[1] < 2e6  # the list is 5 MB
    finally:
        tracemalloc.stop()


def test_one_of_several_paths_may_be_missing(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / "a.png"), tmp_path / "gone.png"]
    assert count_inputs(paths) == 2
    (batch,) = read_inputs(paths, 8)
    assert batch.ids == [str(paths[0])]
    ((name, reason),) = batch.unreadable
    assert name == str(paths[1])
    assert "but there is nothing; mend it" in reason


def test_memory_does_not_grow_with_the_number_of_patches(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        patches = file.create_dataset("x", shape=(2000, 96, 96, 3), dtype=np.uint8)  # 55 MB
        for start in range(0, 2000, 100):
            patches[start : start + 100] = np.zeros((100, 96, 96, 3), np.uint8)
    tracemalloc.start()
    try:
        assert sum(len(batch.ids) for batch in read_inputs([tmp_path / "many.h5"], 16)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_what_cannot_be_read_is_named_beside_the_rest(tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:60])
    write_image(tmp_path / "large.png", size=(200, 96))
    write_image(tmp_path / "small.png", size=(50, 50))
    (batch,) = read_inputs([tmp_path], 8)
    assert batch.ids == ["good.png"]
    reasons = dict(batch.unreadable)
    assert "cannot be read" in reasons["half.png"]
    assert reasons["large.png"].endswith("larger (200x96); score it on a grid of windows with pcam slide.")
    assert reasons["small.png"].endswith("has 50x50; remove it or cut it to size.")


def test_an_image_too_large_for_pillow_is_one_for_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "slide.png", size=(200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    (batch,) = read_inputs([path], 8)
    assert batch.unreadable[0][1].endswith("is larger; score it on a grid of windows with pcam slide.")


def test_damaged_rows_of_hdf5_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.ones((4, 96, 96, 3), np.uint8), chunks=(2, 96, 96, 3), compression="gzip")
        offset = file["x"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 40)
    first, second = read_inputs([path], 2)
    assert first.ids == ["x.h5/0", "x.h5/1"]
    assert not second.ids
    assert [name for name, _ in second.unreadable] == ["x.h5/2", "x.h5/3"]
    assert "x.h5, but it cannot be read" in second.unreadable[0][1]


def test_what_holds_no_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found nothing at .*nowhere; correct --input"):
        count_inputs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"Expected images .* in .* or its subfolders, but found none"):
        count_inputs([tmp_path])


def test_hdf5_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "y.h5"
    with h5py.File(path, "w") as file:
        file["y"] = np.zeros((3, 1, 1, 1), np.uint8)
    with pytest.raises(UserError, match=r"the key 'x' in .*, but found the keys y; correct --input"):
        count_inputs([path])
    with h5py.File(path, "a") as file:
        file["x"] = np.zeros((3, 64, 64, 3), np.float32)
    with pytest.raises(UserError, match=r"found x of shape \(3, 64, 64, 3\) and type float32"):
        count_inputs([path])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"y.h5, but it cannot be read .*truncated.*; fetch it anew"):
        count_inputs([path])


def test_a_subfolder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError):
        count_inputs([tmp_path])


def test_an_image_that_pillow_stumbles_over_is_listed_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "whole.tif")
    content = bytearray((tmp_path / "whole.tif").read_bytes())
    content[10] = 5  # the entry of the width is now another's
    (tmp_path / "damaged.tif").write_bytes(content)
    (batch,) = read_inputs([tmp_path], 8)
    assert batch.ids == ["whole.tif"]
    ((name, reason),) = batch.unreadable
    assert name == "damaged.tif"
    assert "cannot be read" in reason


def test_hdf5_that_is_packed_with_gzip_is_read_as_training_reads_it(tmp_path: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = patches
    path = tmp_path / "test_x.h5.gz"
    path.write_bytes(gzip.compress((tmp_path / "x.h5").read_bytes()))
    assert count_inputs([path]) == 5
    batches = list(read_inputs([path], 2))
    assert ids_of(batches) == [f"test_x.h5.gz/{row}" for row in range(5)]
    assert np.array_equal(np.concatenate([batch.patches for batch in batches]), patches)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"test_x\.h5\.gz, but it cannot be read \(Compressed file ended"):
        count_inputs([path])


def test_a_named_pipe_by_the_name_of_an_hdf5_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.h5")
    assert count_inputs([tmp_path / "x.h5"]) == 1
    (batch,) = read_inputs([tmp_path / "x.h5"], 2)
    assert "but it is a named pipe; mend it or remove it" in batch.unreadable[0][1]


def test_a_line_that_is_no_path_does_not_end_the_job(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    with listed_paths([bytes(image), b"n" * 6000, b"a\0b.png", bytes(tmp_path / "gone.h5")]) as listed:
        assert count_inputs(listed) == 4
        (batch,) = read_inputs(listed, 8)
    assert batch.ids == [str(image)]
    reasons = [reason for _, reason in batch.unreadable]
    assert "there can be none (File name too long)" in reasons[0]
    assert "there can be none (embedded null byte)" in reasons[1]
    assert "gone.h5, but there is nothing" in reasons[2]


def test_a_folder_that_may_not_be_looked_into_does_not_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")]
    look = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.name == "b.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    (batch,) = read_inputs(paths, 8)
    assert batch.ids == [str(paths[0])]
    assert batch.unreadable[0][1].endswith("b.png, but the system refused to look at it: Permission denied.")
