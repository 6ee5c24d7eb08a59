"""WILDS Camelyon17 in both of its forms: the splits that WILDS makes of hospitals, and where each patch is from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pcam.commands.prepare_data import main as prepare_data
from pcam.data import PCamDataModule
from pcam.data.layouts import find_layout, read_image
from pcam.data.stain import STAINS
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import PatchArray
from tests.data.forms import HOSPITAL_STAINS, noise, write_camelyon17, write_camelyon17_parquet

WRITERS = {"folder": write_camelyon17, "parquet": write_camelyon17_parquet}
FORM_NAMES = {"folder": "WILDS Camelyon17", "parquet": "WILDS Camelyon17 as parquet files"}

Written = Callable[[Path, PatchArray, NDArray[np.uint8]], pd.DataFrame]


@pytest.fixture(scope="module")
def patches() -> tuple[PatchArray, NDArray[np.uint8]]:
    return noise({"train": (60, 60)})["train"]


def rows_of(table: pd.DataFrame, split: SplitName) -> pd.DataFrame:
    """The rows of a split, by the rules of WILDS."""
    id_train = ~table["center"].isin([1, 2]) & (table["split"] == 0)
    return table[{"train": id_train, "valid": table["center"] == 1, "test": table["center"] == 2}[split]]


@pytest.mark.parametrize("form", WRITERS)
def test_the_splits_are_made_of_hospitals_and_id_val_is_left_out(
    form: str, patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path
) -> None:
    table = WRITERS[form](tmp_path / "wilds", *patches)
    assert find_layout(tmp_path / "wilds").form.name == FORM_NAMES[form]
    data = PCamDataModule(tmp_path / "wilds", cache_dir=tmp_path / "cache")
    seen = 0
    for split in ("train", "valid", "test"):
        expected, store = rows_of(table, split), data.packed(split)
        assert (len(store), int(store.labels.sum())) == (len(expected), int(expected["tumor"].sum()))
        found = pd.DataFrame(store.origins())
        assert sorted(
            zip(found["slide"], found["patient"], found["hospital"], store.labels.tolist(), strict=True)
        ) == sorted(
            (f"patient_{row.patient}_node_{row.node}", f"patient_{row.patient}", f"hospital_{row.center}", row.tumor)
            for row in expected.itertuples()
        )
        assert store.slides() == found["slide"].tolist()
        store.verify()
        seen += len(store)
    assert seen == len(table) - ((table["split"] == 1) & ~table["center"].isin([1, 2])).sum()


def test_both_forms_give_the_same_stores(patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path) -> None:
    stores = []
    for form, write in WRITERS.items():
        write(tmp_path / form, *patches)
        data = PCamDataModule(tmp_path / form, cache_dir=tmp_path / "cache")
        stores.append([data.packed(split) for split in ("train", "valid", "test")])
    for one, other in zip(*stores, strict=True):
        assert one.fingerprint == other.fingerprint
        assert one.origins() == other.origins()


def test_the_folder_itself_can_be_given_and_its_ids_lead_back_to_the_file(
    patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path
) -> None:
    table = write_camelyon17(tmp_path, *patches).set_index("name")
    base = tmp_path / "camelyon17_v1.0"
    store = PCamDataModule(base, cache_dir=tmp_path / "cache").packed("test")
    for row, name in enumerate(store.ids()):
        assert np.array_equal(store.patches[row], read_image(base / "patches" / name))
        assert table.loc[name, "center"] == 2


def test_transparent_pixels_are_read_as_wilds_reads_them(
    patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path
) -> None:
    table = write_camelyon17(tmp_path / "wilds", *patches)
    name = rows_of(table, "test")["name"].iloc[0]
    path = tmp_path / "wilds" / "camelyon17_v1.0" / "patches" / name
    image = Image.open(path)
    image.putalpha(0)  # what a scanner did not scan
    image.save(path)
    store = PCamDataModule(tmp_path / "wilds", cache_dir=tmp_path / "cache").packed("test")
    assert np.array_equal(store.patches[store.ids().index(name)], np.asarray(image.convert("RGB")))


def test_what_wilds_leaves_to_its_code_is_said(
    patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_camelyon17(tmp_path / "wilds", *patches)
    notes = [find_layout(tmp_path / "wilds").split(split).note for split in ("train", "valid", "test")]
    assert "calls id_val is left out: it is from the slides of train" in notes[0]
    assert "hospital 1, which WILDS calls val" in notes[1]
    assert "CAMELYON16, of which PatchCamelyon is made, came from two of the five hospitals" in notes[1]
    assert "hospital 2" in notes[2]


def test_an_incomplete_archive_is_refused(patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path) -> None:
    table = write_camelyon17(tmp_path, *patches)
    (tmp_path / "camelyon17_v1.0" / "patches" / rows_of(table, "test")["name"].iloc[0]).unlink()
    layout = find_layout(tmp_path)
    assert layout.split("valid")
    with pytest.raises(
        UserError, match=r"an image in .*patches for each row .* none for 1 of the 24 of the split 'test'"
    ):
        layout.split("test")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "3", r"Expected 0 \(train\) or 1 \(id_val\) as the split of .* found 1 others \(3\)"),
        ("center", "two", r"Expected a whole number as the center of each patch .* the first 'two' in row 0"),
        ("node", "", r"Expected a whole number as the node of each patch .* the first '' in row 0"),
    ],
)
def test_a_table_with_other_values_is_refused(
    column: str, value: str, message: str, patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path
) -> None:
    write_camelyon17(tmp_path, *patches)
    path = tmp_path / "camelyon17_v1.0" / "metadata.csv"
    table = pd.read_csv(path, dtype=str, index_col=0)
    table.iloc[0, table.columns.get_loc(column)] = value
    table.to_csv(path)
    with pytest.raises(UserError, match=message):
        find_layout(tmp_path).split("train")


def test_parquet_without_what_tells_the_hospital_is_refused(
    patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path
) -> None:
    write_camelyon17_parquet(tmp_path / "wilds", *patches)
    path = tmp_path / "wilds" / "data" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["node"]), path)
    with pytest.raises(UserError, match=r"Expected the columns image, label, center, node and patient in .*test"):
        PCamDataModule(tmp_path / "wilds", cache_dir=tmp_path / "cache").packed("test")


def test_audit_says_that_id_val_is_left_out(
    patches: tuple[PatchArray, NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_camelyon17(tmp_path / "wilds", *patches)
    with caplog.at_level("INFO"):
        prepare_data(
            ["audit", str(tmp_path / "wilds"), "--output", str(tmp_path / "a"), "--cache_dir", str(tmp_path / "c")]
        )
    assert "id_val is left out" in caplog.text


@pytest.mark.real_data
def test_real_patches_of_five_hospitals_come_back_as_they_were_stained(real_data: Path, tmp_path: Path) -> None:
    files = [sorted((real_data / "pcam" / "valid" / str(label)).iterdir())[:60] for label in (0, 1)]
    images = np.stack([read_image(path) for pair in zip(*files, strict=True) for path in pair])
    labels = np.tile(np.array([0, 1], dtype=np.uint8), 60)
    fingerprints = []
    for form, write in WRITERS.items():
        table = write(tmp_path / form, images, labels)
        data = PCamDataModule(tmp_path / form, cache_dir=tmp_path / "cache")
        stores = {split: data.packed(split) for split in ("train", "valid", "test")}
        fingerprints.append([store.fingerprint for store in stores.values()])
        for split, (haematoxylin, eosin) in {"valid": HOSPITAL_STAINS[1], "test": HOSPITAL_STAINS[2]}.items():
            before = stain_amounts(images[table["center"] == {"valid": 1, "test": 2}[split]])
            assert stain_amounts(stores[split].patches)[:2] / before[:2] == pytest.approx(
                [haematoxylin, eosin], rel=0.05
            )
    assert fingerprints[0] == fingerprints[1]


def stain_amounts(images: PatchArray) -> NDArray[np.float64]:
    """The mean amount of each stain, by the linear map of Ruifrok and Johnston."""
    return np.mean(-np.log((images + 1.0) / 256) @ np.linalg.inv(np.array(STAINS)), axis=(0, 1, 2))
