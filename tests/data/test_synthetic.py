"""The synthetic patches follow the label rule, and only their centre tells the classes apart."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pcam.data.painting import draw_patch
from pcam.data.synthetic import iterate_patches, synthesize, write_class_folders
from pcam.errors import UserError
from pcam.options import SplitName
from pcam.patches import CENTRE_START, CENTRE_STOP, PATCH_SIZE, PatchArray

CENTRE = slice(CENTRE_START, CENTRE_STOP)
COUNTS: dict[SplitName, int] = {"train": 7, "valid": 4, "test": 2}

Labelled = tuple[PatchArray, NDArray[np.uint8]]
Masked = tuple[PatchArray, NDArray[np.bool_]]


@pytest.fixture(scope="module")
def many() -> Labelled:
    """Enough patches for the standard error of an AUROC to be .02."""
    return synthesize(800, seed=3)


@pytest.fixture(scope="module")
def twins() -> tuple[Masked, Masked]:
    """Patches and tumour masks of class 0 and of class 1, drawn with the same random numbers."""

    def draw(label: int) -> Masked:
        patches, masks = zip(*(draw_patch(np.random.default_rng(seed), label) for seed in range(100)), strict=True)
        return np.stack(patches), np.stack(masks)

    return draw(0), draw(1)


def cross_validated_auroc(features: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """AUROC of a linear classifier on patches it was not fitted to."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(model, features, labels, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def test_patches_are_96_by_96_rgb_bytes_and_classes_alternate() -> None:
    patches, labels = synthesize(5, seed=0)
    assert patches.shape == (5, PATCH_SIZE, PATCH_SIZE, 3)
    assert patches.dtype == np.uint8
    assert labels.tolist() == [0, 1, 0, 1, 0]


def test_a_patch_depends_on_seed_stream_and_number_alone() -> None:
    long, _ = synthesize(8, seed=1, stream=2)
    short, _ = synthesize(3, seed=1, stream=2)
    np.testing.assert_array_equal(long[:3], short)
    one_at_a_time = np.stack([patch for patch, _ in iterate_patches(8, seed=1, stream=2)])
    np.testing.assert_array_equal(long, one_at_a_time)


def test_seeds_streams_and_numbers_give_different_patches() -> None:
    runs = [synthesize(4, seed=seed, stream=stream)[0] for seed in (0, 1) for stream in (0, 1)]
    assert len({patch.tobytes() for run in runs for patch in run}) == 16


def test_label_is_one_exactly_where_tumour_touches_the_centre(twins: tuple[Masked, Masked]) -> None:
    (_, normal_masks), (_, tumour_masks) = twins
    assert not normal_masks[:, CENTRE, CENTRE].any()
    assert tumour_masks[:, CENTRE, CENTRE].any(axis=(1, 2)).all()


def test_tumour_lies_in_the_ring_of_most_patches_of_both_classes(twins: tuple[Masked, Masked]) -> None:
    (_, normal_masks), _ = twins
    assert 0.5 < normal_masks.any(axis=(1, 2)).mean() < 1


def test_classes_differ_in_and_round_the_centre_only(twins: tuple[Masked, Masked]) -> None:
    (normal, normal_masks), (tumour, tumour_masks) = twins
    near = slice(CENTRE_START - 20, CENTRE_STOP + 20)
    ring = np.ones((PATCH_SIZE, PATCH_SIZE), dtype=bool)
    ring[near, near] = False
    np.testing.assert_array_equal(normal[:, ring], tumour[:, ring])
    np.testing.assert_array_equal(normal_masks[:, ring], tumour_masks[:, ring])
    assert (normal[:, CENTRE, CENTRE] != tumour[:, CENTRE, CENTRE]).any(axis=(1, 2, 3)).all()


@pytest.mark.slow  # takes some seconds
def test_mean_colour_does_not_tell_the_classes_apart(many: Labelled) -> None:
    patches, labels = many
    assert cross_validated_auroc(patches.mean(axis=(1, 2)), labels) < 0.6


def test_contrast_does_not_tell_the_classes_apart(many: Labelled) -> None:
    patches, labels = many
    features = np.concatenate([patches.mean(axis=(1, 2)), patches.std(axis=(1, 2))], axis=1)
    assert cross_validated_auroc(features, labels) < 0.65


def test_ring_does_not_tell_the_classes_apart(many: Labelled) -> None:
    patches, labels = many
    blocks = patches.reshape(-1, 8, 12, 8, 12, 3).mean(axis=(2, 4))
    ring = np.ones((8, 8), dtype=bool)
    ring[2:6, 2:6] = False  # the blocks that the centre touches
    assert cross_validated_auroc(blocks[:, ring].reshape(len(labels), -1), labels) == pytest.approx(0.5, abs=0.06)


def test_patches_are_stained_like_camelyon(many: Labelled) -> None:
    patches, _ = many
    red, green, blue = patches.mean(axis=(0, 1, 2))
    assert green < red < 200  # haematoxylin and eosin both take green
    assert green < blue < 200
    assert patches.mean(axis=(1, 2)).std(axis=0).min() > 10  # slides differ


def test_class_folders_hold_the_patches_of_synthesize(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "made", COUNTS, seed=4)
    for stream, (name, count) in enumerate(COUNTS.items()):
        patches, labels = synthesize(count, seed=4, stream=stream)
        files = sorted((tmp_path / "made" / name).glob("*/*"), key=lambda file: file.name)
        assert [(file.parent.name, file.name) for file in files] == [
            (str(label), f"patch{index:07d}.png") for index, label in enumerate(labels)
        ]
        np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), patches)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_class_folders(tmp_path / "empty", {"test": 2}, seed=0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty"]
    assert len(list((tmp_path / "empty").glob("test/*/*.png"))) == 2


def test_a_folder_that_is_not_empty_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"new or empty folder.*not empty; choose another"):
        write_class_folders(tmp_path, COUNTS, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("precious")
    with pytest.raises(UserError, match=r"new or empty folder.*is a file; choose another"):
        write_class_folders(tmp_path / "made", COUNTS, seed=0)


def test_a_split_without_both_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at least 2 patches.*'valid', but got 1; ask for more"):
        write_class_folders(tmp_path / "made", {"train": 2, "valid": 1}, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed of at least 0, but got -1; choose another"):
        write_class_folders(tmp_path / "made", COUNTS, seed=-1)


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def save_until_the_disk_is_full(image: Image.Image, path: Path, compress_level: int) -> None:
        if path.name == "patch0000005.png":
            raise OSError("No space left on device")
        save(image, path, compress_level=compress_level)

    monkeypatch.setattr(Image.Image, "save", save_until_the_disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write_class_folders(tmp_path / "made", COUNTS, seed=0)
    assert not list(tmp_path.iterdir())
