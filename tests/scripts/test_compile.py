"""Compiled training, in processes of its own: the shape checks of the tests cannot be compiled."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pcam.commands.train import main as train
from tests.conftest import REPOSITORY


def losses(config: str, root: Path, cache_dir: Path, runs_dir: Path, *options: str) -> list[float]:
    """The loss of each of four steps, then that of the valid split."""
    command = [
        sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--config", str(REPOSITORY / "configs" / config),
        "--data.root", str(root), "--data.cache_dir", str(cache_dir), "--data.batch_size", "16",
        "--runs_dir", str(runs_dir), "--trainer.max_steps", "4", "--trainer.val_check_interval", "4",
        "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu", "--model.optimizer.lr", "1e-4", *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (path,) = runs_dir.glob("*/version_0/metrics.csv")
    table = pd.read_csv(path)
    return [*table["train/loss"].dropna(), *table["val/loss"].dropna()]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cnn.yaml", "random_no_dropout.yaml"])  # dropout draws otherwise when compiled
def test_compiled_steps_give_the_losses_of_eager_ones(
    config: str, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    eager = losses(config, patch_root, cache_dir, tmp_path / "eager")
    assert len(eager) == 5
    assert losses(config, patch_root, cache_dir, tmp_path / "compiled", "--compile") == pytest.approx(eager, rel=1e-3)


def test_without_a_compiler_the_command_says_so(
    patch_root: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="1"):
        train([
            "--config", str(REPOSITORY / "configs" / "demo.yaml"), "--data.root", str(patch_root),
            "--data.cache_dir", str(cache_dir), "--runs_dir", str(tmp_path), "--trainer.accelerator", "cpu",
            "--trainer.fast_dev_run", "1", "--compile",
        ])  # fmt: skip
    assert "found no no-such-compiler" in capsys.readouterr().err
