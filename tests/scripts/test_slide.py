"""The commands slide and cut through their front door: what they write of slides with a known truth."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import pyvips
import shapely.geometry
import torch
from numpy.typing import NDArray
from PIL import Image

from pcam.__main__ import main as pcam
from pcam.commands.prepare_data import main as prepare_data
from pcam.commands.slide import main as slide
from pcam.data.stain import Staining, scale_stains
from pcam.errors import UserError
from pcam.slides import score_slide
from pcam.slides.slide import Slide
from pcam.trained import TrainedRun
from tests.evaluation.test_adaptation import stained
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence
from tests.slides.mosaics import mosaic, write_slide
from tests.slides.test_marked import asap, box

FILES = ["map.png", "regions.geojson", "scores.geojson", "scores.tif", "slide.json", "top.png"]


@pytest.fixture(scope="module")
def run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pixels(patch_root: Path) -> NDArray[np.uint8]:
    """Patches on white: those of the rows 4 and 5 of 12 have tumour, in the columns 3 to 6 of 9."""
    normal, tumour = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((patch_root / "valid" / label).iterdir())])
        for label in ("0", "1")
    )
    is_tissue, has_tumour = np.zeros((12, 9), dtype=bool), np.zeros((12, 9), dtype=bool)
    is_tissue[2:10, 1:8] = has_tumour[4:6, 3:7] = True
    return mosaic(normal, tumour, has_tumour, is_tissue)[0]


@pytest.fixture(scope="module")
def slides(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with tumour and a normal one, of half the resolution of CAMELYON16's."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(pixels, folder / "tumour.svs", zoom=2, mpp=0.486, aperio=True)
    write_slide(np.delete(pixels, np.s_[96 * 4 : 96 * 6], axis=0), folder / "normal.tif", zoom=2, mpp=0.486)
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    (folder / "tumour.xml").write_text(asap(("_0", box(2 * 96 * 3, 2 * 96 * 4, 2 * 96 * 7, 2 * 96 * 6))))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow  # takes some seconds
def test_slides_become_maps_that_others_open(
    run: Path, slides: Path, truth: Path, pixels: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, args = tmp_path / "made", [str(run), str(slides), "--truth", str(truth), "--threshold", "youden"]
    slide([*args, "--output", str(output)])
    assert "Taken as normal, because" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "froc.png", "metrics.json", "normal", "roc.png", "slides.csv", "tumour",
    ]  # fmt: skip
    assert sorted(path.name for path in (output / "tumour").iterdir()) == FILES
    image = pyvips.Image.tiffload(str(output / "tumour" / "scores.tif"))
    scores = image.numpy()
    assert (scores.shape, scores.dtype) == ((36, 27), np.float32)
    assert (1000 / image.xres, 1000 / image.yres) == pytest.approx((31.104, 31.104), rel=1e-6)
    scored = np.argwhere(~np.isnan(scores))
    windows = np.stack([pixels[32 * row - 32 : 32 * row + 64, 32 * col - 32 : 32 * col + 64] for row, col in scored])
    network = TrainedRun.load(run).network
    with torch.inference_mode():
        expected = network(torch.from_numpy(windows).permute(0, 3, 1, 2)).sigmoid().numpy()
    assert scores[tuple(scored.T)] == pytest.approx(expected, abs=1e-5)
    record = json.loads((output / "tumour" / "slide.json").read_text())
    assert record["windows"] == len(scored) >= 22 * 19
    regions, squares = (
        json.loads((output / "tumour" / f"{name}.geojson").read_text())["features"] for name in ("regions", "scores")
    )
    above = np.count_nonzero(scores > record["threshold"])
    assert len(squares) == above > 0
    polygons = [shapely.geometry.shape(one["geometry"]) for one in regions]
    assert sum(polygon.area for polygon in polygons) == pytest.approx(above * 64**2)
    assert all(shapely.box(0, 0, 2 * 96 * 9, 2 * 96 * 12).contains(polygon) for polygon in polygons)
    assert shapely.union_all([shapely.geometry.shape(one["geometry"]) for one in squares]).equals(
        shapely.union_all(polygons)
    )
    assert {one["properties"]["objectType"] for one in squares} == {"detection"}
    assert {one["properties"]["objectType"] for one in regions} == {"annotation"}
    rows = {Path(row["slide"]).name: row for row in table(output / "slides.csv")}
    assert float(rows["tumour.svs"]["maximum"]) == pytest.approx(np.nanmax(scores))
    assert float(rows["tumour.svs"]["area_above_threshold_mm2"]) == pytest.approx(above * 0.031104**2, rel=1e-5)
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["slides"], metrics["slides_with_tumour"], metrics["lesions"]) == (2, 1, 1)
    assert metrics["squares_with_tumour"] == 6 * 12
    before = (output / "tumour" / "scores.tif").stat().st_mtime_ns
    slide([*args, "--output", str(output)])
    assert "done before" in capsys.readouterr().out
    assert (output / "tumour" / "scores.tif").stat().st_mtime_ns == before
    assert json.loads((output / "metrics.json").read_text()) == metrics
    with pytest.raises(UserError, match=r"Expected a threshold from 0 to 1, or one of 0.5, .* but found 'none'"):
        score_slide(TrainedRun.load(run), slides / "tumour.svs", threshold="none")
    everything = score_slide(TrainedRun.load(run), slides / "tumour.svs", threshold=np.float32(0))
    assert everything.to_geojson() != score_slide(TrainedRun.load(run), slides / "tumour.svs", threshold=1).to_geojson()
    found = score_slide(TrainedRun.load(run), slides / "tumour.svs", threshold="youden")
    assert found.map == pytest.approx(scores, abs=1e-6, nan_ok=True)
    assert [one["geometry"] for one in found.to_geojson()["features"]] == [one["geometry"] for one in regions]


@pytest.mark.slow  # takes some seconds
def test_a_slide_is_scored_by_a_network_that_is_adapted_to_it_if_there_is_enough_tissue(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pale, is_tissue = stained(56), np.pad(np.ones((8, 7), dtype=bool), 2)
    dark = scale_stains(pale, torch.tensor([[1.3, 1.5, 1.0]]).expand(56, 3))
    monkeypatch.setattr(TrainedRun, "training_staining", lambda _: Staining(0.7, 0.4))  # that of noise is none
    (tmp_path / "slides").mkdir()
    for name, patches in (("pale", pale), ("dark", dark)):
        tissue = patches.permute(0, 2, 3, 1).round().numpy().astype(np.uint8)
        pixels, _ = mosaic(tissue, tissue[:0], np.zeros_like(is_tissue), is_tissue)
        write_slide(pixels, tmp_path / "slides" / f"{name}.tif", zoom=1, mpp=0.972)
    args = [str(run), str(tmp_path / "slides"), "--threshold", "0.5", "--adapt"]

    def scores(*words: str) -> list[NDArray[np.float32]]:
        output = tmp_path / "_".join(words)
        slide([*args, *words, "--output", str(output)])
        maps = [pyvips.Image.tiffload(str(output / name / "scores.tif")).numpy() for name in ("pale", "dark")]
        return [one[~np.isnan(one)] for one in maps]

    as_trained = scores("slide", "--checkpoint", "last")
    assert capsys.readouterr().out.count("fewer than 256 windows of tissue side by side to adapt to") == 2
    monkeypatch.setattr("pcam.slides.adapting.MIN_PATCHES", 20)
    monkeypatch.setattr("pcam.trained.MIN_PATCHES", 20)
    to_each, to_all = scores("slide"), scores("all")
    # Alone, the two are brought to the same mean amounts of stain; together they keep what is between them.
    means = [abs(pale.mean() - dark.mean()) for pale, dark in (as_trained, to_each, to_all)]
    assert means[1] < means[0] / 2
    assert means[1] < means[2] / 2
    before = (tmp_path / "slide" / "pale" / "scores.tif").stat().st_mtime_ns
    scores("slide")
    assert (tmp_path / "slide" / "pale" / "scores.tif").stat().st_mtime_ns == before
    # Another slide in the place of one that both were adapted to: both are scored again.
    before = (tmp_path / "all" / "pale" / "scores.tif").stat().st_mtime_ns
    shutil.copy(tmp_path / "slides" / "pale.tif", tmp_path / "slides" / "dark.tif")
    scores("all")
    assert (tmp_path / "all" / "pale" / "scores.tif").stat().st_mtime_ns > before


def test_a_slide_that_cannot_be_read_is_named_and_the_others_are_scored(
    run: Path, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(slides / "normal.tif", tmp_path / "good.tif")
    (tmp_path / "text.svs").write_text("no slide")
    args = [str(run), str(tmp_path), "--output", str(tmp_path / "out"), "--threshold", "0.5"]
    said = sentence(capsys, slide, args, 1)
    assert "Expected to score every slide, but 1 of 2 failed (the first: Expected an image" in said
    assert sorted(path.name for path in (tmp_path / "out" / "good").iterdir()) == FILES
    assert [row["slide"] for row in table(tmp_path / "out" / "slides.csv")] == [str(tmp_path / "good.tif")]
    assert not (tmp_path / "out" / "text").exists()


@pytest.mark.slow  # takes some seconds
def test_a_signal_leaves_nothing_half_written_and_the_slide_is_gone_on_with(
    run: Path, pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write_slide(np.tile(pixels, (2, 1, 1)), tmp_path / "slide.tif", zoom=1, mpp=0.972)
    args = [str(run), str(path), "--output", str(tmp_path / "out"), "--threshold", "0.5", "--batch_size", "16"]
    logits, windows = TrainedRun.logits, []

    def stopped(self: TrainedRun, patches: NDArray[np.uint8], **options: int) -> NDArray[np.float32]:
        windows.append(len(patches))
        if sum(windows) > 850:  # the first of three blocks has about 690
            os.kill(os.getpid(), signal.SIGTERM)
        return logits(self, patches, **options)

    monkeypatch.setattr(TrainedRun, "logits", stopped)
    assert sentence(capsys, slide, args, 128 + signal.SIGTERM).endswith("Stopped.")
    assert [path.name for path in (tmp_path / "out" / "slide").iterdir()] == ["unfinished.npz"]
    monkeypatch.setattr(TrainedRun, "logits", logits)
    slide(args)
    assert sorted(path.name for path in (tmp_path / "out" / "slide").iterdir()) == FILES
    whole = score_slide(TrainedRun.load(run), path, threshold=0.5).map
    found = pyvips.Image.tiffload(str(tmp_path / "out" / "slide" / "scores.tif")).numpy()
    assert found == pytest.approx(whole, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nowhere.svs"], "Expected a slide or an image at nowhere.svs, but there is no such file"),
        (["empty"], "in the folder empty, but found none"),
        (["a/one.tif", "b/one.tif"], "found a second 'one', b/one.tif; score it apart"),
        (["a/one.tif", "--mpp", "1e9"], "Expected --mpp from 0.01 to 10 um per pixel"),
        (["a/one.tif", "--tissue", "empty"], "a file that marks the tissue of a/one.tif in empty, but found none"),
        (["a/one.tif", "--truth", "empty"], "named as they are (such as one.xml), but found none; correct --truth"),
        (["a/one.tif", "a/two.tif", "--truth", "a/one.tif"], "a folder with a file for each of 2 slides, but found"),
        (
            ["a/one.tif", "--output", "taken"],
            "Expected to write a PNG picture to taken/one/map.png, but found a file of",
        ),
        (["a/one.tif", "--output", "run"], "run/slides.csv lies in the run folder"),
    ],
)
def test_what_makes_no_sense_is_refused(
    args: list[str], expected: str, run: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    for name in ("a/one.tif", "a/two.tif", "b/one.tif"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(slides / "normal.tif")
    Path("empty").mkdir()
    Path("taken/one").mkdir(parents=True)
    Path("taken/one/map.png").write_text("a user's own")
    assert expected in sentence(capsys, slide, ["run", *args, "--threshold", "0.5"], 1)
    assert Path("taken/one/map.png").read_text() == "a user's own"
    assert not list(Path("slides").glob("**/*.*"))


def test_a_threshold_that_cannot_be_found_is_said(
    run: Path, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(run), str(slides), "--output", str(tmp_path / "out"), "--data.root", str(tmp_path / "nowhere")]
    said = sentence(capsys, slide, args, 1)
    assert "Expected the threshold specificity_95 of" in said
    assert said.endswith("run pcam evaluate where its data are, or take --threshold 0.5.")


def cut(slides: Path, truth: Path, output: Path, *more: str) -> list[dict[str, str]]:
    prepare_data(["cut", str(slides), "--truth", str(truth), "--output", str(output), *more])
    return table(output / "train" / "patches.csv")


def test_patches_are_cut_by_the_rules_of_patchcamelyon(
    slides: Path, truth: Path, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    rows = cut(slides, truth, tmp_path / "all")
    assert {row["slide"] for row in rows} == {"normal.tif", "tumour.svs"}
    assert {(row["x"], row["y"]) for row in rows if row["label"] == "1"} == {
        (str(192 * column), str(192 * row)) for column in range(3, 7) for row in (4, 5)
    }
    for row in rows:
        with Image.open(tmp_path / "all" / "train" / row["id"]) as image:
            patch = np.asarray(image)
        x, y = int(row["x"]) // 2, int(row["y"]) // 2
        if row["slide"] == "tumour.svs":
            assert np.array_equal(patch, pixels[y : y + 96, x : x + 96])
        assert patch.min() < 230  # the white places are left out
    assert len(rows) == 2 * 7 * 8 - 14
    assert sum(row["label"] == "1" for row in rows) == 8
    files = {str(path.relative_to(tmp_path / "all" / "train")) for path in (tmp_path / "all").rglob("*.png")}
    assert files == {row["id"] for row in rows}


def test_balanced_patches_are_as_many_of_each_class_and_the_seed_decides_which(
    slides: Path, truth: Path, tmp_path: Path
) -> None:
    found = [
        cut(slides, truth, tmp_path / name, "--balanced", "--seed", seed)
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    assert [sum(row["label"] == label for row in found[0]) for label in "01"] == [8, 8]
    assert found[0] == found[1] != found[2]
    files = {str(path.relative_to(tmp_path / "a" / "train")) for path in (tmp_path / "a").rglob("*.png")}
    assert files == {row["id"] for row in found[0]}
    assert len(cut(slides, truth, tmp_path / "few", "--per_slide", "20")) == 40


def test_a_cut_that_fails_leaves_nothing(
    slides: Path, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["cut", str(slides / "normal.tif"), "--truth", str(truth / "tumour.xml"), "--output", str(tmp_path / "x")]
    (tmp_path / "x" / "train").mkdir(parents=True)
    (tmp_path / "x" / "train" / "own.txt").write_text("a user's own")
    assert "is a folder that is not empty; choose another" in sentence(capsys, pcam, args, 1)
    (tmp_path / "x" / "train" / "own.txt").unlink()
    (tmp_path / "empty.xml").write_text(asap())
    args[3] = str(tmp_path / "empty.xml")
    assert "Expected patches of both classes, but found 42 normal ones and 0 with" in sentence(capsys, pcam, args, 1)
    monkeypatch.setattr(Slide, "read", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    sentence(capsys, pcam, args, 143)
    assert [path.name for path in (tmp_path / "x").rglob("*")] == ["train"]
