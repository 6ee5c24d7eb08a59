"""What happens to a run when a step, a file or a number goes wrong."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcam.commands.evaluate import main as evaluate
from pcam.commands.train import main as train
from pcam.run_folder import RunFolder
from pcam.training import PatchClassifier
from pcam.training.checkpoints import BestCheckpoint
from tests.conftest import REPOSITORY, write_patches
from tests.scripts.test_front_door import exit_code, sentence
from tests.scripts.test_life import arguments, assert_same_end, whole_run


@pytest.fixture(scope="module")
def whole(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing went wrong with."""
    return whole_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("whole"))


class KilledError(Exception):
    """Ends a process as it stands."""


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """Let a step fail: "kill" ends the process, "nan" makes the loss no number."""
    training_step = PatchClassifier.training_step

    def failing_step(self, batch, batch_idx):
        output = training_step(self, batch, batch_idx)
        if self.global_step >= step - 1:
            if what == "kill":
                raise KilledError
            output["loss"] = output["loss"] * torch.nan
        return output

    monkeypatch.setattr(PatchClassifier, "training_step", failing_step)


def step_of(run: Path, checkpoint: str) -> int:
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


# At an entry of the log, between two, before a validation, at the last step, and with checkpoints by the clock.
@pytest.mark.parametrize(
    ("step", "noticed", "more"),
    [
        (9, 9, []),
        (10, 12, []),
        (18, 18, []),
        pytest.param(30, 30, [], marks=pytest.mark.slow),
        (10, 10, ["--checkpoint_every_seconds", "1e-9"]),
    ],
)
def test_a_loss_that_is_no_number_ends_training_and_no_checkpoint_holds_it(
    step: int, noticed: int, more: list[str], patch_root: Path, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    at_step(monkeypatch, step, "nan")
    said = sentence(capsys, train, [*arguments("cnn", patch_root, cache_dir, tmp_path), *more], 1)
    run = tmp_path / "cnn" / "version_0"
    assert f"Expected a finite training loss, but found nan at step {noticed}: training has diverged" in said
    assert f"{run}/checkpoints/last.ckpt is from before" in said
    for checkpoint in ("best", "last"):
        assert step_of(run, checkpoint) < step
        for value in torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)["state_dict"].values():
            assert torch.isfinite(value).all()


@pytest.mark.slow  # takes some seconds
def test_weights_that_are_no_numbers_after_the_last_step_are_noticed_by_the_validation(
    patch_root: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil(self: PatchClassifier) -> None:
        if self.global_step == 12:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.nan)

    monkeypatch.setattr(PatchClassifier, "on_validation_start", spoil)
    said = sentence(capsys, train, arguments("cnn", patch_root, cache_dir, tmp_path), 1)
    assert "Expected a finite validation loss, but found nan at step 12: training has diverged" in said
    assert step_of(tmp_path / "cnn" / "version_0", "last") == 6


def test_a_loss_that_is_no_number_at_once_leaves_no_checkpoint(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*arguments("cnn", patch_root, cache_dir, tmp_path), "--model.optimizer.lr", "1e30"]
    said = sentence(capsys, train, args, 1)
    assert "at step 3: training has diverged; there is no checkpoint yet. Train anew with a lower learning" in said
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow  # takes some seconds
def test_checkpoints_do_not_go_by_the_folder_for_temporary_files(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it is on another file system, a move from it overwrites the old file, and with it the link to it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    train([*arguments("cnn", patch_root, cache_dir, tmp_path), "--checkpoint_every_seconds", "1e-9"])
    run = tmp_path / "cnn" / "version_0"
    assert (step_of(run, "last"), step_of(run, "previous")) == (30, 29)
    assert not (run / "checkpoints" / "last.ckpt").samefile(run / "checkpoints" / "previous.ckpt")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}


@pytest.mark.slow  # takes some seconds
def test_a_run_that_was_moved_keeps_what_is_best(
    whole: Path, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 17, "kill")
        with pytest.raises(KilledError):
            train(arguments("cnn", patch_root, cache_dir, tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    run = tmp_path / "there" / "cnn" / "version_0"
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (before,) = (value for key, value in state.items() if "BestCheckpoint" in key)
    best = BestCheckpoint(RunFolder(run), "val/loss")
    best.load_state_dict(before)
    assert best.best_model_score == before["best_model_score"]
    assert best.best_model_path == best.kth_best_model_path == str(run / "checkpoints" / "best.ckpt")
    train(["--resume", str(run)])
    assert_same_end(run, whole)


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (["--trainer.accelerator", "tpu"], "Expected values that PyTorch and Lightning take", 1),
        (["--model.network.dense", "false"], "Expected model.network.init_args.dense to stay True, as", 2),
    ],
)
def test_a_resume_that_fails_leaves_the_run_as_it_was(
    change: list[str], message: str, code: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "cnn" / "version_0"))
    before = (run / "config.yaml").read_bytes()
    assert message in sentence(capsys, train, ["--resume", str(run), *change], code)
    assert (run / "config.yaml").read_bytes() == before


def test_callbacks_that_log_without_an_epoch_do_no_harm(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    monitor = "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"
    train([*arguments("cnn", patch_root, cache_dir, tmp_path), "--trainer.max_steps", "6", monitor])
    table = pd.read_csv(tmp_path / "cnn" / "version_0" / "metrics.csv")
    assert table["lr-SGD"].dropna().unique().tolist() == [0.01]


@pytest.mark.slow  # takes some seconds
def test_checkpoints_by_the_clock_lose_no_step(
    whole: Path, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ["--checkpoint_every_seconds", "1e-9"]
    with monkeypatch.context() as patch:
        at_step(patch, 17, "kill")
        with pytest.raises(KilledError):
            train([*arguments("cnn", patch_root, cache_dir, tmp_path), *clock])
    run = tmp_path / "cnn" / "version_0"
    assert (step_of(run, "last"), step_of(run, "previous")) == (16, 15)
    train(["--resume", str(run)])
    assert_same_end(run, whole)


@pytest.mark.slow
def test_the_clock_leaves_a_validation_that_is_due_to_write_the_checkpoint(
    whole: Path, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def killed(self):
            if self.global_step == 12:
                raise KilledError

        patch.setattr(PatchClassifier, "on_validation_epoch_start", killed)
        with pytest.raises(KilledError):
            train([*arguments("cnn", patch_root, cache_dir, tmp_path), "--checkpoint_every_seconds", "1e-9"])
    run = tmp_path / "cnn" / "version_0"
    assert step_of(run, "last") == 11
    train(["--resume", str(run)])
    assert_same_end(run, whole)


@pytest.mark.slow  # takes some seconds
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used_if_asked(
    whole: Path, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        at_step(patch, 20, "kill")
        with pytest.raises(KilledError):
            train(arguments("cnn", patch_root, cache_dir, tmp_path))
    run = tmp_path / "cnn" / "version_0"
    last = run / "checkpoints" / "last.ckpt"
    assert (step_of(run, "last"), step_of(run, "previous")) == (18, 12)
    os.truncate(last, last.stat().st_size // 2)
    before = (run / "metrics.csv").read_bytes()
    said = sentence(capsys, train, ["--resume", str(run)], 1)
    assert f"in {last}, but it cannot be loaded safely" in said
    assert said.endswith(f"{run}/checkpoints/previous.ckpt is the one before it: --resume_from previous.")
    assert (run / "metrics.csv").read_bytes() == before
    train(["--resume", str(run), "--resume_from", "previous"])
    assert_same_end(run, whole)


def test_a_run_with_one_checkpoint_has_none_before_it(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    previous = whole / "checkpoints" / "previous.ckpt"
    content = previous.read_bytes()
    previous.unlink()
    said = sentence(capsys, train, ["--resume", str(whole), "--resume_from", "previous"], 1)
    assert "but there is none: the run has written only one" in said
    previous.write_bytes(content)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(
    checkpoint: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text((whole / "config.yaml").read_text())
    contents = torch.load(whole / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)
    torch.save(contents | {"trap": Trap(tmp_path / "touched")}, run / "checkpoints" / f"{checkpoint}.ckpt")
    main, args = (evaluate, [str(run)]) if checkpoint == "best" else (train, ["--resume", str(run)])
    assert "but it cannot be loaded safely" in sentence(capsys, main, args, 1)
    assert not (tmp_path / "touched").exists()


@pytest.mark.slow  # takes some seconds
def test_fewer_patches_than_a_batch_train(tmp_path: Path, cache_dir: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (2, 1), "valid": (1, 1)})
    args = arguments("cnn", tmp_path / "patches", tmp_path / "cache", tmp_path / "runs")
    train([*args, "--trainer.max_steps", "6", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "1"])
    table = pd.read_csv(tmp_path / "runs" / "cnn" / "version_0" / "metrics.csv")
    assert table["train/loss"].notna().sum() == 6
    assert table["epoch"].max() == 5  # each epoch is one batch of three


@pytest.mark.parametrize("name", ["with spaces", "Übergröße €", pytest.param("n" * 255, id="255 bytes")])
@pytest.mark.slow  # takes some seconds
def test_folders_with_any_name_train_and_resume(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    write_patches(root, {"train": (5, 6), "valid": (3, 2)})
    args = arguments("cnn", root, tmp_path / "cache", tmp_path / "runs")
    train([*args, "--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.log_every_n_steps", "1"])
    evaluate([str(tmp_path / "runs" / "cnn" / "version_0")])


def test_a_config_is_read_as_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"experiment: \xff\xfe\n")
    said = sentence(capsys, train, ["--config", str(path)], 2)
    assert "Expected a config in UTF-8, but found the byte 0xff at place 12" in said


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not() -> None:
    """A short soak; docs/reliability.md has a long one."""
    command = [sys.executable, str(REPOSITORY / "tests" / "scripts" / "soak.py"), "--kills", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr
    assert "kills, every run ended as the one that nothing killed" in done.stdout


@pytest.mark.slow  # takes some seconds
def test_a_run_whose_data_have_moved_says_so_and_takes_the_new_place(
    whole: Path, patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "version_0"
    shutil.copytree(whole, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(patch_root), str(tmp_path / "gone")))
    said = sentence(capsys, evaluate, [str(run)], 1)
    assert f"at {tmp_path}/gone, but found nothing there; set root to a folder of yours (--data.root DIR)" in said
    evaluate([str(run), "--data.root", str(patch_root)])


def test_a_batch_of_one_patch_trains(tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", {"train": (2, 1), "valid": (1, 1)})
    args = arguments("cnn", tmp_path / "patches", tmp_path / "cache", tmp_path / "runs")
    args += ["--data.batch_size", "1", "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1"]
    train([*args, "--trainer.val_check_interval", "3"])
    assert pd.read_csv(tmp_path / "runs" / "cnn" / "version_0" / "metrics.csv")["train/loss"].notna().sum() == 3


LINES = (REPOSITORY / "configs" / "cnn.yaml").read_text().splitlines()


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("PCAM_FUZZ_EXAMPLES", "40")), deadline=None)
@given(
    line=st.integers(0, len(LINES) - 1),
    value=st.one_of(
        st.none(), st.integers(), st.floats(), st.booleans(), st.text(max_size=20), st.lists(st.integers())
    ),
    cut=st.booleans(),
)
def test_a_config_with_any_value_runs_or_is_refused_in_a_sentence(
    line: int, value: object, cut: bool, patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = list(LINES)
    key = lines[line].partition(":")[0]
    lines[line : line + 1] = [] if cut else [f"{key}: {json.dumps(value)}"]
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text("\n".join(lines))
    args = ["--config", str(path), "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir)]
    args += ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    assert exit_code(train, args) in (0, 1, 2)
