"""What the system refuses or takes away, and what Lightning would say of a run that says nothing to its user."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcam.commands.evaluate import main as evaluate
from pcam.commands.train import main as train
from tests.conftest import REPOSITORY
from tests.scripts.test_front_door import exit_code, sentence
from tests.scripts.test_resume import arguments

SAYS_NOTHING = (
    "Seed set to", "GPU available", "TPU available", "weights_only", "Received SIGTERM", "Trainer.fit", "litlogger",
)  # fmt: skip
"""Parts of Lightning's lines."""


@pytest.fixture
def _deleted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    yield
    os.chdir(REPOSITORY)


@pytest.mark.usefixtures("_deleted_folder")
@pytest.mark.parametrize("command", [train, evaluate])
def test_a_working_directory_that_was_deleted_is_an_answer(command, capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(capsys, command, ["--config", "demo"], 1)
    assert "found that the working directory has been deleted; change to another with cd." in said


@pytest.mark.parametrize(
    ("option", "place"), [("--runs_dir", "file"), ("--data.cache_dir", "file"), ("--runs_dir", "file/below")]
)
def test_a_file_where_a_folder_should_be_is_an_answer(
    option: str, place: str, patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    args = [*arguments(patch_root, cache_dir, tmp_path / "runs"), option, str(tmp_path / place)]
    assert f"{tmp_path}/file" in sentence(capsys, train, args, 1)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_in_the_place_of_the_experiments_folder_is_an_answer(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cnn").write_text("kept")
    said = sentence(capsys, train, arguments(patch_root, cache_dir, tmp_path), 1)
    assert f"{tmp_path}/cnn is no folder; choose another place." in said


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--runs_dir", "but the system refused: File name too long."),
        ("--data.cache_dir", "but the system refused: File name too long."),
        ("--data.root", "but found nothing there; set root to a folder of yours"),
    ],
)
def test_a_name_that_is_too_long_is_an_answer(
    option: str, expected: str, patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*arguments(patch_root, tmp_path / "cache", tmp_path), option, str(tmp_path / ("n" * 300))]
    assert expected in sentence(capsys, train, args, 1)


def test_links_that_go_in_a_circle_are_an_answer(
    cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    said = sentence(capsys, train, arguments(tmp_path / "a", cache_dir, tmp_path / "runs"), 1)
    assert "Expected a folder with PatchCamelyon at " in said


@pytest.mark.parametrize("size", [2**31, 2**63, 10**30])
@pytest.mark.slow  # takes some seconds
def test_a_batch_larger_than_any_number_of_patches_is_the_whole_split_or_an_answer(
    size: int, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    args = [*arguments(patch_root, cache_dir, tmp_path, steps=1), "--data.batch_size", str(size)]
    code = exit_code(train, [*args, "--trainer.val_check_interval", "1", "--trainer.log_every_n_steps", "1"])
    assert code in (0, 1, 2)
    assert bool(list(tmp_path.glob("cnn/version_*"))) == (code == 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.optimizer", "torch.optim.LBFGS", "--model.optimizer.lr", "0.1"], "LBFGS refuses"),
        (["--model.optimizer", "torch.optim.SparseAdam", "--model.optimizer.lr", "0.1"], "SparseAdam refuses"),
        (["--model.network", "torch.nn.Identity"],
         "Expected a network with parameters that learn, but Identity has none"),
        (["--model.network", "torch.nn.Linear", "--model.network.in_features=3", "--model.network.out_features=1"],
         "but Linear fails on them"),
        (["--trainer.accelerator", "tpu"], "Expected values that PyTorch and Lightning take"),
        (["--trainer.max_time", "00:00:00:00"], "Expected training to take at least one step"),
    ],
)  # fmt: skip
def test_a_run_that_is_refused_leaves_no_folder(
    options: list[str], expected: str, patch_root: Path, cache_dir: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    args = [word for word in arguments(patch_root, cache_dir, tmp_path) if "momentum" not in word]
    assert expected in sentence(capsys, train, [*args, *options], 1)
    assert not list(tmp_path.glob("cnn/version_*"))


def test_a_scheduler_that_is_longer_than_training_is_said(
    patch_root: Path, cache_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train([
        *arguments(patch_root, cache_dir, tmp_path, steps=3),
        "--model.scheduler", "torch.optim.lr_scheduler.OneCycleLR",
        "--model.scheduler.max_lr", "0.1", "--model.scheduler.total_steps", "600",
    ])  # fmt: skip
    assert "OneCycleLR is made for 600 steps, but training ends after 3: the" in caplog.text


def test_a_run_prints_what_it_trains_on_and_none_of_lightnings_lines_that_say_nothing(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level("INFO"):
        train(arguments(patch_root, cache_dir, tmp_path, steps=3))
        run = tmp_path / "cnn" / "version_0"
        train(["--resume", str(run), "--trainer.max_steps", "6"])
    printed = capfd.readouterr()
    said = printed.out + printed.err + caplog.text
    assert "BaselineCNN: 166,977 parameters learn, 0 are frozen; on cpu, precision 32-true." in said
    assert f"Restored all states from the checkpoint at {run}/checkpoints/last.ckpt" in said
    assert [part for part in SAYS_NOTHING if part in said] == []
