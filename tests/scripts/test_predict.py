"""The command predict through its front door: what it scores, what it writes, what it leaves alone."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from pcam.commands.evaluate import main as evaluate
from pcam.commands.predict import main as predict
from pcam.evaluation import patch_scores
from tests.conftest import COUNTS
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence


@pytest.fixture(scope="module")
def run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network with dropout, so that prediction in training mode shows."""
    runs_dir = tmp_path_factory.mktemp("runs")
    return short_run("cnn", patch_root, cache_dir, runs_dir, "--model.network.dropout", "0.5")


@pytest.fixture(scope="module")
def expected(run: Path) -> pd.DataFrame:
    """What evaluating says of the same patches, by path below the folder `valid`."""
    evaluate([str(run)])
    table = pd.read_csv(run / "evaluation" / "valid" / "predictions.csv")
    table["id"] = table["id"].str.removeprefix("valid/")
    return table.set_index("id")


@pytest.fixture
def folder(patch_root: Path, tmp_path: Path) -> Path:
    """The valid split, in a folder of its own that may be changed."""
    return Path(shutil.copytree(patch_root / "valid", tmp_path / "patches"))


def pixels(path: Path) -> NDArray[np.generic]:
    with Image.open(path) as image:
        return np.asarray(image)


def agrees(path: Path, expected: pd.DataFrame, tolerance: float = 1e-6) -> bool:
    found = pd.read_csv(path).set_index("id")
    assert found.columns.tolist() == ["logit", "score"]
    np.testing.assert_allclose(found, expected.loc[found.index, ["logit", "score"]], rtol=0, atol=tolerance)
    return len(found) > 0


@pytest.mark.slow  # takes some seconds
def test_scoring_files_imports_neither_lightning_nor_what_only_statistics_need(run: Path, folder: Path) -> None:
    program = (
        "import sys; from pcam.commands.predict import main; "
        f"main({[str(run), '--input', str(folder), '--output', str(folder.parent / 'scores.csv')]}); "
        "print(*sorted({'lightning', 'torchmetrics', 'scipy.stats', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "torch"


def test_scores_are_those_of_evaluating(run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "scores.csv"
    predict([str(run), "--input", str(folder), "--output", str(output), "--batch_size", "7"])
    assert agrees(output, expected)
    assert pd.read_csv(output)["id"].tolist() == sorted(expected.index)
    assert [path.name for path in output.parent.iterdir()] == ["scores.csv"]
    found = pd.read_csv(output)
    assert found["score"].to_numpy() == pytest.approx(expit(found["logit"].to_numpy()), rel=1e-14)  # full precision


@pytest.mark.parametrize(
    ("options", "suffix"),
    [(["--tta"], "_tta"), (["--precision", "bf16-mixed"], "_bf16"), (["--enlarged_sizes", "[]"], "_at_96")],
)
@pytest.mark.slow  # takes some seconds
def test_predicting_takes_the_settings_of_evaluating(
    options: list[str], suffix: str, run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    evaluate([str(run), *options])
    table = pd.read_csv(run / "evaluation" / f"valid{suffix}" / "predictions.csv")
    table["id"] = table["id"].str.removeprefix("valid/")
    predict([str(run), "--input", str(folder), "--output", str(tmp_path / "scores.csv"), *options])
    # In bfloat16 a batch of another size may be added up in another order.
    tolerance = 2e-2 if suffix == "_bf16" else 1e-6
    assert agrees(tmp_path / "scores.csv", table.set_index("id"), tolerance)
    found = pd.read_csv(tmp_path / "scores.csv").set_index("id")
    if suffix == "_tta":
        plain = expected.loc[found.index, "score"]
        assert np.abs(found["score"] - plain).max() > 1e-5  # or it would show nothing


@pytest.mark.slow
def test_re_estimated_statistics_are_those_of_evaluating(
    patch_root: Path, cache_dir: Path, folder: Path, tmp_path: Path
) -> None:
    run = short_run("random_dropout", patch_root, cache_dir, tmp_path / "runs")
    evaluate([str(run), "--reestimate_bn", "--tta"])
    table = pd.read_csv(run / "evaluation" / "valid_bn_tta" / "predictions.csv")
    table["id"] = table["id"].str.removeprefix("valid/")
    output = tmp_path / "scores.csv"
    predict([str(run), "--input", str(folder), "--output", str(output), "--reestimate_bn", "--tta"])
    assert agrees(output, table.set_index("id"))


def test_the_number_of_patches_a_batch_changes_nothing(run: Path, folder: Path, tmp_path: Path) -> None:
    tables = []
    for batch_size in ("1", "256"):
        predict([str(run), "--input", str(folder), "--output", str(tmp_path / "s.csv"), "--batch_size", batch_size])
        tables.append(pd.read_csv(tmp_path / "s.csv").set_index("id"))
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-6)


def test_the_last_checkpoint_can_be_asked_for(run: Path, folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "cnn" / "version_0"))
    last = own / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["network.head.4.bias"] += 3
    torch.save(checkpoint, last)
    tables = []
    for name in ("best", "last"):
        output = tmp_path / f"{name}.csv"
        predict([str(own), "--input", str(folder), "--output", str(output), "--checkpoint", name])
        tables.append(pd.read_csv(output)["logit"])
    assert (tables[1] - tables[0]).to_numpy() == pytest.approx(3, abs=1e-5)


def test_a_submission_has_the_files_names_and_the_scores(
    run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    kaggle = tmp_path / "test"  # unlabelled, as Kaggle's: <id>.tif
    kaggle.mkdir()
    for path in (folder / "1").iterdir():
        Image.fromarray(pixels(path)).save(kaggle / f"{path.stem}.tif")
    predict([str(run), "--input", str(kaggle), "--output", str(tmp_path / "submission.csv"), "--submission"])
    table = pd.read_csv(tmp_path / "submission.csv")
    assert table.columns.tolist() == ["id", "label"]
    assert table["id"].tolist() == [f"patch{number:07d}" for number in range(COUNTS["valid"][1])]
    scores = expected.loc["1/" + table["id"] + ".png", "score"]
    assert table["label"].to_numpy() == pytest.approx(scores.to_numpy(), abs=1e-6)


def test_a_submission_cannot_have_one_name_twice(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "submission.csv"
    said = sentence(capsys, predict, [str(run), "--input", str(folder), "--output", str(output), "--submission"], 1)
    assert "found a second 'patch0000000', 1/patch0000000.png; leave out one" in said
    assert not output.exists()


def test_sigterm_leaves_what_was_there_and_nothing_half_written(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "scores.csv"
    output.parent.mkdir()
    output.write_text("id,logit,score\nof yesterday,0,0.5\n")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Image, "open", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    said = sentence(capsys, predict, [str(run), "--input", str(folder), "--output", str(output)], 128 + signal.SIGTERM)
    assert said.endswith("Stopped.")
    assert [path.name for path in output.parent.iterdir()] == ["scores.csv"]
    assert output.read_text() == "id,logit,score\nof yesterday,0,0.5\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_cannot_be_read_is_listed_and_the_rest_is_scored(
    run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "0" / "patch0000003.png").write_bytes(b"half of a patch")
    Image.new("RGB", (300, 200)).save(folder / "1" / "patch0000000.png")
    output = tmp_path / "scores.csv"
    said = sentence(
        capsys, predict, [str(run), "--input", str(folder), "--output", str(output), "--batch_size", "2"], 1
    )
    count = sum(COUNTS["valid"])
    assert f"2 of {count} cannot be read" in said
    assert f"{tmp_path}/scores.errors.csv says why of each, {output} has the scores of the others." in said
    errors = pd.read_csv(tmp_path / "scores.errors.csv").set_index("id")["reason"]
    assert errors.index.tolist() == ["0/patch0000003.png", "1/patch0000000.png"]
    assert "it is no image of a known format" in errors.iloc[0]
    assert errors.iloc[1].endswith("is larger (300x200); score it on a grid of windows with pcam slide.")
    assert agrees(output, expected)
    assert set(pd.read_csv(output)["id"]) == set(expected.index) - set(errors.index)
    shutil.rmtree(folder / "1")
    (folder / "0" / "patch0000003.png").unlink()
    predict([str(run), "--input", str(folder), "--output", str(output)])
    assert not (tmp_path / "scores.errors.csv").exists()  # nor may a reader find those of the run before


def test_patches_of_another_size_are_refused_one_by_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (192, 96)).save(path)
    said = sentence(capsys, predict, [str(run), "--input", str(path), "--output", str(tmp_path / "scores.csv")], 1)
    assert "Expected patches of 96x96 pixels" in said
    assert "score it on a grid of windows with pcam slide" in said


def test_hdf5_is_scored_by_rows(run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    names = sorted(expected.index)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.stack([pixels(folder / name) for name in names])
    predict([str(run), "--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "scores.csv")])
    table = expected.loc[names].set_axis([f"x.h5/{row}" for row in range(len(names))])
    assert agrees(tmp_path / "scores.csv", table)
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(names)


@pytest.mark.parametrize("word", ["--", "-"])
def test_standard_input_may_list_the_files(
    word: str, run: Path, expected: pd.DataFrame, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = ["1/patch0000002.png", "0/patch0000001.png", "0/patch0000007.png"]
    lines = "\n".join(str(folder / name) for name in names)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{lines}\n\n".encode())))
    monkeypatch.chdir(tmp_path)
    predict([str(run), "--input", word, "--output", "scores.csv"])
    assert capsys.readouterr().out.rstrip().endswith("Scores of 3 patches: scores.csv")
    table = expected.set_axis([str(folder / name) for name in expected.index])
    assert agrees(tmp_path / "scores.csv", table)
    assert pd.read_csv("scores.csv")["id"].tolist() == [str(folder / name) for name in names]


def test_a_file_of_a_list_that_is_not_there_is_one_that_cannot_be_read(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(folder / name) for name in ("0/patch0000000.png", "0/gone.png", "1/patch0000000.png")]
    sentence(capsys, predict, [str(run), "--input", *paths, "--output", str(tmp_path / "scores.csv")], 1)
    assert pd.read_csv(tmp_path / "scores.csv")["id"].tolist() == [paths[0], paths[2]]
    assert pd.read_csv(tmp_path / "scores.errors.csv")["id"].tolist() == [paths[1]]


def test_an_empty_standard_input_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    said = sentence(capsys, predict, [str(run), "--input", "--"], 1)
    assert "Expected paths on standard input, one a line, but found none" in said


def test_names_that_a_spreadsheet_would_run_are_made_harmless(run: Path, folder: Path, tmp_path: Path) -> None:
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "d,e.png", "plain.png"]
    for name in names:
        shutil.copy(folder / "0" / "patch0000000.png", tmp_path / name)
    shutil.rmtree(folder)
    predict([str(run), "--input", str(tmp_path), "--output", str(tmp_path / "scores.csv")])
    found = set(pd.read_csv(tmp_path / "scores.csv")["id"])
    assert found == {"'=1+1.png", "'+a.png", "'-b.png", "'@c.png", "d,e.png", "plain.png"}


def test_a_failure_before_the_end_leaves_what_was_there(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(paths: list[Path], batch_size: int):
        yield next(read_inputs(paths, batch_size))
        assert output.read_text() == "id,logit,score\nof yesterday,0,0.5\n"  # what is not whole is not seen
        raise RuntimeError("the disk is gone")

    read_inputs = patch_scores.read_inputs
    monkeypatch.setattr(patch_scores, "read_inputs", fail)
    output = tmp_path / "made" / "scores.csv"
    output.parent.mkdir()
    output.write_text("id,logit,score\nof yesterday,0,0.5\n")
    with pytest.raises(RuntimeError, match="the disk is gone"):
        predict([str(run), "--input", str(folder), "--output", str(output), "--batch_size", "4"])
    assert output.read_text() == "id,logit,score\nof yesterday,0,0.5\n"
    assert [path.name for path in output.parent.iterdir()] == ["scores.csv"]


def test_a_network_that_has_diverged_is_said_and_nothing_written(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(run, tmp_path / "cnn" / "version_0"))
    checkpoint = torch.load(own / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.head.4.bias"].fill_(float("inf"))
    torch.save(checkpoint, own / "checkpoints" / "best.ckpt")
    output = tmp_path / "made" / "scores.csv"
    said = sentence(capsys, predict, [str(own), "--input", str(folder), "--output", str(output)], 1)
    assert f"Expected finite logits from {own}, but 25 of 25 are not: its training has diverged" in said
    assert not list(output.parent.iterdir())


def test_inputs_may_be_given_one_by_one(run: Path, folder: Path, tmp_path: Path) -> None:
    images = sorted(map(str, folder.rglob("*.png")))[:3]
    output = tmp_path / "scores.csv"
    predict([str(run), "--input", *images[:2], "--input", images[2], "--output", str(output)])
    assert pd.read_csv(output)["id"].tolist() == images


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--input", "image.png", "--output", "."], "Expected to write a file ., but found a folder there"),
        (["--input", "nowhere"], "found nothing at nowhere; correct --input"),
        (["--input", "--", "--input", "image.png"], "Expected a list on standard input (--input --) or other inputs"),
        (["--input", "image.png", "-"], "Expected a list on standard input (--input --) or other inputs"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], expected: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96)).save("image.png")
    assert expected in sentence(capsys, predict, [str(run), *arguments], 1)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize(("option", "value"), [("--batch_size", "0"), ("--checkpoint", "first")])
def test_values_out_of_range_end_with_2(
    option: str, value: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert option.lstrip("-") in sentence(capsys, predict, [str(run), "--input", str(tmp_path), option, value], 2)


def test_help_says_how_a_list_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        predict(["--help"])
    assert ended.value.code == 0
    assert "or -- (or -) for a list of these on standard input, one a line" in " ".join(capsys.readouterr().out.split())
