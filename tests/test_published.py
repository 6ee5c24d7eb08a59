"""Published runs: written by export, read back by every command, by folder, by name and by address."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from safetensors import safe_open

from pcam.commands.evaluate import evaluate
from pcam.commands.explain import explain
from pcam.commands.export import export
from pcam.commands.predict import predict
from pcam.data.stain import Staining
from pcam.errors import UserError
from pcam.published import shipped_runs
from pcam.run_folder import RunFolder
from pcam.trained import TrainedRun
from tests.scripts.test_evaluate import short_run


@pytest.fixture(scope="module")
def trained(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shifts = ["--data.stain_shifts", "[{haematoxylin: 1.3}]"]
    run = short_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("runs"), *shifts)
    evaluate([run])
    return run


@pytest.fixture(scope="module")
def published(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained, "hub", tmp_path_factory.mktemp("published") / "cnn")


def test_a_published_run_gives_the_scores_of_the_checkpoint(trained: Path, published: Path, patch_root: Path) -> None:
    original, copy = TrainedRun.load(trained), TrainedRun.load(published, root=patch_root)
    patches = original.data.packed("valid").patches[:]
    assert np.abs(original.scores(patches) - copy.scores(patches)).max() <= 1e-3
    assert copy.step == original.step
    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["scores"], {"patches": patches})[0] == pytest.approx(copy.scores(patches), abs=1e-5)
    with safe_open(published / "model.safetensors", "np") as file:
        weights = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118  # not a mapping
    assert {str(kind) for kind in weights.values()} >= {"float16", "float32"}


def test_a_published_run_names_no_place_of_the_machine(trained: Path, published: Path, patch_root: Path) -> None:
    for path in published.rglob("*"):
        if path.is_file():
            assert str(patch_root.parent).encode() not in path.read_bytes(), path
    assert yaml.safe_load((published / "config.yaml").read_text())["data"]["root"] == "data/pcam"


def test_a_published_run_knows_the_staining_of_its_training_patches(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staining = Staining(0.7, 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(TrainedRun, "training_staining", lambda _: staining)  # noise has none
        folder = export(trained, "hub", tmp_path / "cnn")
    assert TrainedRun.load(folder, root=tmp_path / "nowhere").training_staining() == staining


def test_the_page_of_a_published_run_has_what_was_measured(trained: Path, published: Path) -> None:
    page = (published / "README.md").read_text()
    metadata = yaml.safe_load(page.split("---")[1])
    metrics = json.loads((trained / "evaluation" / "valid" / "metrics.json").read_text())
    [result] = metadata["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "auroc", "name": "AUROC", "value": metrics["metrics"]["auroc"]}
    low, high = metrics["intervals"]["auroc"]
    assert f"{metrics['metrics']['auroc']:.4f} ({low:.4f} to {high:.4f})" in page
    assert "must not take part in any diagnosis" in page
    assert "| youden |" in page


@pytest.mark.slow  # takes some seconds
def test_results_of_a_published_run_go_to_its_folder(published: Path, patch_root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    evaluate([copy], root=patch_root)
    assert (copy / "evaluation" / "valid" / "predictions.csv").is_file()


def test_a_published_run_takes_the_place_of_nothing(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"Expected a new or empty folder for the published run, but .* is a folder th"):
        export(trained, "hub", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_published_run_has_no_other_checkpoint(published: Path) -> None:
    with pytest.raises(UserError, match=r"Expected the checkpoint best of .*, but found a request for last"):
        TrainedRun.load(published, "last")


def test_weights_that_are_damaged_or_of_another_network_are_refused(published: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"Expected weights as safetensors in .*, but they cannot be read"):
        TrainedRun.load(copy)
    shutil.copy(published / "model.safetensors", weights)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["network"] = {
        "class_path": "pcam.models.MobileNetV2",
        "init_args": {"weights": None, "dropout": 0.2},
    }
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"its weights are of another network"):
        TrainedRun.load(copy)


def test_a_run_of_the_hub_is_found_by_its_address(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, without a connection."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"Expected a run at hf://someone/cnn, but the Hugging Face hub did not give"):
        RunFolder.find(Path("hf://someone/cnn"))
    repository = tmp_path / "hub" / "models--someone--cnn"
    shutil.copytree(published, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    run = RunFolder.find(Path("hf://someone/cnn"))
    assert run.checkpoint("best").samefile(repository / "snapshots" / ("0" * 40) / "model.safetensors")
    assert re.fullmatch(r"lightning_logs/published/someone--cnn-[0-9a-f]{8}", str(run.output))
    # Another revision has other weights, and so thresholds of its own.
    shutil.copytree(repository / "snapshots" / ("0" * 40), repository / "snapshots" / ("1" * 40))
    other = repository / "snapshots" / ("1" * 40) / "model.safetensors"
    other.write_bytes(other.read_bytes() + b" ")
    assert RunFolder.find(Path(f"hf://someone/cnn@{'1' * 40}")).output not in (run.output, None)
    assert RunFolder.find(Path("hf://someone/cnn")).output == run.output
    with pytest.raises(UserError, match=r"Expected the address of a run on the Hugging Face hub, hf://owner/name, but"):
        RunFolder.find(Path("hf://a/b/c"))


@pytest.mark.slow  # takes some seconds
def test_every_run_that_is_shipped_scores_patches_without_its_data(
    patch_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_runs() == ["best"]
    for name in shipped_runs():
        run = RunFolder.find(Path(name))
        assert run.recorded_metrics("valid")["operating_points"].keys() >= {"youden", "0.5"}
        assert sum(path.stat().st_size for path in run.path.rglob("*")) < 6e6
        predict(Path(name), [patch_root / "test"], Path(f"{name}.csv"))
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) == 16
        assert "/" not in yaml.safe_load(run.config.read_text())["data"]["root"].removeprefix("data/")


@pytest.mark.slow  # takes some seconds
def test_results_of_a_shipped_run_stay_out_of_the_package(
    patch_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = RunFolder.find(Path("best")).path
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    [output] = evaluate([Path("best")], root=patch_root)
    assert output == RunFolder.find(Path("best")).output / "evaluation" / "valid"
    assert output.is_relative_to("lightning_logs/published")
    assert (tmp_path / output / "predictions.csv").is_file()
    [sheet] = explain([Path("best")], root=patch_root, shown=2)
    assert (tmp_path / sheet).is_relative_to(tmp_path / "lightning_logs")
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before


@pytest.mark.slow  # takes some seconds
def test_a_shipped_run_is_exported_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exported = export(Path("best"), "safetensors")
    assert exported.is_relative_to("lightning_logs/published")
    card = json.loads(exported.with_name("model.safetensors.json").read_text())
    assert card["parity"]["of"] == "synthetic patches"
    assert card["chosen_on_valid"] is not None
