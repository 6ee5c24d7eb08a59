"""A network of the user's own, a module with nothing but patches in and logits out, through the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pcam.commands.evaluate import main as evaluate
from pcam.commands.explain import main as explain
from pcam.commands.export import main as export
from pcam.commands.predict import main as predict
from pcam.trained import TrainedRun
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence


class Plain(nn.Module):
    """Two layers, without any attribute that this package knows.

    Args:
        width: The number of channels.
    """

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(width, 1)

    def forward(self, patches: Tensor) -> Tensor:
        return self.last(self.layers(patches / 255)).squeeze(1)


@pytest.fixture(scope="module")
def trained(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("runs")
    network = ["--model.network", "tests.scripts.test_own_network.Plain", "--model.network.width", "5"]
    return short_run("cnn", patch_root, cache_dir, runs_dir, *network)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "cnn" / "version_0"))


@pytest.mark.slow  # takes some seconds
def test_it_is_evaluated_and_predicts(run: Path, patch_root: Path, tmp_path: Path) -> None:
    evaluate([str(run), "--tta"])
    found = pd.read_csv(run / "evaluation" / "valid_tta" / "predictions.csv").set_index("id")["logit"]
    predict([str(run), "--input", str(patch_root / "valid"), "--output", str(tmp_path / "scores.csv"), "--tta"])
    table = pd.read_csv(tmp_path / "scores.csv").set_index("id")["logit"]
    assert table.to_numpy() == pytest.approx(found[[f"valid/{name}" for name in table.index]].to_numpy(), abs=1e-6)


def test_it_is_exported_without_the_facts_that_it_does_not_tell(run: Path) -> None:
    export([str(run)])
    patches = TrainedRun.load(run).data.packed("valid").patches[:7]
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["scores"], {"patches": patches})[0] == pytest.approx(
        TrainedRun.load(run).scores(patches), abs=1e-6
    )
    card = json.loads((run / "export" / "model.onnx.json").read_text())
    assert card["normalization"] is None
    assert card["network"] == {"class_path": "tests.scripts.test_own_network.Plain", "init_args": {"width": 5}}
    page = (run / "export" / "model.onnx.md").read_text()
    assert "Normalisation is inside the network.\n" in page
    assert "trained from random weights" in page


def test_its_weights_load_into_it(run: Path) -> None:
    export([str(run), "--format", "safetensors"])
    network = Plain(width=5)
    network.load_state_dict(load_file(run / "export" / "model.safetensors"))
    trained = TrainedRun.load(run)
    patches = trained.data.packed("valid")[np.arange(5)].patches
    with torch.inference_mode():
        assert network(patches).tolist() == trained.network(patches).tolist()
    assert (
        "tests.scripts.test_own_network.Plain(width=5).eval()" in (run / "export" / "model.safetensors.md").read_text()
    )


def test_explaining_says_what_it_lacks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(capsys, explain, [str(run)], 1)
    assert "Expected a network whose attribute features is the part that computes its convolutional features" in said
    assert said.endswith("but Plain has none; explain another network, or name that part of yours features.")
    assert not (run / "evaluation").exists()
