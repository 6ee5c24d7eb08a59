"""What a user who errs is told: one sentence, an exit code, no traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pcam.commands.evaluate import main as evaluate
from pcam.commands.predict import main as predict
from pcam.commands.prepare_data import main as prepare_data
from pcam.commands.study import main as study
from pcam.commands.train import main as train
from pcam.terminal import UNREAD
from tests.conftest import REPOSITORY

DEMO = ["--config", str(REPOSITORY / "configs" / "demo.yaml")]


def exit_code(main: Callable[[list[str]], None], args: list[str]) -> object:
    """Run a script in this process, and return its exit code; a traceback is not caught."""
    try:
        main(args)
    except SystemExit as ended:
        return ended.code
    return 0


def sentence(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], None], args: list[str], code: int) -> str:
    """Run a script that must fail, and return the last line of what it says."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "usage:" not in error
    return error.rstrip().rpartition("\n")[2]


@pytest.mark.parametrize(
    ("main", "args", "expected"),
    [
        (predict, [], "Expected RUN and --input, without which"),
        (predict, ["--input", "patches"], "Expected RUN, without which"),
        (prepare_data, ["pack"], "Expected root, without which"),
        (prepare_data, ["cut", "slide"], "Expected --truth and --output, without which"),
        (study, [], "Expected --config, without which"),
        (study, ["--config", "{plan}"], "Expected seeds and source in the config, without which"),
    ],
)
def test_what_is_missing_is_called_as_it_is_typed(
    main: Callable[[list[str]], None], args: list[str], expected: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = tmp_path / "plan.yaml"
    plan.write_text("{name: a, title: b, split: valid, arms: {a: {label: a, config: cnn}}, questions: []}")
    assert expected in sentence(capsys, main, [word.format(plan=plan) for word in args], 2)


def test_what_is_missing_in_a_part_of_a_config_is_called_as_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("{name: a, title: b, split: valid, seeds: [1], source: c, arms: {a: {config: cnn}}, questions: []}")
    assert "Expected label, without which" in sentence(capsys, study, ["--config", str(plan)], 2)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--nonsense", "1"], "nonsense"),
        (["--trainer.max_steps", "many"], "many"),
        (["--data.augmentation", "crops"], "crops"),
        (["--monitor", "val/f1"], "val/f1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["--model.network.class_path", "pcam.models.MobilNet"],
            "found pcam.models.MobilNet, which is not there; similar names: pcam.models.MobileNetV2",
        ),
        (["--model.network.class_path", "pcam.models.Xyz"], "pcam.models.Xyz, which is not there; similar names: none"),
        (["--experiment", "../climbs"], "Expected experiment to be the name of a folder below runs_dir, and no path"),
        (["--experiment", "n" * 256], "choose another name"),
        (["--trainer", "null"], "trainer"),
        (["--trainer", "[1, 2]"], "trainer"),
        (
            ["--trainer.val_check_interval", "0"],
            "Expected trainer.val_check_interval above 0, but found 0: there would",
        ),
        (["--trainer.check_val_every_n_epoch", "0"], "Expected trainer.check_val_every_n_epoch above 0, but found 0"),
        (["--trainer.log_every_n_steps", "0"], "Expected trainer.log_every_n_steps above 0, but found 0: there would"),
        (["--trainer.limit_train_batches", "0"], "limit_train_batches above 0, but found 0: nothing would be trained"),
        (["--trainer.max_steps", "0"], "Expected trainer.max_steps above 0, but found 0: nothing would be trained"),
        (["--data.rot", "x"], "rot"),
        (["--seed_everything", "-1"], "seed_everything"),
        (["--data.batch_size", "null"], "data.batch_size"),
        (
            ["--model.network.init_args.normalization", "null"],
            "for model.network.normalization (BaselineCNN), but found",
        ),
        (["--trainer.accumulate_grad_batches", "2"], "accumulate_grad_batches to be 1, but found 2"),
        (["--model.optimizer.init_args.lr", "null"], "for model.optimizer.lr (SGD), but found null; leave it out"),
    ],
)
def test_a_wrong_command_line_ends_with_2(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in sentence(capsys, train, [*DEMO, *args], 2)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--trainer.max_steps", "-5"], "Expected values that PyTorch and Lightning take, but found one"),
        (["--model.optimizer.lr", "-1"], "but found one that they refuse (Invalid learning rate: -1.0); correct"),
    ],
)
def test_a_value_that_pytorch_or_lightning_refuses_ends_with_1(
    args: list[str], expected: str, patch_root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--trainer.fast_dev_run", "true"]
    assert expected in sentence(capsys, train, [*DEMO, *data, *args], 1)


def test_a_scheduler_that_ends_before_training_is_refused(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "--config", str(REPOSITORY / "configs" / "best.yaml"), "--model.network.weights", "null",
        "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--data.batch_size", "8",
        "--trainer.max_steps", "601", "--trainer.num_sanity_val_steps", "0", "--runs_dir", str(tmp_path),
    ]  # fmt: skip
    said = sentence(capsys, train, args, 1)
    assert "Expected a scheduler for all 601 steps of training, but found OneCycleLR with total_steps 600; give" in said


@pytest.mark.slow  # takes some seconds
def test_a_cache_folder_is_found_from_anywhere(
    patch_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, expected in {"~/cache": tmp_path / "home" / "cache", "here": tmp_path / "here"}.items():
        data = ["--data.root", str(patch_root), "--data.cache_dir", given]
        steps = [f"--trainer.{name}=1" for name in ("max_steps", "val_check_interval", "log_every_n_steps")]
        train([*DEMO, *data, *steps, "--runs_dir", given])
        assert list(expected.glob("patches-*/train-all.h5"))
        config = yaml.safe_load((expected / "demo" / "version_0" / "config.yaml").read_text())
        assert config["data"]["cache_dir"] == str(expected)


def test_a_config_with_an_unknown_key_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((REPOSITORY / "configs" / "demo.yaml").read_text() + "  colour: red\n")
    assert "colour" in sentence(capsys, train, ["--config", str(config)], 2)


def test_a_missing_root_ends_with_1_and_leaves_no_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_dir = tmp_path / "runs"
    args = [*DEMO, "--data.root", str(tmp_path / "nowhere"), "--runs_dir", str(runs_dir)]
    said = sentence(capsys, train, args, 1)
    assert f"at {tmp_path}/nowhere, but" in said
    assert "pcam prepare_data" not in said.partition(";")[0]
    for pasted in (
        "(--data.root DIR)",
        "(pcam download data/pcam; 8 GB)",
        "(pcam synthesize --output data/synthetic) and train on them (--data.root data/synthetic)",
    ):
        assert pasted in said
    assert said.endswith(".")
    assert ". " not in said.removeprefix("pytest: ")
    assert not runs_dir.exists()


def test_resuming_with_a_config_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "configs" / "demo.yaml").read_text())
    assert "--config or --resume" in sentence(capsys, train, [*DEMO, "--resume", str(tmp_path)], 2)


def test_resuming_without_a_checkpoint_ends_with_1(
    patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "configs" / "demo.yaml").read_text())
    said = sentence(capsys, train, ["--resume", str(tmp_path), "--data.root", str(patch_root)], 1)
    assert f"Expected a checkpoint {tmp_path}/checkpoints/last.ckpt, but there is none: the run ended before" in said
    assert said.endswith(f"train it again with pcam train --config {tmp_path}/config.yaml.")


def test_a_truncated_checkpoint_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "configs" / "demo.yaml").read_text())
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"state_dict": {}, "global_step": 1}, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "it may be truncated" in sentence(capsys, evaluate, [str(tmp_path)], 1)
    torch.save({"weights": 1}, checkpoint)
    assert "holds something else" in sentence(capsys, evaluate, [str(tmp_path)], 1)
    torch.save({"state_dict": {}, "global_step": 1}, checkpoint)
    assert "are of another network" in sentence(capsys, evaluate, [str(tmp_path)], 1)


def test_evaluating_what_is_no_run_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Expected a run folder with a config.yaml" in sentence(capsys, evaluate, [str(tmp_path)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "codes", "expected"),
    [
        (["configs"], {UNREAD}, ""),
        (["--help"], {UNREAD}, ""),
        (["evaluate", "--help"], {UNREAD, 0}, ""),  # argparse does not mind
        (["evaluate", "nowhere"], {1}, "Expected a run folder"),  # why it ends counts more
    ],
)
def test_nobody_is_told_that_nobody_reads(words: list[str], codes: set[int], expected: str, unbuffered: str) -> None:
    command = [sys.executable, "-m", "pcam", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        said = process.stderr.read()
    assert process.returncode in codes
    assert said.count("\n") == bool(expected)
    assert expected in said


@pytest.mark.parametrize("words", ["--version", "configs"])
def test_standard_output_may_be_closed(words: str) -> None:
    command = f"{sys.executable} -m pcam {words} >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_config_may_name_a_network_alone_or_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "more.yaml"
    args = ["--config", "best", "--config", str(path), "--data.root", str(tmp_path / "nowhere")]
    for content in ("model:\n  network: pcam.models.BaselineCNN\n", "model:\n", ""):
        path.write_text(content)
        assert "Expected a folder with PatchCamelyon at" in sentence(capsys, train, args, 1)


def test_what_is_resumed_is_said_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("resume: lightning_logs/demo/version_0\n")
    args = [*DEMO, "--config", str(path), "--runs_dir", str(tmp_path / "runs")]
    assert "Expected --resume on the command line alone, but found resume: lightning_logs/demo/version_0" in sentence(
        capsys, train, args, 2
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py")))
def test_a_script_runs_as_a_process(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith(f"usage: {script}.py")
    assert done.stderr == ""


def test_a_folder_that_cannot_be_written_ends_with_1(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", full)
    args = [*DEMO, "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--runs_dir", str(tmp_path)]
    assert sentence(capsys, train, args, 1).endswith("but the system refused: No space left on device.")


def test_synthetic_patches_train(tmp_path: Path, cache_dir: Path) -> None:
    root = tmp_path / "synthetic"
    prepare_data(["synthesize", "--out", str(root), "--train", "12", "--valid", "6", "--test", "4"])
    assert sum(1 for _ in root.rglob("*.png")) == 22
    train([
        *DEMO, "--data.root", str(root), "--data.cache_dir", str(cache_dir), "--trainer.fast_dev_run", "true",
        "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
