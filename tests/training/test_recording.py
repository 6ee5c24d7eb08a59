"""A recorded run in a notebook, with a Trainer of one's own."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning import Trainer

from pcam import PatchClassifier, PCamDataModule, RunFolder, TrainedRun, recording
from pcam.models import BaselineCNN

OPTIONS = {
    "max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "log_every_n_steps": 2,
    "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory .* exists and is not empty"
)


def make(root: Path, cache_dir: Path) -> tuple[PatchClassifier, PCamDataModule]:
    torch.manual_seed(0)
    classifier = PatchClassifier(BaselineCNN(), lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    return classifier, PCamDataModule(root, batch_size=8, cache_dir=cache_dir)


def test_a_trainer_of_ones_own_records_all_that_a_command_records(
    patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    classifier, data = make(patch_root, cache_dir)
    run = RunFolder.claim(tmp_path, "mine")
    record = recording(run, "val/auroc", hyperparameters={"lr": 0.01})
    Trainer(**OPTIONS, **record.trainer_options()).fit(classifier, data)
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    metrics = pd.read_csv(run.metrics)
    assert metrics["train/loss"].dropna().size == 3
    assert metrics["val/auroc"].dropna().size == 2
    assert record.hyperparameters.best["val/auroc"] == pytest.approx(metrics["val/auroc"].max(), abs=1e-6)
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["data_fingerprints"] == {split: data.packed(split).fingerprint for split in ("train", "valid")}
    assert list(run.path.glob("events.out.tfevents.*"))
    trained = TrainedRun.load(run.path, "last", network=BaselineCNN(), data=data)
    assert trained.step == 6
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(trained.network.state_dict()[name], value)


@pytest.mark.slow  # takes some seconds
def test_a_recorded_run_is_resumed_bit_for_bit(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    runs = []
    for name, stops in {"whole": [6], "resumed": [3, 6]}.items():
        run, checkpoint = RunFolder.claim(tmp_path, name), None
        for stop in stops:
            classifier, data = make(patch_root, cache_dir)
            resume_step = None if checkpoint is None else 3
            record = recording(run, "val/loss", resume_step=resume_step)
            trainer = Trainer(**(OPTIONS | {"max_steps": stop}), **record.trainer_options())
            trainer.fit(classifier, data, ckpt_path=checkpoint, weights_only=True)
            checkpoint = run.checkpoint("last")
        runs.append(run)
    states = [torch.load(run.checkpoint("last"), weights_only=True)["state_dict"] for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert runs[0].metrics.read_text() == runs[1].metrics.read_text()
