"""One run's whole life, through the front doors of the scripts: train, resume, evaluate."""

import json
import os
import signal
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import COUNTS, REPOSITORY, load_script

train = load_script("train").main
evaluate = load_script("evaluate").main


def arguments(root: Path, cache_dir: Path, runs_dir: Path, *more: str) -> list[str]:
    """A run of a small MobileNetV2 job: 4 epochs of 11 batches, validation every 6 steps, so within epochs too."""
    return [
        "--config", str(REPOSITORY / "configs" / "random_dropout.yaml"),
        "--data.root", str(root),
        "--data.cache_dir", str(cache_dir),
        "--data.batch_size", "8",
        "--data.augmentation", "d4",
        "--trainer.max_steps", "42",
        "--trainer.val_check_interval", "6",
        "--trainer.log_every_n_steps", "3",
        "--trainer.enable_progress_bar", "false",
        "--runs_dir", str(runs_dir),
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    runs_dir = tmp_path_factory.mktemp("whole")
    train(arguments(patch_root, cache_dir, runs_dir))
    return runs_dir / "random_dropout" / "version_0"


def state(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return weights


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_folder_holds_what_its_readme_says(whole_run: Path) -> None:
    found = {path.name.partition(".vm")[0].partition(".17")[0] for path in whole_run.iterdir()}
    assert {"config.yaml", "checkpoints", "metrics.csv", "environment.json"} <= found
    assert {path.name for path in (whole_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_validation_falls_on_the_steps_that_the_config_names(whole_run: Path) -> None:
    table = pd.read_csv(whole_run / "metrics.csv")
    assert table.loc[table["val/auroc"].notna(), "step"].tolist() == [6, 12, 18, 24, 30, 36, 42]
    assert table.loc[table["train/loss"].notna(), "step"].tolist() == list(range(3, 43, 3))
    assert table.loc[table["step"] == 12, "epoch"].item() == 1  # the twelfth of 11 batches an epoch


@pytest.mark.parametrize("interrupt_at", [4, 6, 11, 12, 22, 25, 41])
def test_an_interrupted_and_resumed_run_ends_bit_for_bit_like_a_whole_one(
    interrupt_at: int, whole_run: Path, patch_root: Path, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from pcam.training import PatchClassifier

    step = PatchClassifier.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.global_step == interrupt_at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PatchClassifier, "training_step", interrupted_step)
        with pytest.raises(SystemExit) as ended:
            train(arguments(patch_root, cache_dir, tmp_path))
    assert ended.value.code == 130
    run = tmp_path / "random_dropout" / "version_0"
    assert f"Interrupted after step {interrupt_at};" in capsys.readouterr().err
    torch.rand(7)  # the global random state is not what it was
    train(["--resume", str(run)])

    for name in ("best", "last"):
        expected, found = state(whole_run, name), state(run, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert (run / "metrics.csv").read_text() == (whole_run / "metrics.csv").read_text()
    assert scalars(run) == scalars(whole_run)
