"""What `--resume` applies, what it refuses, and what it needs of a run folder."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from pcam.commands.evaluate import main as evaluate
from pcam.commands.export import main as export
from pcam.commands.predict import main as predict
from pcam.commands.train import main as train
from tests.conftest import COUNTS, REPOSITORY, write_patches
from tests.scripts.test_front_door import sentence


def arguments(root: Path, cache_dir: Path, runs_dir: Path, steps: int = 6) -> list[str]:
    return [
        "--config", str(REPOSITORY / "configs" / "cnn.yaml"), "--data.root", str(root),
        "--data.cache_dir", str(cache_dir), "--data.batch_size", "8", "--trainer.max_steps", str(steps),
        "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "3",
        "--trainer.enable_progress_bar", "false", "--runs_dir", str(runs_dir),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps; nobody may write to it."""
    runs_dir = tmp_path_factory.mktemp("runs")
    train(arguments(patch_root, cache_dir, runs_dir))
    return runs_dir / "cnn" / "version_0"


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that has been evaluated."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "cnn" / "version_0")
    evaluate([str(run)])
    return Path(run)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "cnn" / "version_0"))


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("model.optimizer.lr", "0.5", "Expected model.optimizer.init_args.lr to stay 0.01, as {run} was trained with"),
        ("model.optimizer.init_args.momentum", "0.1", "momentum to stay 0.95, as {run} was trained with it and its"),
        ("seed_everything", "7", "Expected seed_everything to stay 1, as {run}"),
        ("data.batch_size", "4", "Expected data.batch_size to stay 8, as {run}"),
        ("data.augmentation", "d4", "Expected data.augmentation to stay none, as {run}"),
        ("model.optimizer", "torch.optim.AdamW", "model.optimizer.class_path to stay torch.optim.SGD, as {run}"),
        ("model.scheduler", "torch.optim.lr_scheduler.ConstantLR", "model.scheduler.class_path to stay None, as {run}"),
        ("model.network", "pcam.models.MobileNetV2", "class_path to stay pcam.models.BaselineCNN, as {run}"),
        ("model.network.dropout", "0.9", "Expected model.network.init_args.dropout to stay 0.0, as {run}"),
        ("trainer.fast_dev_run", "true", "Expected trainer.fast_dev_run to stay False, as {run}"),
        ("trainer.val_check_interval", "5", "Expected trainer.val_check_interval to stay 3, as {run}"),
        ("experiment", "other", "Expected experiment to stay cnn, as {run}"),
        ("monitor", "val/auroc", "Expected monitor to stay val/loss, as {run}"),
    ],
)
def test_what_a_checkpoint_decides_is_refused_with_both_values(
    option: str, value: str, expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    said = sentence(capsys, train, ["--resume", str(run), f"--{option}", value], 2)
    assert expected.format(run=run) in said
    found = {"true": "True"}.get(value, value)
    assert f"but found {found} on the command line; leave it out, or train a new run." in said
    assert contents(run) == before


def test_more_steps_are_trained_and_recorded(run: Path) -> None:
    train(["--resume", str(run), "--trainer.max_steps", "9", "--checkpoint_every_seconds", "1000"])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 9
    assert config["checkpoint_every_seconds"] == 1000
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.01
    assert {"resume", "resume_from", "allow_other_data"}.isdisjoint(config)


def test_other_data_are_refused_unless_they_are_meant_and_then_both_are_recorded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_patches(tmp_path / "other", COUNTS, seed=1)
    before = contents(run)
    trained_on = json.loads(before["environment.json"])["data_fingerprints"]
    args = ["--resume", str(run), "--data.root", str(tmp_path / "other"), "--trainer.max_steps", "9"]
    said = sentence(capsys, train, args, 1)
    assert f"Expected the train split that {run} was trained with (fingerprint {trained_on['train'][:12]})" in said
    assert said.endswith("bring the files back, or say --allow_other_data if this is meant.")
    assert contents(run) == before
    train([*args, "--allow_other_data"])
    environment = json.loads((run / "environment.json").read_text())
    assert environment["earlier_data_fingerprints"] == [trained_on]
    assert environment["data_fingerprints"].keys() == trained_on.keys()
    assert environment["data_fingerprints"]["train"] != trained_on["train"]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] == str(tmp_path / "other")


def test_the_same_data_elsewhere_are_taken(run: Path, patch_root: Path, tmp_path: Path) -> None:
    shutil.copytree(patch_root, tmp_path / "moved")
    train(["--resume", str(run), "--data.root", str(tmp_path / "moved"), "--trainer.max_steps", "7"])
    environment = json.loads((run / "environment.json").read_text())
    assert "earlier_data_fingerprints" not in environment


def test_a_file_more_in_the_valid_split_is_other_data(
    run: Path, patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(patch_root, tmp_path / "moved")
    (tmp_path / "moved" / "valid" / "1" / "patch0000000.png").unlink()
    said = sentence(capsys, train, ["--resume", str(run), "--data.root", str(tmp_path / "moved")], 1)
    assert "Expected the valid split that" in said


def test_a_resumed_run_without_its_best_checkpoint_says_so_and_writes_one(
    run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    with caplog.at_level("INFO"):
        train(["--resume", str(run), "--trainer.max_steps", "9"])
    assert f"{run}/checkpoints/best.ckpt is not there any more: it becomes the best" in caplog.text
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 9
    assert "Best val/loss at step 9:" in capsys.readouterr().out


def test_a_finished_run_without_its_best_checkpoint_says_what_can_be_evaluated(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    train(["--resume", str(run)])
    said = capsys.readouterr().out
    assert "Best" not in said
    assert f"evaluate.py {run} --checkpoint last" in said


@pytest.mark.slow  # takes some seconds
def test_a_run_that_ended_before_its_first_validation_has_one_way_on(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(arguments(patch_root, cache_dir, tmp_path, steps=2))
    run = tmp_path / "cnn" / "version_0"
    assert f"evaluate.py {run} --checkpoint last" in capsys.readouterr().out
    said = sentence(capsys, evaluate, [str(run)], 1)
    assert f"go on with pcam train --resume {run}, or take the last checkpoint with --checkpoint last." in said
    scores = ["--input", str(patch_root / "test"), "--output", str(tmp_path / "scores.csv")]
    predict([str(run), *scores, "--checkpoint", "last"])
    train(["--resume", str(run), "--trainer.max_steps", "3"])
    predict([str(run), *scores])


def damaged(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the checkpoints hold."""
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        replaced = change(checkpoint)
        torch.save(checkpoint if replaced is None else replaced, path)


def put(value: object, *keys: str | int) -> Callable[[dict[str, Any]], None]:
    """Replace a part of a checkpoint."""

    def change(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    """Remove a part of a checkpoint."""

    def change(checkpoint: dict[str, Any]) -> None:
        del checkpoint[key]

    return change


NO_CHECKPOINT = "Expected a checkpoint that training wrote, with state_dict and global_step, but"


@pytest.mark.parametrize("command", [train, evaluate, predict, export])
@pytest.mark.parametrize(
    "change",
    [
        lambda checkpoint: 5,
        lambda checkpoint: "text",
        lambda checkpoint: [1, 2],
        drop("state_dict"),
        put([], "state_dict"),
        put({"network.x": 5}, "state_dict"),
        drop("global_step"),
        put("many", "global_step"),
        put(-1, "global_step"),
    ],
    ids=["number", "text", "list", "no weights", "list of weights", "number as weight", "no step", "text", "below 0"],
)
def test_what_is_no_checkpoint_is_an_answer_of_every_command(
    change: Callable[[dict[str, Any]], object], command: Callable[[list[str]], None], run: Path, patch_root: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damaged(run, change)
    name = "last" if command is train else "best"
    args = {
        predict: [str(run), "--input", str(patch_root / "test"), "--output", str(tmp_path / "scores.csv")],
        train: ["--resume", str(run)],
    }.get(command, [str(run)])
    said = sentence(capsys, command, args, 1)
    assert f"{NO_CHECKPOINT} {run}/checkpoints/{name}.ckpt holds something else" in said
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop("optimizer_states"), "it lacks optimizer_states;"),
        (put(5, "optimizer_states"), "its optimizer_states is no list of 1 but 5;"),
        (put([], "optimizer_states"), "its optimizer_states is no list of 1 but list;"),
        (put([{}], "optimizer_states"), "it lacks optimizer_states.0.state;"),
        (put("x", "optimizer_states", 0, "param_groups"), "its optimizer_states.0.param_groups is no list of 1 but"),
        (put("x", "optimizer_states", 0, "param_groups", 0, "lr"), "param_groups.0.lr is no number but str;"),
        (put(5, "optimizer_states", 0, "state", 0), "its optimizer_states.0.state.0 is no mapping but 5;"),
        (put("x", "optimizer_states", 0, "state", 0, "momentum_buffer"), "momentum_buffer is no number or tensor but"),
        (drop("lr_schedulers"), "it lacks lr_schedulers;"),
        (put([{}], "lr_schedulers"), "its lr_schedulers is no list of 0 but list;"),
        (drop("callbacks"), "it lacks callbacks;"),
        (put({}, "callbacks"), "it lacks callbacks.TrainLoss;"),
        (put(5, "callbacks", "RandomState"), "its callbacks.RandomState is no mapping but 5;"),
        (put(torch.zeros(3), "callbacks", "RandomState", "cpu"), "RandomState.cpu is no tensor of torch.uint8 and"),
        (drop("loops"), "it lacks loops;"),
        (put("x", "loops", "fit_loop"), "its loops.fit_loop is no mapping but str;"),
        (put("x", "epoch"), "its epoch is no number but str;"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_of_the_state_is_not_resumed_from(
    change: Callable[[dict[str, Any]], object], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(run, change)
    before = contents(run)
    said = sentence(capsys, train, ["--resume", str(run), "--trainer.max_steps", "9"], 1)
    assert f"Expected a checkpoint with the whole state of training in {run}/checkpoints/last.ckpt, but" in said
    assert expected in said
    assert contents(run) == before


def test_going_on_from_the_previous_checkpoint_keeps_it_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    newer, good = last.read_bytes(), previous.read_bytes()
    with pytest.MonkeyPatch.context() as patch:  # the disk fills while the next checkpoint is written
        patch.setattr(torch, "save", lambda *args, **kwargs: raise_full())
        args = ["--resume", str(run), "--resume_from", "previous", "--trainer.max_steps", "9"]
        assert "No space left" in sentence(capsys, train, args, 1)
        assert last.read_bytes() == newer  # one that is whole stays
        last.write_bytes(newer[:1000])
        assert "No space left" in sentence(capsys, train, args, 1)
    assert last.read_bytes() == previous.read_bytes() == good
    train(["--resume", str(run), "--trainer.max_steps", "9"])
    assert torch.load(last, weights_only=True)["global_step"] == 9


def raise_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_flipped_bit_in_the_weights_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = bytearray(path.read_bytes())
    largest = max(torch.load(path, weights_only=True)["state_dict"].values(), key=torch.numel)
    place = checkpoint.index(largest.numpy().tobytes()[:64])
    checkpoint[place + 3] ^= 0x40
    path.write_bytes(checkpoint)
    said = sentence(capsys, evaluate, [str(run)], 1)
    assert f"in {path}, but it cannot be loaded safely (the checksum of its part" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"epoch,train/loss\n0,0.5\n", "it has no column step of whole numbers"),
        (b"step,epoch,train/loss\nx,0,0.5\n", "it has no column step of whole numbers"),
        (b"step,epoch,train/loss\n3,0,good\n", "its column train/loss holds more than numbers"),
        (b"", "No columns to parse"),
        (b"\x00\xff\xfe\x01" * 100, "cannot be read"),
        (b"step,epoch\n1,2,3\n1,2,3,4,5\n", "Error tokenizing data"),
    ],
)
def test_a_damaged_metrics_file_is_an_answer(
    text: bytes, expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.csv").write_bytes(text)
    said = sentence(capsys, train, ["--resume", str(run), "--trainer.max_steps", "9"], 1)
    assert f"Expected what training has logged in {run}/metrics.csv, a row a step, but it cannot be read (" in said
    assert expected in said
    assert (run / "metrics.csv").read_bytes() == text


def test_a_metrics_file_that_is_away_begins_anew(run: Path) -> None:
    (run / "metrics.csv").unlink()
    train(["--resume", str(run), "--trainer.max_steps", "9"])
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [9]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "5", '{"data_fingerprints": 5}', '{"data_fingerprints": {"train": 5}}', "\x00"]
)
@pytest.mark.parametrize("command", [train, export])
def test_a_damaged_environment_is_an_answer(
    text: str, command: Callable[[list[str]], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "environment.json").write_text(text)
    args = ["--resume", str(run)] if command is train else [str(run), "--format", "safetensors"]
    assert f"{run}/environment.json" in sentence(capsys, command, args, 1)
    assert not (run / "export").exists() or not list((run / "export").iterdir())


@pytest.mark.parametrize("text", ["{", "[]", '{"operating_points": {}}', "wrong keys"])
def test_damaged_metrics_of_an_evaluation_are_an_answer_of_export(
    text: str, evaluated: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "evaluation" / "valid" / "metrics.json"
    path.parent.mkdir(parents=True)
    record = json.loads((evaluated / "evaluation" / "valid" / "metrics.json").read_text())
    wrong = json.dumps({**record, "calibration": 5}) if text == "wrong keys" else text
    path.write_text(wrong)
    if "operating_points" in text:  # an evaluation of other weights: nothing is known
        export([str(run), "--format", "safetensors"])
        return
    assert str(path) in sentence(capsys, export, [str(run), "--format", "safetensors"], 1)


@pytest.mark.parametrize(
    ("change", "reads_trainer"),
    [
        (lambda config: "", False),
        (lambda config: "- 1\n- 2\n", False),
        (lambda config: "\x00\x01", False),
        (lambda config: config.replace("model:", "modell:"), False),
        (lambda config: config + "experiment: twice\n", False),
        (lambda config: yaml.safe_dump({**yaml.safe_load(config), "trainer": None}), True),
        (lambda config: yaml.safe_dump({**yaml.safe_load(config), "trainer": [1]}), True),
        (lambda config: yaml.safe_dump({**yaml.safe_load(config), "data": None}), False),
        (lambda config: yaml.safe_dump({**yaml.safe_load(config), "model": {"network": "x"}}), False),
        (lambda config: yaml.safe_dump({**yaml.safe_load(config), "model": {"network": [1]}}), False),
    ],
    ids=[
        "empty", "list", "binary", "no model", "key twice", "no trainer", "list as trainer", "no data",
        "text as network", "list as network",
    ],
)  # fmt: skip
def test_a_damaged_config_of_a_run_is_an_answer(
    change: Callable[[str], str], reads_trainer: bool, run: Path, patch_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (run / "config.yaml").write_text(change((run / "config.yaml").read_text()))
    sentence(capsys, train, ["--resume", str(run)], 2)
    args = [str(run), "--input", str(patch_root / "test"), "--output", str(tmp_path / "scores.csv")]
    if reads_trainer:  # which trainer it was does not matter to predict
        predict(args)
    else:
        sentence(capsys, predict, args, 2)
