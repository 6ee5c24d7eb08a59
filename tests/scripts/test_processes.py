"""Two processes on one CPU."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, load_script


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

    def options(name: str, batch_size: int) -> list[str]:
        return [
            "--config", str(REPOSITORY / "configs" / "cnn.yaml"), "--data.root", str(patch_root),
            "--data.cache_dir", str(tmp_path / name / "cache"), "--data.batch_size", str(batch_size),
            "--trainer.max_steps", "24", "--trainer.val_check_interval", "6", "--trainer.log_every_n_steps", "3",
            "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
            "--runs_dir", str(tmp_path / name),
        ]  # fmt: skip

    load_script("train").main(options("one", 8))
    command = [*launcher, str(REPOSITORY / "scripts" / "train.py"), *options("two", 4)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / name / "cnn" / "version_0" / "metrics.csv") for name in ("one", "two"))
    # Exact but for rounding: a validation that counted a patch twice would show in every metric.
    pd.testing.assert_frame_equal(one, two, atol=1e-5, rtol=0)
    assert [path.name for path in (tmp_path / "two" / "cnn").iterdir()] == ["version_0"]
