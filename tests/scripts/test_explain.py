"""The command explain through its front door: what it measures over a split, the sheets, what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pcam.commands.explain import main
from pcam.evaluation import sheets
from pcam.evaluation.explain import centre_share, explain, explain_mean_score
from pcam.evaluation.figures import interval_words
from pcam.trained import TrainedRun
from tests.conftest import COUNTS, write_patches
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence


@pytest.fixture(scope="module")
def trained(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs whose networks have evidence in every patch: no weight after the features is negative."""
    runs_dir = tmp_path_factory.mktemp("runs")
    runs = [short_run("cnn", patch_root, cache_dir, runs_dir, "--seed_everything", seed) for seed in ("1", "2")]
    for run in runs:
        change(run, {"network.head.1.weight": torch.abs, "network.head.4.weight": torch.abs})
    return runs


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    """Copies for one test, of one name in different folders."""
    folders = ("first", "second")
    return [
        Path(shutil.copytree(run, tmp_path / folder / "cnn" / "version_0"))
        for run, folder in zip(trained, folders, strict=True)
    ]


@pytest.fixture
def run(runs: list[Path]) -> Path:
    return runs[0]


def change(run: Path, changes: dict[str, Callable[[Tensor], Tensor]]) -> None:
    """Change weights of the best checkpoint."""
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, function in changes.items():
        checkpoint["state_dict"][name] = function(checkpoint["state_dict"][name])
    torch.save(checkpoint, path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is drawn in sheets: patches, attributions, scores, labels, ids, title."""
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return overlay_sheet(*arguments)

    overlay_sheet = sheets.overlay_sheet
    monkeypatch.setattr(sheets, "overlay_sheet", spy)
    return calls


def record_of(run: Path, split: str = "valid") -> dict:
    return json.loads((run / "evaluation" / split / "explanation.json").read_text())


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.slow  # takes some seconds
def test_the_measure_is_that_of_every_patch_of_the_split(
    split: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcam.evaluation.explain.BATCH_SIZE", 4)  # several batches, the last one smaller
    main([str(run), "--split", split])
    assert {path.name for path in (run / "evaluation" / split).iterdir()} == {"explanation.json", "explanation.png"}
    assert [path.name for path in (run / "evaluation").iterdir()] == [split]
    record = record_of(run, split)
    trained = TrainedRun.load(run)
    store = trained.data.packed(split)
    attributions, _ = explain(trained.network, store[np.arange(len(store))].patches)
    shares = centre_share(attributions).numpy()
    assert (record["split"], record["checkpoint"], record["step"]) == (split, "best", 2)
    assert record["data_fingerprint"] == store.fingerprint
    assert record["chance"] == pytest.approx(1 / 9)
    assert list(record["centre_share"]) == ["normal", "tumour"]
    for label, measure in enumerate(record["centre_share"].values()):
        of_label = shares[store.labels == label]
        assert (measure["patches"], measure["without_evidence"]) == (COUNTS[split][label], 0)
        assert measure["mean"] == pytest.approx(of_label.mean(), abs=1e-6)
        assert measure["interval"][0] < measure["mean"] < measure["interval"][1]


@pytest.mark.slow  # takes some seconds
def test_a_sheet_has_as_many_of_each_class_with_their_labels_and_scores(run: Path, drawn: list[tuple]) -> None:
    main([str(run), "--shown", "6"])
    ((patches, _, scores, labels, ids, title),) = drawn
    assert labels == [1, 1, 1, 0, 0, 0]
    assert [patch[32:64, 32:64].mean() < 120 for patch in patches] == [True] * 3 + [False] * 3  # class 1 is darker
    assert [patch_id.split("/")[:2] for patch_id in ids] == [["valid", "1"]] * 3 + [["valid", "0"]] * 3
    assert title == "Evidence for and against tumour: cnn/version_0 on valid"
    network = TrainedRun.load(run).network
    with torch.inference_mode():
        expected = network(torch.from_numpy(patches).permute(0, 3, 1, 2)).sigmoid()
    assert scores == pytest.approx(expected.numpy(), abs=1e-6)
    main([str(run), "--shown", "6"])
    assert np.array_equal(drawn[1][0], patches)  # the draw is seeded


@pytest.mark.slow  # takes some seconds
def test_runs_are_compared_under_names_that_tell_them_apart(
    runs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    main([*map(str, runs)])
    said = capsys.readouterr().out
    for run in runs:
        assert "/".join(run.parts[-3:]) in said
        for measure in record_of(run)["centre_share"].values():
            assert f"{measure['mean']:.4f}" in said
            assert interval_words(tuple(measure["interval"])) in said
    first, second = (record_of(run)["centre_share"]["tumour"]["mean"] for run in runs)
    assert first != second
    assert "chance is 0.1111" in " ".join(said.split())


@pytest.mark.slow  # takes some seconds
def test_runs_on_different_patches_are_not_compared(
    runs: list[Path], cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "others"
    write_patches(root, {"train": (9, 9), "valid": (3, 4)}, seed=1)
    other = short_run("cnn", root, cache_dir, tmp_path / "runs")
    said = sentence(capsys, main, [str(runs[0]), str(other)], 1)
    assert f"Expected runs on the same patches, but the valid split of {runs[0]}" in said
    main([str(runs[0]), str(other), "--data.root", str(root)])
    assert record_of(runs[0])["centre_share"]["tumour"]["patches"] == 4


@pytest.mark.slow  # takes some seconds
def test_without_evidence_anywhere_the_share_is_null(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, {"network.head.4.weight": torch.zeros_like})
    main([str(run)])
    normal, tumour = COUNTS["valid"]
    assert record_of(run)["centre_share"] == {
        "normal": {"patches": normal, "without_evidence": normal, "mean": None, "interval": None},
        "tumour": {"patches": tumour, "without_evidence": tumour, "mean": None, "interval": None},
    }
    said = capsys.readouterr().out
    assert "undefined" in said
    assert f"none: {tumour} of {tumour}" in said


@pytest.mark.slow  # takes some seconds
def test_any_patches_can_be_drawn(
    run: Path, patch_root: Path, tmp_path: Path, drawn: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made" / "sheet.png"
    main([str(run), "--input", str(patch_root / "test" / "1"), "--output", str(output), "--shown", "4"])
    main([str(run), "--input", str(patch_root / "test"), "--output", str(output)])
    files = [tmp_path / "a.png", patch_root / "valid" / "0" / "patch0000000.png"]
    shutil.copy(files[1], files[0])
    main([str(run), "--input", *map(str, files), "--output", str(output)])
    normal, tumour = COUNTS["test"]
    assert [call[3] for call in drawn] == [[1] * 4, [0] * normal + [1] * tumour, [None, 0]]
    assert [call[4] for call in drawn][2] == [str(file) for file in files]
    said = capsys.readouterr().out
    assert f"4 of {tumour} patches explained: {output}" in said
    assert not (run / "evaluation").exists()
    with Image.open(output) as image:
        assert image.format == "PNG"


def test_what_cannot_be_drawn_is_refused_and_nothing_written(
    runs: list[Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Image.new("RGB", (200, 200)).save("large.png")
    said = sentence(capsys, main, [str(run), "--input", "large.png"], 1)
    assert said.endswith("large.png is larger (200x200); score it on a grid of windows with pcam slide.")
    assert "Expected one run with --input" in sentence(capsys, main, [*map(str, runs), "--input", "large.png"], 1)
    assert "Expected --output with --input only" in sentence(capsys, main, [str(run), "--output", "a.png"], 1)
    change(run, {"network.head.4.bias": lambda bias: bias * float("nan")})
    assert f"Expected finite logits from {run}, but 25 of 25 are not" in sentence(capsys, main, [str(run)], 1)
    assert [path.name for path in folder.iterdir()] == ["large.png"]
    assert not (run / "evaluation").exists()


@pytest.mark.slow  # takes some seconds
def test_the_mean_score_over_the_symmetries_can_be_explained(run: Path, drawn: list[tuple]) -> None:
    main([str(run), "--tta", "--shown", "4"])
    ((patches, attributions, scores, _, _, title),) = drawn
    assert title.endswith("cnn/version_0 on valid, tta")
    trained = TrainedRun.load(run)
    tensor = torch.from_numpy(patches).permute(0, 3, 1, 2)
    assert scores == pytest.approx(trained.scores(patches, tta=True), abs=1e-6)
    assert torch.equal(attributions, explain_mean_score(trained.network, tensor)[0])
    assert [path.name for path in (run / "evaluation").iterdir()] == ["valid_tta"]
    store = trained.data.packed("valid")
    shares = centre_share(explain_mean_score(trained.network, store[np.arange(len(store))].patches)[0]).numpy()
    record = json.loads((run / "evaluation" / "valid_tta" / "explanation.json").read_text())
    assert record["centre_share"]["tumour"]["mean"] == pytest.approx(shares[store.labels == 1].mean(), abs=1e-6)
