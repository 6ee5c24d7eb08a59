"""The commands embed and probe through their front door, and what the other commands make of a probe's run."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml

from pcam.commands.embed import embed
from pcam.commands.evaluate import main as evaluate
from pcam.commands.explain import main as explain
from pcam.commands.export import main as export
from pcam.commands.predict import main as predict
from pcam.commands.probe import main as main_of_probe
from pcam.commands.probe import probe
from pcam.models import TimmNetwork
from pcam.probe import linear
from pcam.run_folder import RunFolder, are_seeds
from pcam.trained import TrainedRun
from tests.models.test_timm_network import hub_folder
from tests.scripts.test_front_door import sentence


@pytest.fixture(scope="module")
def words(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line about a convolutional network whose weights are in a folder."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    torch.manual_seed(0)
    hub_folder(folder, "test_resnet", input_size=(3, 96, 96))
    return [
        "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--data.batch_size", "16",
        "--model.network", "pcam.models.TimmNetwork", "--model.network.weights", str(folder),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def probed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    (run,) = probe([*words, "--runs_dir", str(tmp_path_factory.mktemp("runs"))])
    return run


@pytest.fixture
def run(probed: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(probed.path, tmp_path / "probe_test_resnet" / "version_0")))


def test_train_is_not_measured_by_neighbours_among_itself(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--runs_dir", str(tmp_path), "--split", "train", "--neighbours", "3"]
    assert "Expected --split valid or test for" in sentence(capsys, main_of_probe, [*words, *more], 1)


@pytest.mark.slow  # takes some seconds
def test_a_probe_is_a_run_folder_like_any_other(run: RunFolder, words: list[str]) -> None:
    rows = pd.read_csv(run.metrics)
    assert {"step", "train/loss", "val/loss", "val/auroc", "val/balanced_accuracy"} <= set(rows)
    facts = json.loads((run.path / "probe.json").read_text())
    chosen = rows[rows["strength"] == facts["strength"]].iloc[0]
    trained = TrainedRun.load(run.path)
    assert trained.step == chosen["step"] == facts["passes"]
    config = yaml.safe_load(run.config.read_text())
    assert config["model"]["network"]["init_args"]["name"] == "test_resnet"  # the folder may go
    assert config["model"]["network"]["init_args"]["image_size"] == 96
    assert set(run.read_environment()["data_fingerprints"]) == {"train", "valid"}

    predictions = trained.predict("valid")
    evaluate([str(run.path)])
    metrics = json.loads((run.path / "evaluation" / "valid" / "metrics.json").read_text())["metrics"]
    assert metrics["auroc"] == pytest.approx(chosen["val/auroc"], abs=1e-6)
    assert metrics["loss"] == pytest.approx(chosen["val/loss"], rel=1e-3)
    embedded = embed(words)["valid"]
    head = trained.network.head[-1]
    expected = embedded.matrix @ head.weight.detach().numpy()[0] + head.bias.item()
    np.testing.assert_allclose(predictions.logits, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow  # takes some seconds
def test_the_other_commands_take_it(run: RunFolder, patch_root: Path, tmp_path: Path) -> None:
    predict([str(run.path), "--input", str(patch_root / "test"), "--output", str(tmp_path / "scores.csv")])
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 15
    explain([str(run.path)])
    assert (run.evaluation("valid") / "explanation.png").exists()
    export([str(run.path)])
    patches = TrainedRun.load(run.path).data.packed("valid").patches[:3]
    session = onnxruntime.InferenceSession(run.path / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    scores = session.run(["scores"], {"patches": patches})[0]
    assert scores == pytest.approx(TrainedRun.load(run.path).scores(patches), abs=1e-5)


def test_its_own_config_probes_again(run: RunFolder, tmp_path: Path) -> None:
    (again,) = probe(["--config", str(run.config), "--runs_dir", str(tmp_path / "again")])
    first, second = (torch.load(each.checkpoint("best"), weights_only=True)["state_dict"] for each in (run, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_evas_protocol_makes_seeds(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "EVA_STEPS", 20)
    runs = probe([*words, "--runs_dir", str(tmp_path), "--method", "eva", "--seeds", "3"])
    assert [run.number for run in runs] == [0, 1, 2]
    assert are_seeds(runs)
    with_linear = {TrainedRun.load(run.path).network.head[-1].bias.item() for run in runs}
    assert len(with_linear) == 3


@pytest.mark.slow  # takes some seconds
def test_neighbours_and_curves_lie_beside_it(words: list[str], tmp_path: Path) -> None:
    (run,) = probe([*words, "--runs_dir", str(tmp_path), "--neighbours", "5", "--few_shot", "3", "--split", "test"])
    folder = run.path / "evaluation" / "test_embeddings"
    assert json.loads((folder / "neighbours.json").read_text())["patches"] == 15
    table = pd.read_csv(folder / "few_shot.csv")
    assert table["shots"].tolist() == [5, 10, 20]
    assert (folder / "few_shot.png").stat().st_size > 1000


@pytest.mark.slow  # takes some seconds
def test_a_vision_transformer_with_random_weights_is_probed(words: list[str], tmp_path: Path) -> None:
    hub_folder(tmp_path / "vit", "test_vit")
    weights = ["--model.network.weights", str(tmp_path / "vit"), "--model.network.pooling", "cls_and_mean"]
    (run,) = probe([*words, *weights, "--runs_dir", str(tmp_path / "runs"), "--dtype", "float16"])
    network = TrainedRun.load(run.path).network
    assert isinstance(network, TimmNetwork)
    assert network.head[-1].in_features == 128


def test_what_cannot_be_probed_is_refused_in_a_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--runs_dir", str(tmp_path / "runs")]
    said = sentence(capsys, main_of_probe, [*words, *out, "--model.network", "pcam.models.BaselineCNN"], 1)
    assert "BaselineCNN has no method embed" in said
    said = sentence(capsys, main_of_probe, [*words, *out, "--experiment", "../climbs"], 1)
    assert "Expected experiment to be the name of a folder" in said
    said = sentence(capsys, main_of_probe, [*words, *out, "--model.network.pooling", "cls"], 1)
    assert "a class token for pooling 'cls', but ResNet has none; leave out --model.network.pooling" in said
    said = sentence(capsys, main_of_probe, [*words, *out, "--method", "svm"], 2)
    assert "svm" in said
    assert not (tmp_path / "runs").exists()
