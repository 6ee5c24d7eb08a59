"""Kill a short run with SIGKILL at random moments, resume it, and compare its end with a run that nothing killed.

PYTHONPATH=. python tests/scripts/soak.py --kills 200
"""

import argparse
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from pcam.commands.train import main as train_main
from tests.conftest import REPOSITORY, write_patches
from tests.scripts.test_life import scalars

CONTEXT = multiprocessing.get_context("forkserver")
"""Its server imports what this module imports once; each process is a fork of it, a moment later."""


def arguments(root: Path, runs_dir: Path) -> list[str]:
    """A run of about a second: dropout, augmentation, two validations an epoch, checkpoints by the clock too."""
    return [
        "--config", str(REPOSITORY / "configs" / "cnn.yaml"),
        "--data.root", str(root),
        "--data.cache_dir", str(root.parent / "cache"),
        "--data.batch_size", "8",
        "--data.augmentation", "d4",
        "--model.network.dropout", "0.5",
        "--trainer.max_steps", "40",
        "--trainer.val_check_interval", "5",
        "--trainer.log_every_n_steps", "3",
        "--trainer.enable_progress_bar", "false",
        "--checkpoint_every_seconds", "0.1",
        "--runs_dir", str(runs_dir),
    ]  # fmt: skip


def train(words: list[str]) -> None:
    """Run `pcam train` in this process, in silence."""
    with Path(os.devnull).open("w") as silence:
        os.dup2(silence.fileno(), sys.stdout.fileno())
        os.dup2(silence.fileno(), sys.stderr.fileno())
    sys.argv = ["train.py"]
    train_main(words)


def start(words: list[str]) -> ForkServerProcess:
    """Train in a process of its own."""
    process = CONTEXT.Process(target=train, args=(words,))
    process.start()
    return process


def finish(words: list[str]) -> None:
    """Train to the end."""
    process = start(words)
    process.join()
    if process.exitcode != 0:
        raise AssertionError(f"Expected exit code 0 of {words}, but found {process.exitcode}.")


def end_of(run: Path) -> tuple[dict[str, torch.Tensor], str, dict[str, list[tuple[int, float]]]]:
    """Weights of the last checkpoint, the whole of metrics.csv, and TensorBoard's scalars."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], (run / "metrics.csv").read_text(), scalars(run)


def soak(kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kill and resume.

    Args:
        kills: How often, at least.
        seed: Of the moments.
        folder: For patches and runs.

    Returns:
        How many kills met the run in which state.

    Raises:
        AssertionError: If a run did not end as the one that nothing killed.
    """
    root = folder / "patches"
    write_patches(root, {"train": (44, 40), "valid": (14, 11)})
    finish(arguments(root, folder / "whole"))
    whole = folder / "whole" / "cnn" / "version_0"
    began = time.monotonic()
    finish(arguments(root, folder / "timed"))
    duration = time.monotonic() - began
    weights, metrics, tensorboard = end_of(whole)
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    number = 0
    while counts.total() < kills:
        runs_dir = folder / f"killed_{number}"
        number += 1
        words = arguments(root, runs_dir)
        run = runs_dir / "cnn" / "version_0"
        for _ in range(rng.randint(1, 3)):
            process = start(words)
            time.sleep(rng.uniform(0, duration))
            if process.exitcode is not None:  # too late to kill it
                break
            process.kill()
            process.join()
            resumable = (run / "checkpoints" / "last.ckpt").exists()
            counts["with a checkpoint" if resumable else "before a checkpoint"] += 1
            if not resumable and run.exists():  # nothing to go on from: the user trains anew, in the next folder
                run = run.with_name(f"version_{len(list(run.parent.glob('version_*')))}")
            words = ["--resume", str(run)] if resumable else words
        finish(["--resume", str(run)] if (run / "checkpoints" / "last.ckpt").exists() else words)
        found_weights, found_metrics, found_tensorboard = end_of(run)
        assert found_metrics == metrics, f"metrics.csv of {run} differs"
        assert found_tensorboard == tensorboard, f"TensorBoard of {run} differs"
        assert all(torch.equal(found_weights[name], value) for name, value in weights.items()), f"{run} differs"
    return counts


def main() -> None:
    """Soak, and say how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    CONTEXT.set_forkserver_preload(["tests.scripts.soak"])
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each restart
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(options.kills, options.seed, Path(folder))
    print(f"{counts.total()} kills, every run ended as the one that nothing killed: {dict(counts)}")


if __name__ == "__main__":
    main()
