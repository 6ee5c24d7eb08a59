"""One run's whole life, through the front doors of the scripts: train, interrupt, resume, evaluate."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pcam.commands.evaluate import main as evaluate
from pcam.commands.train import main as train
from pcam.data import PCamDataModule
from pcam.training import PatchClassifier
from tests.conftest import COUNTS, REPOSITORY

STEPS = 30
"""Of 11 batches an epoch, with a validation every 6: so validations and checkpoints fall within epochs too."""


def arguments(config: str, root: Path, cache_dir: Path, runs_dir: Path) -> list[str]:
    return [
        "--config", str(REPOSITORY / "configs" / f"{config}.yaml"),
        "--data.root", str(root),
        "--data.cache_dir", str(cache_dir),
        "--data.batch_size", "8",
        "--data.augmentation", "d4",
        "--data.stain_jitter", "0.1",
        "--data.stain_shifts", "[{eosin: 1.3}]",
        "--model.network.dropout", "0.5",
        *(["--model.network.enlarged_sizes", "[128]"] if config == "random_dropout" else []),
        "--trainer.max_steps", str(STEPS),
        "--trainer.val_check_interval", "6",
        "--trainer.log_every_n_steps", "3",
        "--trainer.enable_progress_bar", "false",
        "--runs_dir", str(runs_dir),
    ]  # fmt: skip


def whole_run(config: str, root: Path, cache_dir: Path, runs_dir: Path) -> Path:
    train(arguments(config, root, cache_dir, runs_dir))
    return runs_dir / config / "version_0"


@pytest.fixture(scope="module")
def cnn_run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the baseline CNN that nothing interrupted."""
    return whole_run("cnn", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))


def weights(run: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)
    return state["state_dict"]


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = events(run)
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_a_run_folder_holds_what_its_readme_says(cnn_run: Path) -> None:
    found = {path.name for path in cnn_run.iterdir() if not path.name.startswith("events.")}
    assert found == {"config.yaml", "checkpoints", "metrics.csv", "environment.json", "hparams.yaml"}
    assert {path.name for path in (cnn_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    environment = json.loads((cnn_run / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["data_fingerprints"].keys() == {"train", "valid"}


def test_validation_and_entries_fall_on_the_steps_that_the_config_names(cnn_run: Path) -> None:
    table = pd.read_csv(cnn_run / "metrics.csv")
    assert table.loc[table["val/auroc"].notna(), "step"].tolist() == list(range(6, STEPS + 1, 6))
    assert table.loc[table["train/loss"].notna(), "step"].tolist() == list(range(3, STEPS + 1, 3))
    assert table.loc[table["step"] == 12, "epoch"].item() == 1  # an epoch is 11 batches


def test_the_best_checkpoint_is_the_one_with_the_lowest_loss(cnn_run: Path) -> None:
    table = pd.read_csv(cnn_run / "metrics.csv").dropna(subset="val/loss")
    best = table.loc[table["val/loss"].idxmin(), "step"]
    assert torch.load(cnn_run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == best


def test_tensorboard_has_curves_figures_and_hyperparameters(cnn_run: Path) -> None:
    found = events(cnn_run)
    assert {"train/loss", "val/loss", "val/auroc", "val/average_precision", "val/accuracy"} <= scalars(cnn_run).keys()
    for tag in ("val/roc", "val/precision_recall", "val/patches"):
        assert [image.step for image in found.Images(tag)] == list(range(6, STEPS + 1, 6))
    assert "custom_scalars__config__" in found.summary_metadata
    content = found.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert experiment.metric_infos[0].name.tag == "best/val/auroc"
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"optimizer/lr", "seed"}  # shown first
    assert "best/val/auroc" in scalars(cnn_run)


@pytest.mark.slow  # takes some seconds
def test_the_saved_config_gives_the_same_run(cnn_run: Path, tmp_path: Path) -> None:
    train(["--config", str(cnn_run / "config.yaml"), "--runs_dir", str(tmp_path)])
    again = tmp_path / "cnn" / "version_0"
    assert (again / "metrics.csv").read_text() == (cnn_run / "metrics.csv").read_text()
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (cnn_run, again))
    assert {**first, "runs_dir": None} == {**second, "runs_dir": None}


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int, signal_number: int) -> None:
    step = PatchClassifier.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.global_step == at_step - 1:
            os.kill(os.getpid(), signal_number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PatchClassifier, "training_step", interrupted_step)


def assert_same_end(run: Path, whole: Path) -> None:
    for checkpoint in ("best", "last"):
        expected, found = weights(whole, checkpoint), weights(run, checkpoint)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), checkpoint
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert scalars(run) == scalars(whole)


# Mid-epoch between entries, at a validation, after an epoch's last batch; at an entry, at a validation in epoch 1,
# after the last batch of epoch 1, and one step before the end.
@pytest.mark.parametrize(
    "at_step", [6, 11, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 9, 12, 22, 29))]
)
def test_an_interrupted_run_resumes_to_the_same_end_bit_for_bit(
    at_step: int, cnn_run: Path, patch_root: Path, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    signal_number, code = (signal.SIGINT, 130) if at_step % 2 else (signal.SIGTERM, 143)
    with monkeypatch.context() as patch:
        interrupt(patch, at_step, signal_number)
        with pytest.raises(SystemExit) as ended:
            train(arguments("cnn", patch_root, cache_dir, tmp_path))
    run = tmp_path / "cnn" / "version_0"
    assert ended.value.code == code
    assert f"Interrupted after step {at_step}; {run}/checkpoints/last.ckpt holds" in capsys.readouterr().err
    torch.rand(7)  # the global random state is not what it was
    train(["--resume", str(run)])
    assert_same_end(run, cnn_run)


@pytest.fixture(scope="module")
def mobilenet_run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MobileNetV2 that nothing interrupted."""
    return whole_run("random_dropout", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [4, 25])
def test_an_interrupted_mobilenet_resumes_too(
    at_step: int, mobilenet_run: Path, patch_root: Path, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt(patch, at_step, signal.SIGINT)
        with pytest.raises(SystemExit):
            train(arguments("random_dropout", patch_root, cache_dir, tmp_path))
    run = tmp_path / "random_dropout" / "version_0"
    train(["--resume", str(run)])
    assert_same_end(run, mobilenet_run)


@pytest.mark.slow  # takes some seconds
def test_a_run_goes_on_from_the_checkpoint_of_a_validation(
    cnn_run: Path, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL: what was logged after the last checkpoint is logged again, not twice."""

    def killed_step(self, batch, batch_idx):
        if self.global_step == 16:  # the last checkpoint is that of step 12
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    step = PatchClassifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(PatchClassifier, "training_step", killed_step)
        with pytest.raises(RuntimeError, match="killed"):
            train(arguments("cnn", patch_root, cache_dir, tmp_path))
    run = tmp_path / "cnn" / "version_0"
    assert pd.read_csv(run / "metrics.csv")["step"].max() == 15
    train(["--resume", str(run)])
    assert_same_end(run, cnn_run)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(
    cnn_run: Path, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    train([*arguments("cnn", patch_root, cache_dir, tmp_path), "--data.num_workers", "2"])
    assert_same_end(tmp_path / "cnn" / "version_0", cnn_run)


def test_a_finished_run_has_nothing_to_resume(cnn_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in cnn_run.rglob("*.c*") if path.is_file()}
    train(["--resume", str(cnn_run)])
    assert {path: path.read_bytes() for path in before} == before
    assert "Best val/loss at step" in capsys.readouterr().out


@pytest.mark.parametrize("split", [pytest.param("valid", marks=pytest.mark.slow), "test"])
@pytest.mark.slow  # takes some seconds
def test_evaluating_writes_metrics_predictions_and_figures(
    split: str, cnn_run: Path, patch_root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([str(cnn_run), *([] if split == "valid" else ["--split", split])])
    output = cnn_run / "evaluation" / split
    assert {path.name for path in output.iterdir() if not path.name.startswith("events.")} == {
        "metrics.json", "predictions.csv", "roc.png", "precision_recall.png", "reliability.png",
        "score_histogram.png", "confusion.png", "worst_patches.png",
    }  # fmt: skip
    record = json.loads((output / "metrics.json").read_text())
    table = pd.read_csv(output / "predictions.csv")
    assert (record["split"], record["patches"], record["positives"]) == (split, sum(COUNTS[split]), COUNTS[split][1])
    assert table["id"].str.startswith(f"{split}/").all()
    assert (table["id"].str.split("/").str[1].astype(int) == table["label"]).all()
    assert record["metrics"]["auroc"] == pytest.approx(roc_auc_score(table["label"], table["score"]))
    store = PCamDataModule(patch_root, cache_dir=cache_dir).packed(split)
    assert dict(zip(table["id"], table["group"], strict=True)) == dict(
        zip(store.ids(), store.pixel_hashes(), strict=True)
    )
    assert bool(list(output.glob("events.*"))) == (split != "valid")  # the run itself shows the valid split
    if split == "valid":
        logged = pd.read_csv(cnn_run / "metrics.csv").set_index("step").loc[record["step"]]
        assert record["metrics"]["auroc"] == pytest.approx(logged["val/auroc"], abs=1e-6)
        assert record["metrics"]["loss"] == pytest.approx(logged["val/loss"], abs=1e-6)
    assert f"{record['metrics']['auroc']:.4f}" in capsys.readouterr().out


@pytest.mark.slow  # takes some seconds
def test_the_last_checkpoint_can_be_evaluated(cnn_run: Path) -> None:
    evaluate([str(cnn_run), "--checkpoint", "last"])
    assert json.loads((cnn_run / "evaluation" / "valid" / "metrics.json").read_text())["step"] == STEPS
