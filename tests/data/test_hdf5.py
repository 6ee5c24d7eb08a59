"""HDF5 files that are not what they seem: each is refused in a sentence, by training and by prediction alike."""

import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pcam.data import PCamDataModule
from pcam.data.inputs import count_inputs, read_inputs
from pcam.errors import UserError
from tests.data.forms import STEM, noise, write_official

PATCHES, LABELS = noise()["valid"]
Writer = Callable[[h5py.File, Path], None]


def virtual(sources: list[str], shape: tuple[int, ...] = PATCHES.shape) -> Writer:
    """An array that is put together from the array `x` of other files, which share its rows."""

    def write(file: h5py.File, folder: Path) -> None:
        layout = h5py.VirtualLayout(shape=shape, dtype=np.uint8)
        count = len(PATCHES) // len(sources)
        for place, name in enumerate(sources):
            layout[place * count : (place + 1) * count] = h5py.VirtualSource(name, "x", (count, 96, 96, 3))
        file.create_virtual_dataset("x", layout)

    return write


def external_link(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.ExternalLink(folder.parent / "outside.h5", "x")


def link_through_another_file(file: h5py.File, folder: Path) -> None:
    file["other"] = h5py.ExternalLink(folder.parent / "outside.h5", "/")
    file["x"] = h5py.SoftLink("/other/x")


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", PATCHES.shape, np.uint8, external=[(folder.parent / "secret", 0, PATCHES.nbytes)])


def loop_of_links(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.SoftLink("/y")
    file["y"] = h5py.SoftLink("/x")


def link_to_nothing(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.SoftLink("/nothing")


def never_written(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", PATCHES.shape, np.uint8)


def written_in_part(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", PATCHES.shape, np.uint8, chunks=(2, 96, 96, 3))[:4] = PATCHES[:4]


def compound(file: h5py.File, folder: Path) -> None:
    file["x"] = np.zeros(PATCHES.shape, dtype=[("red", np.uint8)])


def virtual_of_itself(file: h5py.File, folder: Path) -> None:
    virtual(["."])(file, folder)


def virtual_with_a_gap(file: h5py.File, folder: Path) -> None:
    """Two sources that hold the same rows, so that others have none."""
    layout = h5py.VirtualLayout(PATCHES.shape, np.uint8)
    half = h5py.VirtualSource("half.h5", "x", (6, 96, 96, 3))
    layout[0:6] = half
    layout[3:9] = half
    file.create_virtual_dataset("x", layout)


def virtual_of_virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "between.h5", "w") as between:
        virtual([str(folder.parent / "outside.h5")])(between, folder)
    virtual(["between.h5"])(file, folder)


FAULTS: list[tuple[Writer, str]] = [
    (external_link, "a link to the file '.*outside.h5'"),
    (link_through_another_file, "a link to '/other/x'"),
    (external_storage, "values that are stored outside, in '.*secret'"),
    (loop_of_links, "a link to '/y'"),
    (link_to_nothing, "a link to '/nothing'"),
    (never_written, "values of which some were never written"),
    (written_in_part, "values of which some were never written"),
    (compound, r"values of type \[\('red'"),
    (virtual(["missing.h5"]), "a virtual array whose source 'missing.h5' is not a file below"),
    (virtual(["../outside.h5"]), "a virtual array whose source '../outside.h5' is not a file below"),
    (virtual(["link.h5"]), "a virtual array whose source 'link.h5' is not a file below"),
    (virtual(["pipe.h5"]), "a virtual array whose source 'pipe.h5' is not a file below"),
    (virtual(["half.h5"]), r"a virtual array whose source 'half.h5' has the shape \(6, 96"),
    (virtual(["half.h5", "half.h5"], (24, 96, 96, 3)), "a virtual array with sources for 331,776 of its 663,552"),
    (virtual_with_a_gap, "a virtual array with sources for 248,832 of its 331,776"),
    (virtual_of_itself, "a virtual array whose sources are not plain files"),
    (virtual_of_virtual, "a virtual array whose sources are not plain files"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The official files, without the patches of valid; beside them what an array could be taken from."""
    root = tmp_path / "patches"
    write_official(root, noise())
    (root / f"{STEM}_valid_x.h5").rename(tmp_path / "outside.h5")
    (tmp_path / "secret").write_bytes(bytes(PATCHES.nbytes))
    for name, rows in (("half.h5", PATCHES[:6]), ("other half.h5", PATCHES[6:])):
        with h5py.File(root / name, "w") as file:
            file["x"] = rows
    (root / "link.h5").symlink_to(tmp_path / "outside.h5")
    os.mkfifo(root / "pipe.h5")
    return root


@pytest.mark.parametrize(("write", "found"), FAULTS)
def test_an_array_that_its_file_does_not_hold_itself_is_refused(write: Writer, found: str, root: Path) -> None:
    path = root / f"{STEM}_valid_x.h5"
    with h5py.File(path, "w") as file:
        write(file, root)
    data = PCamDataModule(root, cache_dir=root.parent / "cache")
    with pytest.raises(UserError, match=rf"under the key 'x' in {path}, but found {found}.*; fetch the official file"):
        data.packed("valid")
    with pytest.raises(UserError, match=rf"under the key 'x' in {path}, but found {found}.*; correct --input"):
        count_inputs([path])
    assert not list((root.parent / "cache").rglob("*-all.h5"))


def test_a_virtual_array_of_files_below_its_folder_is_read(root: Path) -> None:
    path = root / f"{STEM}_valid_x.h5"
    with h5py.File(path, "w") as file:
        virtual(["half.h5", "other half.h5"])(file, root)
    (batch,) = read_inputs([path], 20)
    assert np.array_equal(batch.patches, PATCHES)
    assert len(PCamDataModule(root, cache_dir=root.parent / "cache").packed("valid")) == len(PATCHES)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(2, 6), slice(1, 6, 2)])
def test_a_virtual_array_of_some_rows_of_a_file_is_read(root: Path, rows: slice) -> None:
    half = len(PATCHES) // 2
    expected = PATCHES[:half][rows]
    with h5py.File(root / "some.h5", "w") as file:
        layout = h5py.VirtualLayout(expected.shape, np.uint8)
        layout[:] = h5py.VirtualSource("half.h5", "x", (half, 96, 96, 3))[rows]
        file.create_virtual_dataset("x", layout)
    (batch,) = read_inputs([root / "some.h5"], 20)
    assert np.array_equal(batch.patches, expected)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            np.eye(2, dtype=np.uint8)[LABELS],
            r"\(patches, 1, 1, 1\), in .*, but found the shape \(12, 2\); write",
        ),
        (
            np.array([(1,)] * 12, dtype=[("label", np.uint8)]),
            r"the key 'y' in .*, but found values of type \[\('l",
        ),
        (np.array([b"0", b"1"] * 6), r"the key 'y' in .*, but found values of type \|S1"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: np.ndarray, sentence: str, root: Path) -> None:
    (root.parent / "outside.h5").rename(root / f"{STEM}_valid_x.h5")
    with h5py.File(root / f"{STEM}_valid_y.h5", "w") as file:
        file["y"] = labels
    with pytest.raises(UserError, match=sentence):
        PCamDataModule(root, cache_dir=root.parent / "cache").packed("valid")


@pytest.mark.parametrize("name", [f"{STEM}_valid_x.h5", f"{STEM}_valid_y.h5", f"{STEM}_valid_meta.csv"])
@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a link to nothing"])
def test_what_is_no_file_is_said_and_not_opened(kind: str, name: str, root: Path) -> None:
    (root.parent / "outside.h5").rename(root / f"{STEM}_valid_x.h5")
    (root / name).unlink(missing_ok=True)
    if kind == "a named pipe":
        os.mkfifo(root / name)
    elif kind == "a folder":
        (root / name).mkdir()
    else:
        (root / name).symlink_to(root / "nothing")
    with pytest.raises(UserError, match=rf"Expected a file in {root / name}, but it is {kind}; mend it or remove it"):
        PCamDataModule(root, cache_dir=root.parent / "cache").packed("valid")


def test_a_disk_that_fills_while_unpacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5.gz"
    path.write_bytes(gzip.compress(b"x"))

    def fill(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(UserError, match=rf"Expected room to unpack {path} into .*, but the system refused \(No space"):
        count_inputs([path])
