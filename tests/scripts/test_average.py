"""The command average through its front door: the mean of the weights of several runs, as a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pcam.commands.average import main as average
from pcam.commands.evaluate import main as evaluate
from pcam.commands.export import main as export
from pcam.commands.train import main as train
from pcam.run_folder import RunFolder, are_seeds
from pcam.trained import TrainedRun
from tests.conftest import COUNTS, write_patches
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence


@pytest.fixture(scope="module")
def runs(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the baseline CNN, which has no batch norm."""
    runs_dir = tmp_path_factory.mktemp("runs")
    return [short_run("cnn", patch_root, cache_dir, runs_dir, "--seed_everything", seed) for seed in ("1", "2")]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return TrainedRun.load(run).network.state_dict()


def test_the_mean_is_a_run_that_says_what_it_is_of(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mean"
    average([*map(str, runs), "--output", str(output)])
    first, second = map(weights_of, runs)
    last = ("head.4.weight", "head.4.bias")
    for name, weight in load_file(output / "model.safetensors").items():
        if name not in last:  # which is scaled
            torch.testing.assert_close(weight, (first[name] + second[name]) / 2, msg=name)
    written = (output / "environment.json").stat().st_mode
    assert (output / "model.safetensors").stat().st_mode == written  # nobody is kept from reading it
    environment = json.loads((output / "environment.json").read_text())
    assert environment["averaged"] == [
        {"run": "cnn/version_0", "seed": 1, "checkpoint": "best", "step": 2},
        {"run": "cnn/version_1", "seed": 2, "checkpoint": "best", "step": 2},
    ]
    trained = json.loads((runs[0] / "environment.json").read_text())
    assert environment["data_fingerprints"] == trained["data_fingerprints"]
    assert yaml.safe_load((output / "config.yaml").read_text())["experiment"] == "cnn_average"
    table = capsys.readouterr().out
    evaluate([str(output)])
    record = json.loads((output / "evaluation" / "valid" / "metrics.json").read_text())
    assert record["step"] == 2
    measured = record["metrics"]
    assert f"the mean of their weights {measured['auroc']:.4f} {measured['loss']:.4f}" in " ".join(table.split())
    assert "published run has no other weights" in sentence(capsys, train, ["--resume", str(output)], 1)
    export([str(output), "--format", "hub", "--output", str(tmp_path / "hub")])
    page = (tmp_path / "hub" / "README.md").read_text()
    assert "the mean of the weights of 2 runs: `cnn/version_0` (seed 1), `cnn/version_1` (seed 2)" in page
    assert "The network is the mean of the weights of 2 training runs; other seeds would" in page
    assert not are_seeds([RunFolder(output), RunFolder(runs[1])])  # the mean is no further seed


@pytest.mark.slow  # takes some seconds
def test_batch_norm_has_the_statistics_of_the_mean(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    sizes = ("--model.network.init_args.enlarged_sizes", "[104]")
    both = [
        short_run("random_dropout", patch_root, cache_dir, tmp_path / "runs", "--seed_everything", seed, *sizes)
        for seed in ("1", "2")
    ]
    average([*map(str, both), "--output", str(tmp_path / "mean")])
    run = TrainedRun.load(tmp_path / "mean")
    found = {name: buffer.clone() for name, buffer in run.network.named_buffers() if "running" in name}
    run.reestimate_batch_norm()
    assert any("enlarged" in name for name in found)
    for name, buffer in run.network.named_buffers():
        if "running" in name:
            torch.testing.assert_close(found[name], buffer, msg=name)


def test_a_mean_that_is_no_better_is_said(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    opposite = tmp_path / "cnn" / "version_1"
    shutil.copytree(runs[0], opposite)
    for path in (opposite / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        *_, weight, bias = checkpoint["state_dict"]  # the last layer's
        for name in (weight, bias):
            checkpoint["state_dict"][name] *= -1
        torch.save(checkpoint, path)
    average([str(runs[0]), str(opposite), "--output", str(tmp_path / "mean")])
    said = capsys.readouterr()
    assert "the mean of their weights 0.5000 0.6931" in " ".join(said.out.split())
    assert "no higher AUROC than the runs have on average (0.5000), so averaging does not pay here" in caplog.text
    assert "its logits were not scaled" in caplog.text


def test_what_cannot_be_averaged_is_answered_and_leaves_nothing(
    runs: list[Path], patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mean"
    said = sentence(capsys, average, [str(runs[0]), str(runs[0]), "--output", str(output)], 1)
    assert "Expected at least two different runs to average" in said
    said = sentence(capsys, average, [str(runs[0]), "--output", str(output)], 1)
    assert "Expected at least two different runs to average" in said
    write_patches(tmp_path / "others", COUNTS, seed=1)
    elsewhere = short_run("cnn", tmp_path / "others", cache_dir, tmp_path / "runs")
    said = sentence(capsys, average, [str(runs[0]), str(elsewhere), "--output", str(output)], 1)
    assert "Expected runs that were trained on the same patches, but the train split" in said
    wide = short_run("cnn", patch_root, cache_dir, tmp_path / "wide", "--model.network.dense", "false")
    said = sentence(capsys, average, [str(runs[0]), str(wide), "--output", str(output)], 1)
    assert "Expected runs whose networks are built alike, but dense is True in" in said
    output.mkdir()
    (output / "mine").touch()
    said = sentence(capsys, average, [*map(str, runs), "--output", str(output)], 1)
    assert "Expected a new or empty folder for the averaged run" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mean", "others", "runs", "wide"]
