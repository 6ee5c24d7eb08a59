"""Two processes on one CPU."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from pcam.commands.train import main as train
from tests.conftest import REPOSITORY


def options(root: Path, folder: Path, batch_size: int, steps: int) -> list[str]:
    return [
        "--config", str(REPOSITORY / "configs" / "cnn.yaml"), "--data.root", str(root),
        "--data.cache_dir", str(folder / "cache"), "--data.batch_size", str(batch_size),
        "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "6", "--trainer.log_every_n_steps", "3",
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--runs_dir", str(folder),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable],  # the Trainer starts the second process itself
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"],
    ],
    ids=["trainer", "torchrun"],
)
def test_two_processes_follow_one(launcher: list[str], patch_root: Path, tmp_path: Path) -> None:
    """With half the batch each; the network has no batch norm, so nothing but rounding may differ."""
    train(options(patch_root, tmp_path / "one", batch_size=8, steps=24))
    command = [*launcher, str(REPOSITORY / "scripts" / "train.py"), *options(patch_root, tmp_path / "two", 4, steps=24)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / name / "cnn" / "version_0" / "metrics.csv") for name in ("one", "two"))
    # Exact but for rounding: a validation that counted a patch twice would show in every metric.
    pd.testing.assert_frame_equal(one, two, atol=1e-5, rtol=0)
    assert [path.name for path in (tmp_path / "two" / "cnn").iterdir()] == ["version_0"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(patch_root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "train.py"),
        *options(patch_root, tmp_path, 4, steps=100_000),
    ]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "cnn" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the other process, its child, gets none
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Interrupted after step" in said
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"Interrupted after step {step};" in said
