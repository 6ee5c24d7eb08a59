"""The command export through its front door: the file, its card, and the check that comes before both."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

import pcam.models
from pcam.commands.evaluate import main as evaluate
from pcam.commands.export import main as export
from pcam.trained import TrainedRun
from tests.conftest import COUNTS, write_patches
from tests.scripts.test_evaluate import short_run
from tests.scripts.test_front_door import sentence


@pytest.fixture(scope="module")
def trained(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network with dropout, so that an export in training mode shows."""
    runs_dir = tmp_path_factory.mktemp("runs")
    return short_run("cnn", patch_root, cache_dir, runs_dir, "--model.network.dropout", "0.5")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "cnn" / "version_0"))


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated and then exported."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "cnn" / "version_0"))
    evaluate([str(run)])
    export([str(run), "--format", "onnx"])
    return run


def card_of(run: Path, file_format: str) -> dict:
    return json.loads((run / "export" / f"model.{file_format}.json").read_text())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_file_gives_the_scores_of_evaluating(evaluated: Path) -> None:
    assert names(evaluated / "export") == {"model.onnx", "model.onnx.json", "model.onnx.md"}
    table = pd.read_csv(evaluated / "evaluation" / "valid" / "predictions.csv").set_index("id")
    store = TrainedRun.load(evaluated).data.packed("valid")
    session = onnxruntime.InferenceSession(evaluated / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    scores, logits = session.run(None, {"patches": store.patches[:]})
    assert scores == pytest.approx(table.loc[store.ids(), "score"].to_numpy(), abs=1e-6)
    assert logits == pytest.approx(table.loc[store.ids(), "logit"].to_numpy(), abs=1e-5)


def test_the_card_says_what_the_file_is(evaluated: Path) -> None:
    card = card_of(evaluated, "onnx")
    contents = (evaluated / "export" / "model.onnx").read_bytes()
    assert (card["file"], card["format"], card["bytes"]) == ("model.onnx", "onnx", len(contents))
    assert card["sha256"] == hashlib.sha256(contents).hexdigest()
    assert (card["run"], card["checkpoint"], card["step"]) == ("cnn/version_0", "best", 2)
    assert card["network"]["class_path"] == "pcam.models.BaselineCNN"
    assert card["trained_from"] == "random weights"
    assert card["classes"] == ["normal", "tumour"]
    assert card["normalization"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}  # of the published network: value / 255
    assert card["micrometres_per_pixel"] == 0.972
    assert card["input"] == {
        "name": "patches", "type": "uint8", "shape": ["any", 96, 96, 3], "meaning": "RGB, 0..255",
    }  # fmt: skip
    assert [port["name"] for port in card["outputs"]] == ["scores", "logits"]
    environment = json.loads((evaluated / "environment.json").read_text())
    assert card["data_fingerprints"] == environment["data_fingerprints"]
    assert card["parity"]["patches"] == sum(COUNTS["valid"])
    assert card["parity"]["data_fingerprint"] == environment["data_fingerprints"]["valid"]
    assert 0 <= card["parity"]["largest_difference"] <= card["parity"]["allowed"] == 1e-4
    assert card["versions"].keys() == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert card["versions"]["onnxruntime"] == onnxruntime.__version__


def test_the_card_has_what_evaluating_chose(evaluated: Path) -> None:
    record = json.loads((evaluated / "evaluation" / "valid" / "metrics.json").read_text())
    chosen = card_of(evaluated, "onnx")["chosen_on_valid"]
    assert chosen["temperature"] == record["calibration"]["temperature"]
    assert chosen["thresholds"] == {name: point["threshold"] for name, point in record["operating_points"].items()}
    assert chosen["metrics"]["auroc"] == record["metrics"]["auroc"]


def test_the_page_says_what_the_card_does(evaluated: Path) -> None:
    card, page = card_of(evaluated, "onnx"), (evaluated / "export" / "model.onnx.md").read_text()
    for value in [
        card["sha256"], "cnn/version_0", "step 2", "BaselineCNN`, trained from random weights", "Class 0 is normal",
        "class 1 is tumour", "0.972 um", "mean [0.0, 0.0, 0.0] and std [1.0, 1.0, 1.0]", "| (any, 96, 96, 3) |",
        *card["data_fingerprints"].values(), f"{card['parity']['largest_difference']:.1e} at most", "0.0001 is allowed",
        f"| youden | {card['chosen_on_valid']['thresholds']['youden']:.6f} |",
        f"| auroc | {card['chosen_on_valid']['metrics']['auroc']:.4f} |",
        f"Temperature: {card['chosen_on_valid']['temperature']:.4f}", "Not a medical device",
    ]:  # fmt: skip
        assert value.lower() in page.lower(), value
    # Every table has a head, or it is none.
    lines = page.splitlines()
    starts = [row for row, line in enumerate(lines) if line.startswith("|") and not lines[row - 1].startswith("|")]
    assert len(starts) == 4
    assert all(set(lines[row + 1]) <= set("| -") for row in starts)


def test_the_pages_example_runs(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated / "export")
    page = Path("model.onnx.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    found = {"onnxruntime": onnxruntime, "patches": np.zeros((3, 96, 96, 3), dtype=np.uint8)}
    exec(example, found)
    assert found["scores"].shape == (3,)


def test_weights_alone_load_into_the_network_that_the_page_names(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export([str(run), "--format", "safetensors"])
    assert names(run / "export") == {f"model.safetensors{ending}" for ending in ("", ".json", ".md")}
    card = card_of(run, "safetensors")
    assert [port["name"] for port in card["outputs"]] == ["logits"]
    assert card["input"]["shape"] == ["any", 3, 96, 96]
    assert card["versions"].keys() == {"torch", "safetensors"}
    assert card["parity"]["largest_difference"] == 0
    trained = TrainedRun.load(run)
    expected = trained.network.state_dict()
    weights = load_file(run / "export" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    monkeypatch.chdir(run / "export")
    example = Path("model.safetensors.md").read_text().split("```python\n")[1].split("```")[0]
    patches = trained.data.packed("valid")[np.arange(5)].patches
    found = {"pcam": pcam, "safetensors": safetensors, "patches": patches}
    exec(example, found)
    assert torch.equal(found["scores"], trained.network(patches).sigmoid())


@pytest.mark.slow  # takes some seconds
def test_a_card_has_no_choices_that_are_of_other_weights_or_patches(run: Path, evaluated: Path, tmp_path: Path) -> None:
    export([str(run), "--format", "safetensors"])
    assert card_of(run, "safetensors")["chosen_on_valid"] is None
    assert "Not known: `scripts/evaluate.py` chooses" in (run / "export" / "model.safetensors.md").read_text()
    shutil.copytree(evaluated / "evaluation", run / "evaluation")
    export([str(run), "--format", "safetensors"])
    assert card_of(run, "safetensors")["chosen_on_valid"] is not None
    export([str(run), "--format", "safetensors", "--checkpoint", "last"])
    assert card_of(run, "safetensors")["chosen_on_valid"] is None
    root = tmp_path / "others"
    write_patches(root, {"train": (2, 2), "valid": (4, 4)}, seed=1)
    export([str(run), "--format", "safetensors", "--data.root", str(root)])
    card = card_of(run, "safetensors")
    assert card["chosen_on_valid"] is None
    assert card["parity"]["patches"] == 8
    assert card["parity"]["data_fingerprint"] != card["data_fingerprints"]["valid"]


@pytest.mark.parametrize("option", ["--axis_order", "--layout"])
@pytest.mark.slow  # takes some seconds
def test_channels_may_come_first_and_the_file_lie_elsewhere(option: str, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "lymph.onnx"
    export([str(run), option, "NCHW", "--output", str(output)])
    assert names(output.parent) == {"lymph.onnx", "lymph.onnx.json", "lymph.onnx.md"}
    (given,) = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"]).get_inputs()
    assert given.shape[1:] == [3, 96, 96]
    card = json.loads((output.parent / "lymph.onnx.json").read_text())
    assert (card["file"], card["input"]["shape"]) == ("lymph.onnx", ["any", 3, 96, 96])
    assert not (run / "export").exists()


OF_YESTERDAY = {"onnx": b"\x08 of yesterday", "safetensors": b"\x02\0\0\0\0\0\0\0{} of yesterday"}
"""What files of these kinds begin with."""


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
@pytest.mark.parametrize("file_format", ["onnx", "safetensors"])
def test_a_file_that_answers_otherwise_is_not_kept(
    file_format: str, wrong: float, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(network, path, **options):
        path.write_bytes(b"a file")
        return lambda patches: np.where(patches[:, 0, 0, 0] > 0, 0.5, 0.5 + wrong).astype(np.float32)

    monkeypatch.setattr(f"pcam.evaluation.export.write_{file_format}", write)
    monkeypatch.setattr(
        "pcam.evaluation.export.checkpoint_score",
        lambda network: lambda patches: np.full(len(patches), 0.5, np.float32),
    )
    patches = np.full((4, 96, 96, 3), 9, dtype=np.uint8)
    patches[2] = 0
    store = type("Store", (), {"patches": patches, "fingerprint": "f"})
    monkeypatch.setattr("pcam.data.PCamDataModule.packed", lambda datamodule, split: store)
    export_folder = run / "export"
    export_folder.mkdir()
    (export_folder / f"model.{file_format}").write_bytes(OF_YESTERDAY[file_format])
    said = sentence(capsys, export, [str(run), "--format", file_format], 1)
    assert f"Expected the scores of model.{file_format} to differ from the checkpoint's by 1e-04 at most" in said
    assert f"found {wrong:.1e} on 4 patches of the valid split; nothing is left of it" in said
    assert names(export_folder) == {f"model.{file_format}"}
    assert (export_folder / f"model.{file_format}").read_bytes() == OF_YESTERDAY[file_format]


def test_an_unknown_format_ends_with_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "keras" in sentence(capsys, export, [str(run), "--format", "keras"], 2)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")  # which is what the extension uses
@pytest.mark.parametrize("tta", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow  # takes some seconds
def test_a_torchscript_model_is_what_qupath_runs(tta: bool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export([str(run), "--format", "torchscript", *(["--tta"] if tta else [])])
    folder = run / "export" / "torchscript"
    assert names(folder) == {
        "torchscript_model.pt",
        "config.json",
        *(f"torchscript_model.pt.{end}" for end in ("json", "md")),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["spec_version"] == "1.0"
    assert (config["patch_size_pixels"], config["spacing_um_px"], config["num_classes"]) == (96, 0.972, 2)
    assert config["class_names"] == ["normal", "tumour"]
    assert [step["name"] for step in config["transform"]] == ["ToTensor"]
    trained = TrainedRun.load(run)
    patches = trained.data.packed("valid").patches[:].copy()  # PyTorch wants memory that it may write to
    model = torch.jit.load(folder / "torchscript_model.pt")
    for batch in (patches, patches[:1]):
        # What the extension does: floats of 0..1, channels first, and a softmax at the end.
        with torch.inference_mode():
            found = model(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255).softmax(dim=1)
        assert found[:, 1].numpy() == pytest.approx(trained.scores(batch, tta=tta), abs=1e-5)
    said = sentence(capsys, export, [str(run), "--format", "torchscript", "--output", str(run / "export" / "a.pt")], 1)
    assert "Expected --output to be named torchscript_model.pt" in said


@pytest.mark.slow  # takes some seconds
def test_the_symmetries_can_be_inside_the_model(run: Path) -> None:
    evaluate([str(run), "--tta"])
    evaluate([str(run)])
    export([str(run), "--tta"])
    table = pd.read_csv(run / "evaluation" / "valid_tta" / "predictions.csv").set_index("id")
    plain = pd.read_csv(run / "evaluation" / "valid" / "predictions.csv").set_index("id")
    store = TrainedRun.load(run).data.packed("valid")
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    scores, logits = session.run(None, {"patches": store.patches[:]})
    assert scores == pytest.approx(table.loc[store.ids(), "score"].to_numpy(), abs=1e-6)
    assert logits == pytest.approx(table.loc[store.ids(), "logit"].to_numpy(), abs=1e-5)
    assert np.abs(scores - plain.loc[store.ids(), "score"].to_numpy()).max() > 1e-5
    (upright,), (mirrored,) = (
        session.run(["scores"], {"patches": patches}) for patches in (store.patches[:], store.patches[:, ::-1])
    )
    assert mirrored == pytest.approx(upright, abs=1e-5)
    card = card_of(run, "onnx")
    assert card["scores"] == {"tta": True, "sizes": [96], "reestimate_bn": False}
    page = (run / "export" / "model.onnx.md").read_text()
    assert "the mean over the eight symmetries of the square (test-time augmentation, inside the model)" in page
    chosen, record = card["chosen_on_valid"], json.loads((run / "evaluation/valid_tta/metrics.json").read_text())
    assert chosen["thresholds"]["youden"] == record["operating_points"]["youden"]["threshold"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "safetensors", "--tta"], "holds weights alone and no symmetries; choose onnx, or leave out"),
        (["--precision", "bf16-mixed"], "Expected --precision 32-true for a file, but found bf16-mixed"),
        (["--enlarged_sizes", "[128]"], "that the run has batch-norm statistics for ([]), but found [128]"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(
    options: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in sentence(capsys, export, [str(run), *options], 1)
    assert not (run / "export").exists()


@pytest.mark.slow
def test_a_model_has_the_sizes_and_statistics_that_are_asked_for(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short_run("random_dropout", patch_root, cache_dir, tmp_path, "--model.network.enlarged_sizes", "[128, 160]")
    export([str(run), "--format", "safetensors", "--enlarged_sizes", "[160]", "--reestimate_bn"])
    card = card_of(run, "safetensors")
    assert card["scores"] == {"tta": False, "sizes": [96, 160], "reestimate_bn": True}
    assert card["network"]["init_args"]["enlarged_sizes"] == [160]
    trained = TrainedRun.load(run, enlarged_sizes=[160], reestimate_bn=True)
    patches = trained.data.packed("valid")[np.arange(5)].patches
    monkeypatch.chdir(run / "export")
    example = Path("model.safetensors.md").read_text().split("```python\n")[1].split("```")[0]
    found = {"pcam": pcam, "safetensors": safetensors, "patches": patches}
    exec(example, found)
    assert found["scores"].detach().numpy() == pytest.approx(trained.scores(patches), abs=1e-5)
    export([str(run), "--enlarged_sizes", "[]", "--tta"])
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"patches": patches.permute(0, 2, 3, 1).numpy()})
    assert scores == pytest.approx(TrainedRun.load(run, enlarged_sizes=[], tta=True).scores(patches), abs=1e-5)


@pytest.mark.slow
def test_mobilenet_is_exported_too(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    run = short_run("random_dropout", patch_root, cache_dir, tmp_path)
    export([str(run), "--format", "onnx"])
    card = card_of(run, "onnx")
    assert card["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert card["parity"]["largest_difference"] <= 1e-4
    export([str(run), "--format", "safetensors"])
    assert card_of(run, "safetensors")["parity"]["largest_difference"] == 0
