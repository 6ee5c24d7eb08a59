"""Send a signal to each command at random moments, and look at what it leaves.

PYTHONPATH=. python tests/scripts/signals.py --signals 200
"""

import argparse
import csv
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.conftest import REPOSITORY, write_patches
from tests.slides.mosaics import write_slide

COUNTS = {"train": (44, 40), "valid": (14, 11), "test": (6, 9)}

COMMANDS = ("train", "evaluate", "predict", "export", "slide", "study")

UNLOADING = 3.0
"""Seconds that Python may take to unload its libraries when all is done, where a signal has no effect any more."""


class Place:
    """Patches, a trained run and a study, and the command lines that use them.

    Args:
        folder: Where they are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "patches"
        write_patches(self.root, COUNTS)
        pixels = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
        self.slide = write_slide(pixels, folder / "slide.tif", zoom=1, mpp=0.972)
        self.plan = folder / "tiny.yaml"
        config = str(REPOSITORY / "configs" / "cnn.yaml")
        arms = {name: {"label": name, "config": config, "overrides": self.options(folder / "x")} for name in ("a", "b")}
        arms["b"]["overrides"] |= {"model.network.dropout": 0.5}
        contents = {
            "name": "tiny", "title": "A tiny study", "source": "nowhere", "split": "valid", "seeds": [1], "arms": arms,
            "questions": [],
        }  # fmt: skip
        self.plan.write_text(yaml.safe_dump(contents))
        self.trained = folder / "trained"
        done = self.run(self.words("train", self.trained))
        assert done == 0, f"training ended with {done}"
        self.trained_run = self.trained / "cnn" / "version_0"

    def options(self, runs_dir: Path) -> dict[str, object]:
        """The options of a run of about a second."""
        return {
            "data.batch_size": 8, "data.cache_dir": str(self.folder / "cache"), "trainer.max_steps": 40,
            "trainer.val_check_interval": 5, "trainer.log_every_n_steps": 5,
        }  # fmt: skip

    def words(self, command: str, place: Path) -> list[str]:
        """The command line of a command that writes into a folder."""
        run = place / "run"
        if command in ("evaluate", "predict", "export", "slide") and not run.exists():
            shutil.copytree(self.trained_run, run)
        options = [f"--{name}={value}" for name, value in self.options(place).items()]
        config = ["--config", str(REPOSITORY / "configs" / "cnn.yaml")]
        return {
            "train": [*config, "--data.root", str(self.root), *options, "--runs_dir", str(place)],
            "evaluate": [str(run)],
            "predict": [str(run), "--input", str(self.root / "valid"), "--output", str(place / "scores.csv")],
            "export": [str(run), "--format", "onnx"],
            "slide": [str(run), str(self.slide), "--threshold", "0.5", "--output", str(place / "slides")],
            "study": ["--config", str(self.plan), "--data.root", str(self.root), "--output", str(place / "study")],
        }[command]

    def start(self, command: str, place: Path) -> subprocess.Popen[bytes]:
        """Start a command in a process of its own."""
        words = [sys.executable, "-m", "pcam", command, *self.words(command, place)]
        with (place.parent / f"{place.name}.log").open("wb") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})

    def run(self, words: Sequence[str]) -> int:
        """Train to the end."""
        self.trained.mkdir(exist_ok=True)
        process = self.start("train", self.trained)
        return process.wait()


def check(place: Path, command: str, exit_code: int, patches: int) -> str:
    """Look at what an interrupted command leaves.

    Args:
        place: The folder that it wrote into.
        command: Its name.
        exit_code: What it ended with.
        patches: Number of patches that it scored.

    Returns:
        "stopped", or "done" if it was faster than the signal, or "starting" if Python had not yet loaded the command.

    Raises:
        AssertionError: If it ended otherwise, or anything is half-written.
    """
    log = (place.parent / f"{place.name}.log").read_text(errors="replace")
    ways = {128 + signal.SIGTERM: "stopped", 0: "done", -signal.SIGTERM: "starting"}
    assert exit_code in ways, f"{command} ended with {exit_code}:\n{log}"
    assert "Traceback" not in log, log
    half_written = [path for path in place.parent.rglob("*.tmp") if path.is_file()]
    assert not half_written, f"{command} left {half_written}"
    for path in place.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    for path in place.rglob("*.json"):
        json.loads(path.read_text())
    for name in ("scores.csv", "predictions.csv"):
        for path in place.rglob(name):
            with path.open(newline="") as file:
                assert len(list(csv.reader(file))) == 1 + patches, f"{path} is not whole"
    for path in place.rglob("slide.json"):
        assert {"map.png", "scores.tif"} <= {other.name for other in path.parent.iterdir()}, f"{path} is not whole"
    for path in place.rglob("model.onnx"):
        assert path.with_name("model.onnx.json").exists(), f"{path} lacks its card"
    for path in place.rglob("lock"):
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a training that goes on holds it
    return ways[exit_code]


def send(signals: Mapping[str, int], seed: int, folder: Path) -> Counter[str]:
    """Start commands and stop each with SIGTERM at a random moment.

    Args:
        signals: How many of each command.
        seed: Of the moments.
        folder: For patches and runs.

    Returns:
        How many ended in which way.

    Raises:
        AssertionError: If one ended otherwise than with 143, or left something half-written.
    """
    place = Place(folder)
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for command, number in signals.items():
        (folder / command).mkdir()
        began = time.monotonic()
        whole = folder / command / "whole"
        whole.mkdir()
        exit_code = place.start(command, whole).wait()
        duration = time.monotonic() - began
        assert exit_code == 0, (folder / command / "whole.log").read_text()
        for attempt in range(number):
            stopped = folder / command / f"stopped_{attempt}"
            stopped.mkdir()
            process = place.start(command, stopped)
            time.sleep(rng.uniform(0, duration))
            process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            ended = check(stopped, command, process.wait(timeout=120), patches=sum(COUNTS["valid"]))
            went_on = time.monotonic() - sent
            assert ended != "done" or went_on < UNLOADING, f"{command} went on for {went_on:.1f} s after the signal"
            counts[f"{command} {ended}"] += 1
            shutil.rmtree(stopped)
    return counts


def main() -> None:
    """Send signals, and say how the commands ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        each = -(-options.signals // len(options.commands))
        counts = send(dict.fromkeys(options.commands, each), options.seed, Path(folder))
    print(f"{counts.total()} signals, nothing half-written: {dict(counts)}")


if __name__ == "__main__":
    main()
