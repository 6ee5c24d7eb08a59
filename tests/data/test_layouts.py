"""Every form is recognised, and what is wrong with a folder is said in a sentence."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pcam.data import PCamDataModule
from pcam.data.layouts import FORMS, find_layout
from pcam.data.verify import verify
from pcam.errors import UserError
from pcam.options import SplitName
from tests.conftest import REPOSITORY
from tests.data.forms import (
    STEM,
    WRITERS,
    Patches,
    encode,
    kaggle_id,
    noise,
    write_classes,
    write_course,
    write_kaggle,
    write_official,
    write_official_packed,
    write_official_with_meta,
    write_parquet,
)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("classes", "train/1/*.png"),
        ("course", "train+val/train/0/*.png"),
        ("official", f"{STEM}_train_x.h5"),
        ("official_packed", f"{STEM}_train_y.h5.gz"),
        ("official_with_meta", f"{STEM}_train_meta.csv"),
        ("parquet", "data/train-00001-of-00002.parquet"),
        ("kaggle", "train/*.tif"),
        ("kaggle", "train_labels.csv"),
        ("kaggle", "slides.csv"),
    ],
)
def test_a_changed_file_changes_the_signature(form: str, pattern: str, patches: Patches, tmp_path: Path) -> None:
    (WRITERS | {"kaggle": write_kaggle})[form](tmp_path, patches)
    (tmp_path / "slides.csv").write_text("id,slide\n")
    before = find_layout(tmp_path).split("train").signature
    assert find_layout(tmp_path).split("train").signature == before
    os.utime(sorted(tmp_path.glob(pattern))[0], ns=(1, 1))
    assert find_layout(tmp_path).split("train").signature != before


def in_hdf5(name: str, key: str, values: object) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        with h5py.File(root / f"{STEM}_{name}.h5", "w") as file:
            file[key] = values

    return write


def cut(pattern: str, share: float = 0.5) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        path = sorted(root.glob(pattern))[0]
        os.truncate(path, int(path.stat().st_size * share))

    return write


def text(name: str, contents: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(contents) and None


def remove(pattern: str) -> Callable[[Path], None]:
    return lambda root: sorted(root.glob(pattern))[0].unlink()


def edit(name: str, column: str, row: int, value: object) -> Callable[[Path], None]:
    """Change one cell of a CSV; None drops the column."""

    def write(root: Path) -> None:
        table = pd.read_csv(root / name, dtype=str)
        if value is None:
            table = table.drop(columns=column)
        else:
            table.loc[row, column] = value
        table.to_csv(root / name, index=False)

    return write


def in_parquet(column: str, value: object) -> Callable[[Path], None]:
    """Change a column of the valid split: its third value, or its name."""

    def write(root: Path) -> None:
        path = root / "data" / "validation-00000-of-00001.parquet"
        rows = pq.read_table(path).to_pandas()
        if isinstance(value, str):
            rows = rows.rename(columns={column: value})
        else:
            rows[column] = [value if index == 2 else cell for index, cell in enumerate(rows[column])]
        rows.to_parquet(path)

    return write


VALIDATION = "validation-00000-of-00001.parquet"
IMAGE = noise()["valid"][0][0]


def replace_parquet(**columns: list[object]) -> Callable[[Path], None]:
    """Write the valid split anew, with some column of another kind."""
    whole = {"image": [encode(IMAGE)] * 4, "label": [0, 1, 0, 1]} | columns
    return lambda root: pq.write_table(pa.table(whole), root / "data" / VALIDATION)


def two_labels(path: Path) -> None:
    columns = [[encode(IMAGE)] * 2, [0, 1], [1, 0]]
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], ["image", "label", "label"]), path)


def image(pattern: str, mode: str, size: tuple[int, int]) -> Callable[[Path], None]:
    return lambda root: Image.new(mode, size).save(sorted(root.glob(pattern))[0])


def several(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: [change(root) for change in changes] and None


VALID_Y = np.array([0, 1] * 6, dtype=np.uint8).reshape(-1, 1, 1, 1)

FAULTS: list[tuple[Callable[[Path, Patches], None], Callable[[Path], None], SplitName, str]] = [
    # The official files
    (write_official, in_hdf5("valid_x", "images", 1), "valid",
     r"array under the key 'x' in .*valid_x\.h5, but found the keys images; fetch"),
    (write_official, in_hdf5("valid_y", "labels", VALID_Y), "valid",
     r"array under the key 'y' in .*valid_y\.h5, but found the keys labels; fetch"),
    (write_official, in_hdf5("valid_x", "x/deeper", 1), "valid", r"array under the key 'x' .* found the keys x; fetch"),
    (write_official, in_hdf5("valid_y", "y", VALID_Y[:5]), "valid",
     r"as many patches in .*valid_x\.h5 as labels in .*valid_y\.h5, but found 12 and 5; fetch"),
    (write_official, in_hdf5("valid_x", "x", np.zeros((12, 96, 96, 3), np.float32)), "valid",
     r"uint8 of shape \(patches, 96, 96, 3\) in .*, but found float32 of shape \(12, 96, 96, 3\); fetch"),
    (write_official, in_hdf5("valid_x", "x", np.zeros((12, 3, 96, 96), np.uint8)), "valid",
     r"but found uint8 of shape \(12, 3, 96, 96\); fetch"),
    (write_official, in_hdf5("valid_y", "y", VALID_Y * 2), "valid",
     r"labels 0 \(normal\) or 1 \(tumour\) in .*valid_y\.h5, but found 6 others, the first '2' in row 1; correct"),
    (write_official, in_hdf5("valid_y", "y", np.where(VALID_Y, np.nan, 0.0)), "valid", r"the first 'nan' in row 1"),
    (write_official, in_hdf5("valid_y", "y", VALID_Y * 0), "valid",
     r"both labels, 0 and 1, in .*valid_y\.h5, but found only 0; add the other class"),
    (write_official, cut("*valid_x.h5"), "valid", r"whole file in .*valid_x\.h5, but it cannot be read \(.*trunc"),
    (write_official, remove("*valid_y.h5"), "valid", r"Expected both .*valid_x.*, but found no labels \(y\); fetch"),
    (write_official, remove("*valid_x.h5"), "valid", r"Expected both .*valid_x.*, but found no patches \(x\); fetch"),
    (write_official, several(remove("*test_x.h5"), remove("*test_y.h5")), "test",
     r"a split 'test' in .* \(official HDF5 files\), but found only train, valid; add it"),
    (write_official_packed, cut("*valid_x.h5.gz"), "valid",
     r"whole file in .*valid_x\.h5\.gz, but it cannot be read \(Compressed file ended"),
    (write_official_packed, text(f"{STEM}_valid_x.h5.gz", "<html>Quota exceeded</html>"), "valid",
     r"whole file in .*valid_x\.h5\.gz, but it cannot be read \(Not a gzipped file"),
    (write_official_with_meta, edit(f"{STEM}_valid_meta.csv", "wsi", 0, None), "valid",
     r"the columns wsi in .*valid_meta\.csv, but found Unnamed: 0, .*, tumor_patch; fetch"),
    (write_official_with_meta, edit(f"{STEM}_valid_meta.csv", "wsi", 12, "one more"), "valid",
     r"a row in .*valid_meta\.csv for each of 12 patches, but found 13; fetch"),
    (write_official_with_meta, edit(f"{STEM}_valid_meta.csv", "wsi", 3, ""), "valid",
     r"the name of a slide .*valid_meta\.csv, but row 3 has none; fetch"),
    (write_official_with_meta, text(f"{STEM}_valid_meta.csv", ""), "valid", r"valid_meta\.csv, .*No columns to parse"),
    # Kaggle's
    (write_kaggle, lambda root: None, "test",
     r"labels for the split 'test' of .* \(Kaggle's files\), but .*/test has images without labels.*; choose another"),
    (write_kaggle, edit("train_labels.csv", "label", 4, None), "train",
     r"the columns id, label in .*train_labels\.csv, but found id; fetch"),
    (write_kaggle, edit("train_labels.csv", "label", 4, ""), "train",
     r"labels 0 .*train_labels\.csv, but found 1 others, the first '' in row 4; correct"),
    (write_kaggle, edit("train_labels.csv", "label", 4, "nan"), "train", r"the first 'nan' in row 4"),
    (write_kaggle, edit("train_labels.csv", "label", 4, "0.5"), "train", r"the first '0\.5' in row 4"),
    (write_kaggle, edit("train_labels.csv", "id", 4, kaggle_id(noise()["train"][0][0])), "train",
     r"each id once in .*train_labels\.csv, but found 1 repeats \([0-9a-f]{40}\); remove them"),
    (write_kaggle, edit("train_labels.csv", "id", 4, "unheard-of"), "train",
     r"a file .*/train/<id>\.tif for each id in .*, but found none for 1 of them \(unheard-of\); unpack"),
    (write_kaggle, text("train/extra.tif", ""), "valid",
     r"a row in .*train_labels\.csv for each file in .*/train, but found none for 1 of them \(extra\); move"),
    (write_kaggle, lambda root: (root / "train").rename(root / "training"), "train",
     r"a folder .*/train beside train_labels\.csv, but found none; unpack"),
    (write_kaggle, cut("train/*.tif"), "train", r"an image in .*\.tif, but it cannot be read"),
    (write_kaggle, text("slides.csv", "id,slide\nunheard-of,one\n"), "train",
     r"slides\.csv to tell the slide of each patch in .*, but found none for 40 of 40 .*; complete it, or move"),
    (write_kaggle, several(text("one.csv", "id,slide\n"), text("two.csv", '"id","wsi"\n')), "train",
     r"one CSV with the columns id and slide in .*, but found one\.csv, two\.csv; move all but one"),
    (write_kaggle, lambda root: pd.read_csv(root / "train_labels.csv").assign(slide="alone").drop(columns="label")
     .to_csv(root / "slides.csv"), "train", r"at least two slides in .*, but found only alone; move"),
    (write_kaggle, text("Slides.csv", "patch,slide\n"), "train",
     r"the columns id and slide in .*Slides\.csv, but found patch, slide; rename its columns, or move it away"),
    (write_kaggle, several(remove("train_labels.csv"), lambda root: (root / "train_labels.csv").mkdir()), "train",
     r"a CSV in .*train_labels\.csv, but it is a folder; mend"),
    (write_kaggle, several(remove("train_labels.csv"), lambda root: os.mkfifo(root / "train_labels.csv")), "train",
     r"a CSV in .*train_labels\.csv, but it is a named pipe; mend"),
    (write_kaggle, several(remove("train_labels.csv"), lambda root: (root / "train_labels.csv").symlink_to("gone")),
     "train", r"a CSV in .*train_labels\.csv, but it is a link to nothing; mend"),
    (write_kaggle, lambda root: (root / "slides.csv").mkdir(), "train",
     r"a CSV in .*slides\.csv, but it is a folder; mend"),
    (write_kaggle, lambda root: os.mkfifo(root / "slides.csv"), "train", r"slides\.csv, but it is a named pipe; mend"),
    (write_kaggle, text("train_labels.csv", "id,label,label\na,0,1\n"), "train",
     r"the columns id, label in .*train_labels\.csv, but found label more than once; fetch"),
    # Folders
    (write_course, lambda root: None, "test", r"labels for the split 'test' of .* \(course folders\), but .*/test has"),
    (write_classes, lambda root: (root / "train" / "2").mkdir(), "train",
     r"only the classes 0 \(normal\) and 1 \(tumour\) in .*/train, but found also 2; move"),
    (write_classes, lambda root: (root / "train" / "0").rename(root / "zero"), "train",
     r"a folder .*/train/0 with the patches of class 0 \(normal\), but found none; both"),
    (write_classes, lambda root: [path.unlink() for path in (root / "train" / "1").iterdir()], "train",
     r"images \(jpg, .*\) of class 1 \(tumour\) in .*/train/1, but found none"),
    (write_classes, lambda root: (root / "val" / "0").mkdir(parents=True), "train",
     r"one folder for the split 'valid', but found both .*/valid and .*/val; remove"),
    (write_classes, image("train/0/*", "L", (96, 96)), "train", r"8-bit RGB, but .*\.png has mode 'L'; convert"),
    (write_classes, image("train/0/*", "RGB", (50, 96)), "train", r"96x96 pixels, but .*\.png has 50x96; remove"),
    (write_classes, text("train/0/text.jpg", "no image"), "train",
     r"an image in .*text\.jpg, but it cannot be read \(it is no image of a known format\); replace"),
    # Parquet
    (write_parquet, remove("data/train-00001*"), "train",
     r"2 files of the split 'train' in .*, as the name .* says, but found 1; fetch the others"),
    (write_parquet, in_parquet("label", "target"), "valid",
     r"the columns image and label in .*\.parquet, but found image, target; rename"),
    (write_parquet, in_parquet("label", 3), "valid", r"in .*validation.*, but found 1 others, the first '3' in row 2"),
    (write_parquet, in_parquet("label", None), "valid", r"but found 1 others, the first 'nan' in row 2"),
    (write_parquet, in_parquet("image", {"bytes": None, "path": None}), "valid", r"an image in row 2 of .*validation"),
    (write_parquet, in_parquet("image", {"bytes": b"no", "path": None}), "valid", r"an image in row 2 of .*validation"),
    (write_parquet, cut("data/valid*"), "valid", r"whole file in .*\.parquet, but it cannot be read"),
    (write_parquet, replace_parquet(image=["images/0.png"] * 4), "valid",
     r"the column image in .*validation.* to hold encoded images, .*, but found the type (large_)?string; write"),
    (write_parquet, replace_parquet(image=[[encode(IMAGE)]] * 4), "valid",
     r"but found the type list<element: binary>; write"),
    (write_parquet, replace_parquet(image=[IMAGE.ravel().tolist()] * 4), "valid",
     r"found the type list<.*: int64>; write"),
    (write_parquet, replace_parquet(image=[{"bytes": {"content": b"a"}}] * 4), "valid",
     r"found the type struct<bytes: struct"),
    (write_parquet, replace_parquet(image=[{"path": "images/0.png"}] * 4), "valid",
     r"but found the type struct<path: .*; write"),
    (write_parquet, replace_parquet(image=[{"bytes": None, "path": "images/0.png"}] * 4), "valid",
     r"an image in row 0 of .*validation.*, but its bytes are missing; write the content"),
    (write_parquet, replace_parquet(label=[[0], [1], [0], [1]]), "valid",
     r"the label of each patch in .*validation.* as a number, but found the type list<element: int64>; write 0 or 1"),
    (write_parquet, lambda root: two_labels(root / "data" / VALIDATION), "valid",
     r"one column label in .*validation.*, but found 2; remove or rename all but one"),
    (write_parquet, several(remove("data/validation*"), lambda root: os.mkfifo(root / "data" / VALIDATION)), "valid",
     r"a parquet file in .*validation.*, but it is a named pipe; mend"),
    (write_parquet, several(remove("data/validation*"), lambda root: (root / "data" / VALIDATION).mkdir()), "valid",
     r"a parquet file in .*validation.*, but it is a folder; mend"),
    # No form, or two forms
    (lambda root, patches: None, lambda root: None, "train",
     r"Expected PatchCamelyon in .* in one of the forms official HDF5 files \(.*\), Kaggle's files \(.*\), "
     r"class folders \(.*\), course folders \(.*\), parquet files \(.*\), but found nothing; set root"),
    (lambda root, patches: None, several(text("a.txt", "a"), text("b.html", "b")), "train",
     r"but found a\.txt, b\.html; set root"),
    (write_official, lambda root: write_classes(root, noise()), "train",
     r"one form of PatchCamelyon in .*, but found official HDF5 files and class folders; move"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "break_it", "split", "sentence"), FAULTS)
def test_what_is_wrong_is_said_in_a_sentence(
    write: Callable[[Path, Patches], None], break_it: Callable[[Path], None], split: SplitName, sentence: str,
    patches: Patches, tmp_path: Path,
) -> None:  # fmt: skip
    root = tmp_path / "patches"
    root.mkdir()
    write(root, patches)
    break_it(root)
    with pytest.raises(UserError, match=sentence):
        PCamDataModule(root, cache_dir=tmp_path / "cache").packed(split)
    assert not list((tmp_path / "cache").rglob("*.h5"))


def test_hidden_files_are_no_patches(patches: Patches, tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", patches)
    write_kaggle(tmp_path / "kaggle", patches)
    (tmp_path / "classes" / "train" / "0" / "._patch.jpg").write_bytes(b"\0")
    (tmp_path / "kaggle" / "train" / "._patch.tif").write_bytes(b"\0")
    for root in ("classes", "kaggle"):
        assert len(PCamDataModule(tmp_path / root, cache_dir=tmp_path / "cache").packed("train")) > 30


def test_where_nothing_lies_the_ways_on_are_named_ready_to_paste(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_layout(tmp_path / "data" / "pcam")
    assert str(raised.value) == (
        f"Expected a folder with PatchCamelyon at {tmp_path}/data/pcam, but found nothing there; set root to a folder "
        f"of yours (--data.root DIR), or fetch the data set (pcam download data/pcam; 8 GB), or make "
        f"synthetic patches (pcam synthesize --output data/synthetic) and train on them (--data.root "
        f"data/synthetic)."
    )


def test_a_name_that_no_folder_can_have_and_a_link_to_itself_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("n" * 300, "loop"):
        with pytest.raises(UserError, match=rf"at {tmp_path}/{name}, but found nothing there; set root to a folder"):
            PCamDataModule(tmp_path / name, cache_dir=tmp_path / "cache").packed("train")


@pytest.mark.parametrize("argument", ["root", "cache_dir"])
def test_the_home_of_a_user_who_is_not_there_is_refused(argument: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"Expected {argument} to be a path, but found ~nosuchuser/a, and there is no"):
        PCamDataModule(**{"root": tmp_path, argument: Path("~nosuchuser/a")})


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a folder with PatchCamelyon at .*file, but found a file; set root to the"):
        find_layout(tmp_path / "file")


def test_the_table_of_the_docs_lists_the_forms() -> None:
    lines = (REPOSITORY / "docs" / "data.md").read_text().splitlines()
    first = lines.index("| form | what lies in `DIR` |") + 2
    rows = [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), lines[first:])]
    assert [name for name, _ in rows] == [form.name for form in FORMS]
    for (_, contents), form in zip(rows, FORMS, strict=True):
        assert contents.startswith(form.contents)


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "found"), [("parquet_paths", "string"), ("parquet_listimg", "list<")])
def test_parquet_of_bug_reports_is_answered(folder: str, found: str, real_data: Path, tmp_path: Path) -> None:
    data = PCamDataModule(real_data / "cases" / folder, cache_dir=tmp_path)
    with pytest.raises(UserError, match=rf"image in .* to hold encoded images, .*, but found the type {found}"):
        data.packed("train")
    assert [finding.fault is None for finding in verify(data)] == [False, False]


def test_control_characters_in_names_are_escaped_in_messages(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m\n.txt").touch()
    with pytest.raises(UserError, match=r"but found a\\x1b\[31m\\n\.txt; set root"):
        find_layout(tmp_path)


@pytest.mark.slow  # takes some seconds
def test_looking_at_data_needs_no_lightning() -> None:
    command = "import sys, pcam.data.layouts, pcam.data.inputs; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False, cwd=REPOSITORY).returncode == 0
