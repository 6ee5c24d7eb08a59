"""No command writes over its own input, a part of a run, or a file of another kind."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pcam.commands.explain import main as explain
from pcam.commands.export import main as export
from pcam.commands.predict import main as predict
from tests.conftest import COUNTS, REPOSITORY
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence

MAINS = {"predict": predict, "explain": explain, "export": export}


@pytest.fixture(scope="module")
def run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def place(run: Path, patch_root: Path, tmp_path: Path) -> Path:
    """A folder with a run, patches, an HDF5 file of patches, and a table of the user's."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(patch_root / "valid", tmp_path / "patches")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros((2, 96, 96, 3), np.uint8)
    (tmp_path / "scores.errors.csv").write_text("my,own,table\n")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("predict", ["--input", "x.h5", "--output", "x.h5"]),
        ("predict", ["--input", "patches", "--output", "patches/0/patch0000000.png"]),
        ("predict", ["--input", "patches", "--output", "run/checkpoints/last.ckpt"]),
        ("predict", ["--input", "patches", "--output", "run/config.yaml"]),
        ("predict", ["--input", "patches", "--output", "scores.csv"]),
        ("explain", ["--input", "patches", "--output", "patches/0/patch0000000.png"]),
        ("explain", ["--input", "patches", "--output", "patches/new.png"]),
        ("explain", ["--input", "patches", "--output", "x.h5"]),
        ("export", ["--output", "run/checkpoints/best.ckpt"]),
        ("export", ["--output", "run/config.yaml"]),
        ("export", ["--format", "safetensors", "--output", "x.h5"]),
    ],
)
def test_nothing_is_lost(
    command: str, args: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = contents(place)
    said = sentence(capsys, MAINS[command], ["run", *args], 1)
    assert said.partition(": ")[2].startswith("Expected")
    assert "choose another place with --output" in said
    assert contents(place) == before


def run_to(stream: Callable[[], list[str]], place: Path, *more: str) -> str:
    """Predict as a process; what it writes to standard output."""
    command = [sys.executable, "-m", "pcam", "predict", "run", "--input", "patches", *stream(), *more]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == (1 if (place / "patches" / "0" / "broken.png").exists() else 0), done.stderr
    return done.stdout


@pytest.mark.slow  # starts a process
def test_standard_output_gets_the_scores_alone(place: Path) -> None:
    rows = list(csv.reader(run_to(lambda: ["--output", "/dev/stdout"], place).splitlines()))
    assert rows[0] == ["id", "logit", "score"]
    assert len(rows) == 1 + sum(COUNTS["valid"])
    (place / "patches" / "0" / "broken.png").write_bytes(b"no image")
    rows = list(csv.reader(run_to(lambda: ["--output", "/dev/stdout"], place).splitlines()))
    assert len(rows) == 1 + sum(COUNTS["valid"])


def test_what_is_thrown_away_leaves_the_device(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = set(Path("/dev").iterdir())
    predict(["run", "--input", "patches", "--output", "/dev/null"])
    assert set(Path("/dev").iterdir()) == before
    assert Path("/dev/null").is_char_device()
    assert "Scores of 25 patches: /dev/null" in capsys.readouterr().err


@pytest.mark.slow  # takes some seconds
def test_a_command_writes_again_what_it_wrote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "scores.errors.csv").unlink()
    for _ in range(2):
        predict(["run", "--input", "patches", "--output", "scores.csv"])
        predict(["run", "--input", "patches/0", "--output", "scores.csv", "--submission"])
        explain(["run", "--input", "patches", "--shown", "2"])
        export(["run", "--format", "safetensors"])
