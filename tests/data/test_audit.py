"""Audits of patches with planted faults: each is found, and nothing else is."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from scipy.spatial.distance import cdist

from pcam.commands.prepare_data import main as prepare_data
from pcam.data import PCamDataModule
from pcam.data.audit import Audit, Likeness, audit
from pcam.data.near_repeats import MAX_DISTANCE, MIN_CORRELATION, Look, close_pairs
from pcam.data.synthetic import iterate_patches
from tests.data.forms import noise, write_kaggle, write_official

Pixels = NDArray[np.uint8]
COUNTS = {"train": 20, "valid": 12, "test": 8}


@pytest.fixture(scope="module")
def painted() -> dict[str, list[tuple[Pixels, int]]]:
    return {
        split: list(iterate_patches(count, seed=3, stream=stream))
        for stream, (split, count) in enumerate(COUNTS.items())
    }


@pytest.fixture
def root(painted: dict[str, list[tuple[Pixels, int]]], tmp_path: Path) -> Path:
    """Class folders without a fault, for a test to plant some."""
    root = tmp_path / "patches"
    for split, patches in painted.items():
        for index, (patch, label) in enumerate(patches):
            plant(root, f"{split}/{label}/{index}", patch)
    return root


def plant(root: Path, patch_id: str, patch: Pixels) -> str:
    path = root / f"{patch_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patch).save(path, compress_level=1)
    return f"{patch_id}.png"


def as_jpeg(patch: Pixels, quality: int = 75) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(patch).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def run(root: Path) -> Audit:
    return audit(PCamDataModule(root, cache_dir=root.parent / "cache"))


def ids(found: Likeness) -> tuple[str, str]:
    return found.first.id, found.second.id


def test_nothing_is_found_where_nothing_is(root: Path) -> None:
    found = run(root)
    assert found.repeats == found.near_repeats == found.look_alikes == found.almost_empty == []
    assert found.skipped == {}
    assert found.leak() is None
    assert {split: counts.patches for split, counts in found.counts().items()} == COUNTS
    assert {split: counts.tumour for split, counts in found.counts().items()} == {"train": 10, "valid": 6, "test": 4}


def test_repeats_within_and_across_splits_are_found(root: Path, painted: dict[str, list[tuple[Pixels, int]]]) -> None:
    patch, label = painted["train"][0]
    plant(root, f"valid/{label}/copy", patch)
    within, label_within = painted["valid"][1]
    plant(root, f"valid/{label_within}/copy 1", within)
    plant(root, f"valid/{label_within}/copy 2", within)
    found = run(root)
    assert sorted({found_patch.id for found_patch in group} for group in found.repeats) == sorted(
        [
            {f"train/{label}/0.png", f"valid/{label}/copy.png"},
            {f"valid/{label_within}/{name}.png" for name in ("1", "copy 1", "copy 2")},
        ]
    )
    assert not found.near_repeats
    assert [(counts.groups_of_repeats, counts.extra_copies) for counts in found.counts().values()] == [
        (0, 0),
        (1, 2),
        (0, 0),
    ]
    assert {pair: shared.identical for pair, shared in found.shared().items()} == {
        ("train", "valid"): 1,
        ("train", "test"): 0,
        ("valid", "test"): 0,
    }
    assert found.leak() == "1 identical and 0 nearly identical patches shared by train and valid"


def test_jpeg_copies_in_other_splits_are_found(root: Path, painted: dict[str, list[tuple[Pixels, int]]]) -> None:
    expected = {
        (f"train/{label}/{index}.png", plant(root, f"test/{label}/copy {index}", as_jpeg(patch)))
        for index, (patch, label) in enumerate(painted["train"])
    }
    found = run(root)
    assert {ids(near) for near in found.near_repeats} == expected
    assert all(near.distance <= MAX_DISTANCE and near.correlation >= MIN_CORRELATION for near in found.near_repeats)
    assert found.shared()["train", "test"].near_repeats == len(expected)
    assert not found.repeats
    assert found.leak() == "0 identical and 20 nearly identical patches shared by train and test"


def test_a_jpeg_copy_within_a_split_is_not_looked_for(root: Path, painted: dict[str, list[tuple[Pixels, int]]]) -> None:
    patch, label = painted["train"][0]
    plant(root, f"train/{label}/copy", as_jpeg(patch))
    assert not run(root).near_repeats


def test_identical_patches_with_both_labels_are_conflicts(
    root: Path, painted: dict[str, list[tuple[Pixels, int]]]
) -> None:
    patch, label = painted["test"][0]
    plant(root, f"test/{1 - label}/other", patch)
    found = run(root)
    assert [{found_patch.label for found_patch in group} for group in found.conflicts()] == [{0, 1}]
    assert [counts.conflicting_groups for counts in found.counts().values()] == [0, 0, 1]


def test_almost_empty_patches_are_counted_and_not_compared(root: Path) -> None:
    rng = np.random.default_rng(0)
    empty = rng.integers(238, 242, (96, 96, 3), dtype=np.uint8)
    names = [plant(root, "train/0/empty", empty), plant(root, "valid/0/empty", empty ^ 1)]
    names.append(plant(root, "test/1/constant", np.zeros_like(empty)))
    found = run(root)
    assert [patch.id for patch in found.almost_empty] == names
    assert [counts.almost_empty for counts in found.counts().values()] == [1, 1, 1]
    assert found.near_repeats == found.look_alikes == []


def test_patches_alike_only_from_afar_are_no_repeats(root: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (16, 16, 1)).repeat(6, axis=0).repeat(6, axis=1)
    grain = rng.normal(0, 60, (2, 96, 96, 3))
    names = [
        plant(root, f"{split}/0/alike", np.clip(shapes + noise, 0, 255).astype(np.uint8))
        for split, noise in zip(("train", "valid"), grain, strict=True)
    ]
    found = run(root)
    assert [ids(like) for like in found.look_alikes] == [tuple(names)]
    assert found.look_alikes[0].correlation < MIN_CORRELATION
    assert found.leak() is None


def test_close_pairs_are_those_that_scipy_finds() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (700, 256), dtype=np.uint8)
    other_bits = np.concatenate([bits[:300], rng.integers(0, 2, (50, 256), dtype=np.uint8)])
    other_bits ^= rng.random(other_bits.shape) < 0.12
    contrast = np.full(700, 50, dtype=np.float32)
    contrast[:20] = 1
    looks = [Look(np.packbits(b, axis=1).view(np.uint64), contrast[: len(b)]) for b in (bits, other_bits)]
    with Progress() as progress:
        found = close_pairs(looks[0], looks[1], progress, "Comparing")
    distances = np.rint(256 * cdist(bits, other_bits, "hamming")).astype(int)
    distances[:20] = distances[:, :20] = 256
    rows, columns = np.nonzero(distances <= MAX_DISTANCE)
    assert 100 < len(rows) < 250  # some copies are nearer than the limit, some not
    assert found.tolist() == np.column_stack([rows, columns, distances[rows, columns]]).tolist()


def test_a_missing_split_is_skipped_and_said(root: Path, tmp_path: Path) -> None:
    (root / "test").rename(tmp_path / "elsewhere")
    found = run(root)
    assert found.skipped == {"test": "not there, or without labels"}
    assert list(found.shared()) == [("train", "valid")]
    console = Console(record=True, width=120)
    for table in found.tables():
        console.print(table)
    assert "not there" in console.export_text()


def test_shared_slides_are_named_if_slides_are_known(tmp_path: Path) -> None:
    write_official(tmp_path / "official", noise(), meta=True)
    meta = tmp_path / "official" / "camelyonpatch_level_2_split_test_meta.csv"
    meta.write_text(meta.read_text().replace("tumor_006", "tumor_099"))
    found = run(tmp_path / "official")
    assert {split: counts.slides for split, counts in found.counts().items()} == {"train": 8, "valid": 8, "test": 7}
    assert {pair: counts.slides for pair, counts in found.shared().items()} == {
        ("train", "valid"): 8,
        ("train", "test"): 6,
        ("valid", "test"): 6,
    }
    found.write(tmp_path)
    shared = json.loads((tmp_path / "audit.json").read_text())["shared"]
    assert shared[1]["slide_names"] == [f"camelyon16_train_tumor_{slide:03d}" for slide in (0, 1, 2, 3, 4, 5)]


def test_slides_that_are_not_known_are_said_to_be_so(tmp_path: Path) -> None:
    write_kaggle(tmp_path / "kaggle", noise({"train": (60, 60), "test": (2, 2)}))
    found = run(tmp_path / "kaggle")
    assert [counts.slides for counts in found.counts().values()] == [None, None]
    assert [counts.slides for counts in found.shared().values()] == [None]
    assert found.tables()[1].columns[-1]._cells == ["not known"]


def test_the_files_hold_what_was_found(
    root: Path, painted: dict[str, list[tuple[Pixels, int]]], tmp_path: Path
) -> None:
    patch, label = painted["train"][0]
    plant(root, f"valid/{label}/copy", patch)
    plant(root, f"test/{label}/copy", as_jpeg(patch))
    plant(root, "test/0/empty", np.full_like(patch, 240))
    found = run(root)
    found.write(tmp_path / "audit")
    contents = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert contents["splits"]["valid"]["patches"] == COUNTS["valid"] + 1
    assert contents["shared"][0] == {
        "splits": ["train", "valid"], "identical": 1, "near_repeats": 0, "look_alikes": 0, "slides": None,
        "slide_names": [],
    }  # fmt: skip
    assert {patch["id"] for patch in contents["repeats"][0]} == {f"train/{label}/0.png", f"valid/{label}/copy.png"}
    assert [near["first"]["split"] for near in contents["near_repeats"]] == ["train", "valid"]
    assert [patch["id"] for patch in contents["almost_empty"]] == ["test/0/empty.png"]
    with Image.open(tmp_path / "audit" / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_the_contact_sheet_shows_each_find_once(root: Path, painted: dict[str, list[tuple[Pixels, int]]]) -> None:
    (first, label), (second, _), (third, label_of_third), (fourth, label_of_fourth) = painted["train"][:4]
    plant(root, f"train/{1 - label}/both", first)
    plant(root, f"valid/{label}/both", first)
    plant(root, "valid/1/copy", second)
    plant(root, f"train/{1 - label_of_third}/conflict", third)
    plant(root, f"train/{label_of_fourth}/again", fourth)
    plant(root, "test/0/jpeg", as_jpeg(painted["train"][4][0]))
    plant(root, "test/0/empty", np.full_like(first, 240))
    found = run(root)
    figure = found.contact_sheet()
    titles = [axes.get_title().split("\n") for axes in figure.axes if axes.get_title()]
    assert [title[0].partition(" bits")[0].rstrip("0123456789 ") for title in titles] == [
        "identical, across splits, both labels",
        "identical, across splits",
        "near-repeat,",
        "identical, both labels",
        "identical, within a split",
        "almost empty",
    ]
    assert titles[1][1:] == ["train, tumour: train/1/1.png", "valid, tumour: valid/1/copy.png"]
    assert [axes.images[0].get_array().shape for axes in figure.axes[:6]] == [(96, 196, 3)] * 5 + [(96, 96, 3)]
    assert figure.get_suptitle() == "6 of 6 finds"


def test_names_that_look_like_formulas_or_markup_are_drawn_as_they_are(
    root: Path, painted: dict[str, list[tuple[Pixels, int]]]
) -> None:
    patch, label = painted["train"][0]
    plant(root, f"valid/{label}/$\\frac[", patch)
    plant(root, f"test/{label}/[red]$\x1b$", patch)
    found = run(root)
    figure = found.contact_sheet()
    figure.canvas.draw()
    assert "valid" in figure.axes[0].get_title() or "test" in figure.axes[0].get_title()
    assert "\x1b" not in figure.axes[0].get_title()


def test_the_script_ends_with_1_if_train_leaks(
    root: Path,
    painted: dict[str, list[tuple[Pixels, int]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["audit", str(root), "--output", str(tmp_path / "found"), "--cache_dir", str(tmp_path / "cache")]
    prepare_data(arguments)
    assert capsys.readouterr().err == ""
    patch, label = painted["train"][0]
    plant(root, f"test/{label}/copy", as_jpeg(patch))
    with pytest.raises(SystemExit) as ended:
        prepare_data(arguments)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "found 0 identical and 1 nearly identical patches shared by train and test; see" in said
    assert (tmp_path / "found" / "audit.json").is_file()


def test_the_data_folder_stays_untouched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_data(["audit", str(root), "--output", str(root / "audit")])
    assert ended.value.code == 1
    assert f"Expected a folder outside {root} for the audit, but found {root}/audit" in capsys.readouterr().err
    assert not (root / "audit").exists()


def test_patches_that_another_folder_has_too_are_found_by_their_pixels(
    root: Path, painted: dict[str, list[tuple[Pixels, int]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for index, (patch, label) in enumerate(iterate_patches(8, seed=4, stream=0)):
        plant(other, f"{'train' if index < 4 else 'test'}/{label}/{index}", patch)
    first, second = painted["valid"][:2]
    plant(other, f"test/{first[1]}/same", first[0])
    plant(other, f"test/{1 - second[1]}/relabelled", second[0])
    arguments = [
        "audit",
        str(root),
        str(other),
        "--output",
        str(tmp_path / "found"),
        "--cache_dir",
        str(tmp_path / "c"),
    ]
    prepare_data(arguments)  # valid and test of two folders: no leak
    contents = json.loads((tmp_path / "found" / "audit.json").read_text())["shared_with_other_folders"]
    assert [(pair["splits"], pair["identical"], pair["conflicts"]) for pair in contents if pair["identical"]] == [
        (["valid", "test"], 2, 1)
    ]
    assert sorted(found for _, found in contents[3]["ids"]) == sorted(
        [f"test/{first[1]}/same.png", f"test/{1 - second[1]}/relabelled.png"]
    )
    trained, label = painted["train"][3]
    plant(other, f"test/{label}/learnt", trained)
    with pytest.raises(SystemExit) as ended:
        prepare_data(arguments)
    assert ended.value.code == 1
    assert f"found 1 identical patches in train of {root} and test of {other}; see" in capsys.readouterr().err


@pytest.mark.real_data
def test_real_patches_repeat_within_splits_but_not_across(real_data: Path, tmp_path: Path) -> None:
    found = audit(PCamDataModule(real_data / "pcam", cache_dir=tmp_path))
    assert [counts.groups_of_repeats for counts in found.counts().values()] == [607, 80, 3]
    assert found.conflicts() == found.near_repeats == []
    assert all(shared.identical == 0 for shared in found.shared().values())
