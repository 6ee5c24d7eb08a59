"""A packed store is whole or not there, is built once, says when it is not what it should be, and drops repeats."""

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pcam.data import PCamDataModule, locks, packed
from pcam.data.layouts import pixel_hash
from pcam.data.packed import PackedSplit, pack
from pcam.errors import UserError
from tests.data.memory import IMAGES, LABELS, files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "train.h5"


def test_rows_are_in_the_order_of_their_hashes_with_all_that_belongs_to_them(path: Path) -> None:
    store = pack(files(), path, "Packing")
    assert store.pixel_hashes() == sorted(pixel_hash(image).hex() for image in IMAGES)
    rows = [int(patch_id.removeprefix("patch ")) for patch_id in store.ids()]
    assert sorted(rows) == list(range(len(IMAGES)))
    np.testing.assert_array_equal(store.patches, IMAGES[rows])
    np.testing.assert_array_equal(store.labels, LABELS[rows])
    assert store.slides() == [f"s{row}" for row in rows]
    store.verify()


def test_more_patches_than_are_written_at_once_keep_their_places(path: Path) -> None:
    images = np.repeat(IMAGES, 15, axis=0)  # 615, more than two chunks
    images[:, 0, 0, :2] = np.arange(len(images), dtype=np.uint16).reshape(-1, 1).view(np.uint8)
    labels = np.repeat(LABELS, 15)
    store = pack(files(images, labels), path, "Packing")
    rows = [int(patch_id.removeprefix("patch ")) for patch_id in store.ids()]
    np.testing.assert_array_equal(store.patches, images[rows])
    np.testing.assert_array_equal(store.labels, labels[rows])
    store.verify()


def test_the_order_in_which_patches_are_listed_changes_nothing_but_ids(path: Path) -> None:
    other = pack(files(IMAGES[::-1], LABELS[::-1]), path.with_name("other.h5"), "Packing")
    store = pack(files(), path, "Packing")
    assert store.fingerprint == other.fingerprint
    np.testing.assert_array_equal(store.patches, other.patches)


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_another_patch_or_label_gives_another_fingerprint(change: str, path: Path) -> None:
    images, labels = IMAGES.copy(), LABELS.copy()
    if change == "pixel":
        images[3, 95, 95, 2] ^= 1
    else:
        labels[3] ^= 1
    store = pack(files(), path, "Packing")
    assert store.fingerprint != pack(files(images, labels), path.with_name("other.h5"), "Packing").fingerprint


def test_a_store_is_packed_once_and_again_when_its_files_change(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    opened: list[int] = []
    for _ in range(3):
        pack(files(before_portion=opened.append), path, "Packing")
    assert opened == [0]
    assert pack(files(IMAGES[:30], LABELS[:30], "two", opened.append), path, "Packing").labels.shape == (30,)
    assert opened == [0, 0]
    assert f"The files behind {path} have changed since it was packed" in caplog.text


def test_names_of_a_store_that_was_packed_again_are_not_taken_for_those_of_the_open_one(path: Path) -> None:
    store = pack(files(), path, "Packing")
    again = IMAGES.copy()
    again[0] = 255 - again[0]  # as many patches, in another order
    other = pack(files(again, LABELS, "two"), path, "Packing")
    assert len(other) == len(store)
    for read in (store.ids, store.origins, store.pixel_hashes, store.verify):
        with pytest.raises(UserError, match="another process has packed it again"):
            read()
    assert len(other.ids()) == len(other)


def test_a_store_travels_as_its_path(path: Path) -> None:
    store = pack(files(), path, "Packing")
    parcel = pickle.dumps(store)
    assert len(parcel) < 1000
    np.testing.assert_array_equal(pickle.loads(parcel).patches, store.patches)


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["patches"] = IMAGES


def of_another_version(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99


def with_too_few_labels(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file["labels"] = LABELS[:5]


def with_labels(values: NDArray[np.generic]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file["labels"]
            file["labels"] = values

    return harm


def with_patches(values: NDArray[np.generic]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file["patches"]
            file["patches"] = values

    return harm


def with_patches_of_elsewhere(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["patches"] = IMAGES
    with h5py.File(path, "r+") as file:
        del file["patches"]
        file["patches"] = h5py.ExternalLink("other.h5", "patches")


def with_a_number_for_a_fingerprint(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = 7


def in_place(kind: str) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.mkdir()

    return harm


def without_patches(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["patches"]


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut(0), "truncated file|file signature not found"),
        (cut(0.001), "truncated file"),
        (cut(0.5), "truncated file"),
        (cut(0.9999), "truncated file"),
        (lambda path: path.write_bytes(b"<html>"), "file signature not found"),
        (foreign, "it has no mark 'pcam-packed', version 2"),
        (of_another_version, "it has no mark 'pcam-packed', version 2"),
        (with_too_few_labels, r"it holds an array of shape \(41, 96, 96, 3\) and type uint8 for 5 labels"),
        (with_labels(LABELS * np.uint8(7)), "it holds the label 7"),
        (with_labels(LABELS * 0.5), r"it holds labels as float64 of shape \(41,\)"),
        (with_labels(LABELS.reshape(-1, 1)), r"it holds labels as uint8 of shape \(41, 1\)"),
        (with_patches(IMAGES.astype(np.uint16)), r"it holds an array of shape \(41, 96, 96, 3\) and type uint16"),
        (with_patches_of_elsewhere, "a link to the file 'other.h5'"),
        (with_a_number_for_a_fingerprint, "has no attribute 'decode'"),
        (in_place("pipe"), "it is no file"),
        (in_place("folder"), "it is no file"),
        (without_patches, "as 'patches' it has the keys ids, labels, sha1, slides"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_what_is_no_whole_store_is_named_and_not_used(harm: Callable[[Path], object], reason: str, path: Path) -> None:
    pack(files(), path, "Packing")
    harm(path)
    sentence = rf"Expected a packed split in {path}, but it cannot be used \(.*({reason}).*\); delete it, and the next"
    with pytest.raises(UserError, match=sentence):
        PackedSplit(path)
    if path.exists():
        with pytest.raises(UserError, match=sentence):
            pack(files(), path, "Packing")
        path.rmdir() if path.is_dir() else path.unlink()
    pack(files(), path, "Packing").verify()


def place_of(path: Path, part: str) -> int:
    """Where in the file some byte of a part lies."""
    if part == "header":
        return 20
    with h5py.File(path) as file:
        if part == "patches":
            return int(file["patches"].id.get_offset()) + 12_345
        needle = file[part][:].tobytes()
    return path.read_bytes().index(needle) + len(needle) // 2


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("patches", r"in .*train\.h5 what was packed, but found other pixels in 1 of 41 rows, the first row 0; delete"),
        ("sha1", r"a packed split in .*train\.h5, but it cannot be used \(.*\); delete it"),
        ("labels", r"a packed split in .*train\.h5, but it cannot be used \(.*\); delete it"),
        ("ids", r"a packed split in .*train\.h5, but it cannot be used \(.*\); delete it"),
        ("slides", r"a packed split in .*train\.h5, but it cannot be used \(.*\); delete it"),
        ("header", r"a packed split in .*train\.h5, but it cannot be used \(.*\); delete it"),
    ],
)
def test_verify_finds_a_flipped_bit(part: str, sentence: str, path: Path) -> None:
    pack(files(), path, "Packing")
    place = place_of(path, part)
    with path.open("rb+") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(UserError, match=sentence):
        PackedSplit(path).verify()


def test_verify_finds_other_labels(path: Path) -> None:
    pack(files(), path, "Packing")
    with h5py.File(path, "r+") as file:
        file["labels"][:] = 1 - file["labels"][:]
    with pytest.raises(UserError, match=r"in .* what was packed, but found other labels; delete"):
        PackedSplit(path).verify()


def in_process(function: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def die(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Nothing of what Python 3.12 warns of happens: the child starts its own threads and calls no part of torch that does.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("moment", ["while it decodes", "before the rename"])
def test_a_process_that_is_killed_leaves_no_store_and_no_litter(
    moment: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if moment == "before the rename":
            patch.setattr(Path, "replace", die)
            harmful = files()
        else:
            harmful = files(before_portion=die)
        process = in_process(partial(pack, harmful, path, "Packing"))
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(path.parent.iterdir())) > 1  # litter
    pack(files(), path, "Packing").verify()
    assert {found.name for found in path.parent.iterdir()} == {"train.h5", "train.h5.lock"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_two_processes_that_start_together_one_packs(path: Path, tmp_path: Path) -> None:
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def start_together() -> None:
        barrier.wait()
        log = tmp_path / f"packed by {os.getpid()}"
        assert len(pack(files(before_portion=lambda start: log.touch()), path, "Packing")) == len(LABELS)

    processes = [in_process(start_together) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("packed by *"))) == 1
    PackedSplit(path).verify()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_who_waits_for_another_process_says_for_whom(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    context = multiprocessing.get_context("fork")
    packing, go_on = context.Event(), context.Event()

    def pack_slowly() -> None:
        pack(files(before_portion=lambda start: packing.set() or go_on.wait(60)), path, "Packing")

    process = in_process(pack_slowly)
    assert packing.wait(60)
    threading.Timer(1.0, go_on.set).start()
    assert len(pack(files(), path, "Packing")) == len(LABELS)
    process.join()
    assert (
        f"Waiting for another process, which packs {path} (number {process.pid}) and holds {path}.lock" in caplog.text
    )


def test_what_is_in_the_place_of_the_lock_is_refused(path: Path) -> None:
    path.parent.mkdir()
    precious = path.with_name("precious")
    precious.write_text("thesis")
    path.with_name("train.h5.lock").symlink_to(precious)
    with pytest.raises(UserError, match=rf"Expected a file, or nothing, at {path}.lock, but found a link; move"):
        pack(files(), path, "Packing")
    assert precious.read_text() == "thesis"
    path.with_name("train.h5.lock").unlink()
    path.with_name("train.h5.lock").mkdir()
    with pytest.raises(UserError, match=r"train.h5.lock, but found a folder; move it away"):
        pack(files(), path, "Packing")


def test_a_file_in_the_place_of_the_cache_is_refused(path: Path) -> None:
    path.parent.write_text("thesis")
    with pytest.raises(UserError, match=rf"for packed stores at {path.parent}, but found a file there; choose"):
        pack(files(), path, "Packing")


def test_a_patch_that_cannot_be_read_leaves_no_store_and_no_litter(path: Path) -> None:
    def fail(start: int) -> None:
        raise UserError("Expected an image in row 7, but found none.")

    with pytest.raises(UserError, match="in row 7"):
        pack(files(before_portion=fail), path, "Packing")
    assert [found.name for found in path.parent.iterdir()] == ["train.h5.lock"]


def test_a_full_disk_is_noticed_before_the_first_patch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"0\.0 GB of free disk space to pack into .*, but found 0\.0 GB; make room"):
        pack(files(before_portion=die), path, "Packing")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_that_fills_while_packing_is_named(number: int, path: Path) -> None:
    def fill(start: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=rf"to pack into {path.parent}, but the system refused \(.*\); make"):
        pack(files(before_portion=fill), path, "Packing")
    assert [found.name for found in path.parent.iterdir()] == ["train.h5.lock"]


def test_what_opening_has_unpacked_already_needs_no_room_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    monkeypatch.setattr(packed, "_require_space", lambda folder, space: needed.append(space))
    pack(files(), path, "Packing")
    pack(files(signature="other", unpacked=bytes(1000)), path, "Packing")
    assert needed[0] - needed[1] == 1000


@pytest.mark.parametrize("place", ["", "train", "new/deep"])
def test_a_store_is_never_written_below_the_data(place: str, patch_root: Path) -> None:
    before = sorted(patch_root.rglob("*"))
    with pytest.raises(UserError, match=r"Expected cache_dir outside of the folder with the data, .* but found"):
        PCamDataModule(patch_root, cache_dir=patch_root / place).packed("train")
    assert sorted(patch_root.rglob("*")) == before
