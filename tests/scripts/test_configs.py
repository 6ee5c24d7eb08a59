"""Every shipped config, through the front door."""

from pathlib import Path

import pytest
import yaml

from pcam.commands.train import main as train
from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.slow  # takes some seconds
def test_every_config_trains(config: Path, patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    options = yaml.safe_load(config.read_text())
    weights = ["--model.network.weights", "null"] if "weights" in options["model"]["network"]["init_args"] else []
    train([
        "--config", str(config), "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), *weights,
        "--runs_dir", str(tmp_path), "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # a fast_dev_run records nothing


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_bears_the_name_of_its_experiment(config: Path) -> None:
    assert yaml.safe_load(config.read_text())["experiment"] == config.stem


@pytest.mark.parametrize(
    ("first", "second", "differences"),
    [
        ("imagenet_dropout", "imagenet_no_dropout", {"dropout"}),
        ("imagenet_dropout", "random_dropout", {"weights"}),
        ("random_dropout", "random_no_dropout", {"dropout"}),
        ("imagenet_no_dropout", "random_no_dropout", {"weights"}),
    ],
)
def test_the_arms_of_the_study_differ_in_what_they_say(first: str, second: str, differences: set[str]) -> None:
    one, other = (yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text()) for name in (first, second))
    left, right = (config["model"]["network"].pop("init_args") for config in (one, other))
    assert {name for name in left if left[name] != right[name]} == differences
    assert {**one, "experiment": None} == {**other, "experiment": None}


@pytest.mark.parametrize("name", ["imagenet_dropout", "random_no_dropout"])
def test_the_protocol_is_the_published_one(name: str) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    assert config["trainer"]["max_steps"] == 10 * (144_000 // 32 // 20)
    assert config["trainer"]["val_check_interval"] == 144_000 // 32 // 20
    assert config["model"]["optimizer"]["init_args"] == {"lr": 0.001, "momentum": 0.95}


def test_the_best_recipe_s_learning_rate_ends_with_its_training() -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "best.yaml").read_text())
    schedule = config["model"]["scheduler"]["init_args"]
    assert schedule["total_steps"] == config["trainer"]["max_steps"]
    assert schedule["max_lr"] == config["model"]["optimizer"]["init_args"]["lr"]
