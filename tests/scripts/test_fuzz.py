"""Any value of any option, and any damage to the files of a run folder: an answer, never a traceback."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcam.commands.export import main as export
from pcam.commands.predict import main as predict
from pcam.commands.train import main as train
from tests.scripts.test_front_door import exit_code
from tests.scripts.test_resume import arguments

EXAMPLES = int(os.environ.get("PCAM_FUZZ_EXAMPLES", "20"))

OPTIONS = [
    *(f"data.{name}" for name in ("batch_size", "augmentation", "stain_jitter", "stain_shifts", "deduplicate")),
    *(f"model.network.{name}" for name in ("dense", "dropout", "normalization")),
    *("model.network", "model.optimizer", "model.scheduler", "model.optimizer.lr", "model.optimizer.momentum"),
    *("seed_everything", "experiment", "monitor", "checkpoint_every_seconds", "trainer", "data", "model"),
    *(
        f"trainer.{name}"
        for name in (
            "accumulate_grad_batches", "benchmark", "check_val_every_n_epoch", "deterministic", "detect_anomaly",
            "gradient_clip_val", "inference_mode", "limit_train_batches", "limit_val_batches", "log_every_n_steps",
            "max_time", "min_epochs", "min_steps", "num_sanity_val_steps", "overfit_batches", "precision", "profiler",
            "reload_dataloaders_every_n_epochs", "sync_batchnorm", "val_check_interval",
        )
    ),
]  # fmt: skip
"""Options that change what a short run does; not how many processes it has, nor how many steps."""

VALUES = st.one_of(
    st.sampled_from(
        ["null", "[]", "{}", "true", "0", "-1", "0.5", "1e30", "nan", ".inf", "1e-30", "''", "~", "[null]"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20).filter(lambda text: "\0" not in text),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a warning is no traceback
@settings(max_examples=EXAMPLES, deadline=None)
@given(option=st.sampled_from(OPTIONS), value=VALUES)
@example(option="trainer.limit_val_batches", value="0.125")  # of four batches
def test_an_option_with_any_value_trains_or_is_refused_and_then_leaves_no_run(
    option: str, value: str, patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs_dir = tmp_path_factory.mktemp("fuzzed")
    code = exit_code(train, [*arguments(patch_root, cache_dir, runs_dir, steps=3), f"--{option}={value}"])
    assert code in (0, 1, 2)
    runs = list(runs_dir.glob("*/version_*"))
    assert runs if code == 0 else not [run for run in runs if not (run / "metrics.csv").exists()]


@pytest.fixture(scope="module")
def finished(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps; nobody may write to it."""
    runs_dir = tmp_path_factory.mktemp("runs")
    train(arguments(patch_root, cache_dir, runs_dir))
    return runs_dir / "cnn" / "version_0"


FILES = ["config.yaml", "metrics.csv", "environment.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"]

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=9), st.integers(), max_size=3),
)  # fmt: skip


def flip(content: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def replace_within(contents: Any, value: object, rng: random.Random) -> Any:
    """Replace or remove a part at a random place and depth."""
    if not isinstance(contents, dict | list) or not contents or rng.random() < 0.1:
        return value
    keys = list(contents) if isinstance(contents, dict) else list(range(len(contents)))
    key = rng.choice(keys)
    if rng.random() < 0.1:
        del contents[key]
    else:
        contents[key] = replace_within(contents[key], value, rng)
    return contents


def replace_part(name: str, content: bytes, value: object, rng: random.Random) -> bytes:
    """Replace a part of a file by another value, so that the file is of the right kind still."""
    if name.endswith(".ckpt"):
        checkpoint = replace_within(torch.load(io.BytesIO(content), weights_only=True), value, rng)
        file = io.BytesIO()
        torch.save(checkpoint, file)
        return file.getvalue()
    if name.endswith(".json"):
        return json.dumps(replace_within(json.loads(content), value, rng)).encode()
    if name.endswith(".yaml"):
        return yaml.safe_dump(replace_within(yaml.safe_load(content), value, rng)).encode()
    lines = [line.split(",") for line in content.decode().splitlines()]
    return "\n".join(",".join(map(str, line)) for line in replace_within(lines, [value], rng)).encode()


DAMAGES: dict[str, Callable[[str, bytes, object, random.Random], bytes]] = {
    "flip": lambda name, content, value, rng: flip(content, rng),
    "cut": lambda name, content, value, rng: content[: rng.randrange(len(content))],
    "part": replace_part,
    "whole": lambda name, content, value, rng: json.dumps(value).encode(),
    "binary": lambda name, content, value, rng: rng.randbytes(64),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a warning is no traceback
@settings(max_examples=EXAMPLES, deadline=None)
@given(name=st.sampled_from(FILES), damage=st.sampled_from(sorted(DAMAGES)), value=PLAIN, seed=st.integers(0, 2**32))
@example(name="checkpoints/last.ckpt", damage="part", value=[], seed=643034)  # a metric of the best validation
@example(name="checkpoints/last.ckpt", damage="part", value=None, seed=7071)  # Lightning's version
@example(name="checkpoints/last.ckpt", damage="part", value="", seed=191)  # the same
@example(name="config.yaml", damage="part", value=None, seed=0)  # the number of steps
def test_a_damaged_file_of_a_run_is_used_or_refused_in_a_sentence(
    name: str, damage: str, value: object, seed: int, finished: Path, patch_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("damaged")
    run = Path(shutil.copytree(finished, folder / "cnn" / "version_0"))
    path = run / name
    path.write_bytes(DAMAGES[damage](name, path.read_bytes(), value, random.Random(seed)))
    # The config says how many steps there are, which may be any number now, or none.
    end = ["--trainer.max_time", "00:00:00:05"] if name == "config.yaml" else ["--trainer.max_steps", "7"]
    scores = ["--input", str(patch_root / "test"), "--output", str(folder / "scores.csv")]
    assert exit_code(predict, [str(run), *scores]) in (0, 1, 2)
    assert exit_code(export, [str(run), "--format", "safetensors"]) in (0, 1, 2)
    assert exit_code(train, ["--resume", str(run), *end]) in (0, 1, 2)
    shutil.rmtree(folder)
