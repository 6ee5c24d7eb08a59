"""The command evaluate through its front door: what it writes, what it compares, what it refuses."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcam.commands.evaluate import evaluate as evaluate_runs
from pcam.commands.evaluate import main as evaluate
from pcam.commands.train import main as train
from pcam.data import PCamDataModule
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.results import worst_patches
from pcam.evaluation.statistics import delong_test
from pcam.models import inference
from pcam.trained import TrainedRun
from tests.conftest import COUNTS, REPOSITORY, write_patches
from tests.data.forms import noise, slides_of, write_official_with_meta
from tests.scripts.test_front_door import sentence

FIGURES = {"roc", "precision_recall", "reliability", "score_histogram", "confusion", "worst_patches"}


def short_run(config: str, root: Path, cache_dir: Path, runs_dir: Path, *more: str) -> Path:
    train(
        [
            "--config", str(REPOSITORY / "configs" / f"{config}.yaml"),
            "--data.root", str(root),
            "--data.cache_dir", str(cache_dir),
            "--data.batch_size", "8",
            "--trainer.max_steps", "2",
            "--trainer.val_check_interval", "2",
            "--trainer.log_every_n_steps", "1",
            "--trainer.enable_progress_bar", "false",
            "--runs_dir", str(runs_dir),
            *more,
        ]
    )  # fmt: skip
    return max((runs_dir / config).glob("version_*"))


@pytest.fixture(scope="module")
def runs(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the baseline CNN that have hardly learnt, so that they err."""
    runs_dir = tmp_path_factory.mktemp("runs")
    return [short_run("cnn", patch_root, cache_dir, runs_dir, "--seed_everything", seed) for seed in ("1", "2")]


@pytest.fixture(scope="module")
def mobilenet_run(patch_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run("random_dropout", patch_root, cache_dir, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(runs: list[Path], tmp_path: Path) -> Path:
    """A run of its own for a test that looks at all that is written."""
    return Path(shutil.copytree(runs[0], tmp_path / "cnn" / "version_0"))


def record_of(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def predictions_of(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "predictions.csv", dtype={"group": str})


@pytest.mark.slow  # takes some seconds
def test_numbers_follow_from_the_predictions_and_thresholds_from_valid(run: Path) -> None:
    evaluate([str(run), "--split", "test"])
    valid, test = (predictions_of(run / "evaluation" / split) for split in ("valid", "test"))
    record = record_of(run / "evaluation" / "test")
    assert record["engine"] == f"OpenVINO {version('openvino')}"
    assert record["metrics"]["auroc"] == pytest.approx(roc_auc_score(test["label"], test["score"]), abs=1e-14)
    for name, value in record["metrics"].items():
        if record["intervals"][name] is not None:
            low, high = record["intervals"][name]
            assert low <= value <= high
    assert set(record["operating_points"]) == {"0.5", "youden", "sensitivity_95", "specificity_95"}
    for point in record["operating_points"].values():
        expected = confusion_matrix(test["label"], test["score"] > point["threshold"])
        assert point["confusion_matrix"] == expected.tolist()
    thresholds = {name: point["threshold"] for name, point in record["operating_points"].items()}
    assert (valid.loc[valid["label"] == 1, "score"] > thresholds["sensitivity_95"]).mean() >= 0.95
    assert (valid.loc[valid["label"] == 0, "score"] <= thresholds["specificity_95"]).mean() >= 0.95
    on_valid = record_of(run / "evaluation" / "valid")
    assert thresholds == {name: point["threshold"] for name, point in on_valid["operating_points"].items()}
    assert record["calibration"]["temperature"] == on_valid["calibration"]["temperature"]
    assert record["bootstrap"] == {
        "resamples": 2000, "seed": 0, "of": "groups of identical patches", "units": sum(COUNTS["test"]), "level": 0.95,
    }  # fmt: skip


@pytest.mark.slow  # takes some seconds
def test_slides_are_what_intervals_count_where_they_are_known(tmp_path: Path) -> None:
    write_official_with_meta(tmp_path / "data", noise())
    run = short_run("cnn", tmp_path / "data", tmp_path / "cache", tmp_path / "runs")
    evaluate([str(run)])
    found = predictions_of(run / "evaluation" / "valid")
    assert set(found["slide"]) == set(slides_of(noise()["valid"][1]))
    bootstrap = record_of(run / "evaluation" / "valid")["bootstrap"]
    assert (bootstrap["of"], bootstrap["units"]) == ("slides", found["slide"].nunique())


@pytest.mark.slow  # takes some seconds
def test_tensorboard_has_a_line_of_its_own_and_the_run_is_left_alone(run: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "evaluation" not in path.parts}

    before = contents()
    evaluate([str(run), "--split", "test"])
    first = (run / "evaluation" / "test" / "metrics.json").read_bytes()
    evaluate([str(run), "--split", "test"])
    assert (run / "evaluation" / "test" / "metrics.json").read_bytes() == first  # every draw is seeded
    assert contents() == before
    assert not list((run / "evaluation" / "valid").glob("events.*"))  # the run itself shows the valid split
    accumulator = EventAccumulator(str(run / "evaluation" / "test"))
    accumulator.Reload()
    for name in FIGURES:
        assert [image.step for image in accumulator.Images(f"evaluation/test/{name}")] == [2]  # once, not twice
    (auroc,) = accumulator.Scalars("evaluation/test/auroc")
    assert auroc.value == pytest.approx(json.loads(first)["metrics"]["auroc"])


@pytest.mark.slow  # takes some seconds
def test_without_being_asked_for_the_test_split_is_not_read(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "patches"
    write_patches(root, {"train": (1, 1), "valid": (6, 7), "test": (1, 1)})
    shutil.rmtree(root / "test")
    evaluate([str(run), "--data.root", str(root)])
    assert record_of(run / "evaluation" / "valid")["patches"] == 13


@pytest.mark.slow  # takes some seconds
def test_tta_averages_the_scores_of_the_eight_symmetries(run: Path) -> None:
    evaluate([str(run), "--tta"])
    assert not (run / "evaluation" / "valid").exists()
    found = predictions_of(run / "evaluation" / "valid_tta").set_index("id")["score"]
    trained = TrainedRun.load(run)
    store = trained.data.packed("valid")
    patches = store[np.arange(len(store))].patches
    views = [view.flip(dims) for view in (patches, patches.transpose(2, 3)) for dims in ((), (2,), (3,), (2, 3))]
    with torch.no_grad():
        scores = torch.stack([trained.network(view).sigmoid() for view in views]).mean(dim=0)
    assert found[store.ids()].to_numpy() == pytest.approx(scores.numpy(), abs=1e-6)


@pytest.mark.slow
def test_several_runs_are_compared_and_averaged(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([*map(str, runs), "--ensemble"])
    output = runs[0] / "evaluation" / "valid_comparison"
    assert (output / "roc_comparison.png").is_file()
    record = json.loads((output / "comparison.json").read_text())
    names = ["cnn/version_0", "cnn/version_1", "ensemble of 2"]
    assert list(record["classifiers"]) == pd.read_csv(output / "comparison.csv")["classifier"].tolist() == names
    tables = [predictions_of(Path(record["classifiers"][name]["results"])) for name in names]
    assert tables[2]["score"].to_numpy() == pytest.approx((tables[0]["score"] + tables[1]["score"]) / 2, rel=1e-6)
    assert [(pair["first"], pair["second"]) for pair in record["auroc_differences"]] == [
        (names[0], names[1]), (names[0], names[2]), (names[1], names[2]),
    ]  # fmt: skip
    pair = record["auroc_differences"][0]
    labels = tables[0]["label"].to_numpy(float)
    expected = delong_test(
        labels, tables[0]["logit"].to_numpy(), tables[1]["logit"].to_numpy(), tables[0]["group"].tolist()
    )
    assert (pair["difference"], pair["delong_p"]) == (pytest.approx(expected.difference), pytest.approx(expected.p))
    assert pair["interval"][0] <= pair["difference"] <= pair["interval"][1]
    mean = record["mean_over_seeds"]
    assert mean["seeds"] == names[:2]
    assert mean["auroc"] == pytest.approx(np.mean([roc_auc_score(labels, table["score"]) for table in tables[:2]]))
    assert mean["interval"][0] < mean["auroc"] < mean["interval"][1]
    losses = [record["classifiers"][name]["metrics"]["loss"] for name in names[:2]]
    assert mean["loss"] == pytest.approx(np.mean(losses))
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    assert "mean of 2 seeds" in said


@pytest.mark.slow
def test_re_estimated_batch_norm_is_measured_beside_the_run(mobilenet_run: Path) -> None:
    checkpoint = (mobilenet_run / "checkpoints" / "best.ckpt").read_bytes()
    evaluate([str(mobilenet_run), "--reestimate_bn"])
    alone = TrainedRun.load(mobilenet_run).predict("valid")
    alone_logits = pd.Series(alone.logits, alone.ids)
    as_trained, reestimated = (
        predictions_of(mobilenet_run / "evaluation" / folder).set_index("id")["logit"]
        for folder in ("valid", "valid_bn")
    )
    assert as_trained.to_numpy(np.float32).tolist() == alone_logits[as_trained.index].tolist()
    assert np.abs(reestimated - as_trained).min() > 1e-4
    assert (mobilenet_run / "checkpoints" / "best.ckpt").read_bytes() == checkpoint
    record = json.loads((mobilenet_run / "evaluation" / "valid_comparison" / "comparison.json").read_text())
    name = "random_dropout/version_0"
    assert list(record["classifiers"]) == [name, f"{name}, re-estimated bn"]
    assert record["mean_over_seeds"] is None  # two readings of one run are no two seeds


@pytest.mark.slow  # takes some seconds
def test_one_class_is_said_and_never_zero(
    run: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "one_class"
    write_patches(root, {"train": (1, 1), "valid": (5, 6), "test": (4, 4)})
    for split, label in (("valid", 0), ("test", 1)):
        with h5py.File(PCamDataModule(root, cache_dir=cache_dir).packed(split).path, "r+") as file:
            file["labels"][:] = label
    evaluate([str(run), "--data.root", str(root), "--split", "test"])
    record = record_of(run / "evaluation" / "test")
    assert {name for name, value in record["metrics"].items() if value is None} == {
        "auroc", "average_precision", "balanced_accuracy", "specificity", "calibration_slope",
    }  # fmt: skip
    assert record["intervals"]["auroc"] is None
    assert record["positives"] == record["patches"] == 8
    assert list(record["operating_points"]) == ["0.5"]
    assert record["calibration"]["temperature"] is record["calibration"]["after"] is None
    assert "undefined: only one class" in capsys.readouterr().out


def test_the_worst_mistakes_are_the_surest_of_each_class_and_no_patch_twice() -> None:
    logits, labels = [9.0, 8.0, 9.0, -3.0, 2.0, -7.0, 1.0], [0, 0, 0, 0, 1, 1, 1]
    made = Predictions(
        ids=list("abcdefg"),
        labels=np.array(labels, dtype=np.uint8),
        logits=np.array(logits, dtype=np.float32),
        groups=list("pqprstu"),
    )
    assert worst_patches(made).tolist() == [0, 1, 3, 5, 6, 4]


def test_an_ensemble_of_one_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(capsys, evaluate, [str(run), "--ensemble"], 1)
    assert "Expected at least two runs for --ensemble, but found 1" in said


def test_runs_on_different_patches_are_not_compared(
    run: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "others"
    write_patches(root, {"train": (9, 9), "valid": (3, 4)}, seed=1)
    other = short_run("cnn", root, cache_dir, tmp_path / "runs")
    said = sentence(capsys, evaluate, [str(run), str(other)], 1)
    assert f"Expected runs on the same patches, but the valid split of {run}" in said


def test_a_run_that_has_diverged_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["network.head.4.bias"].fill_(float("nan"))
    torch.save(checkpoint, path)
    said = sentence(capsys, evaluate, [str(run)], 1)
    assert f"Expected finite logits from {run} on valid, but 25 of 25 are not" in said


def test_a_network_without_batch_norm_has_none_to_re_estimate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "BaselineCNN has none; leave out what asks for other statistics" in sentence(
        capsys, evaluate, [str(run), "--reestimate_bn"], 1
    )


@pytest.mark.slow  # takes some seconds
def test_the_sizes_that_patches_are_evaluated_at_can_be_chosen(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = short_run("random_dropout", patch_root, cache_dir, tmp_path, "--model.network.enlarged_sizes", "[128]")
    evaluate([str(run)])
    evaluate([str(run), "--enlarged_sizes", "[]"])
    own_size = TrainedRun.load(run, enlarged_sizes=[]).predict("valid")
    both, alone = (predictions_of(run / "evaluation" / name) for name in ("valid", "valid_at_96"))
    assert alone.set_index("id").loc[own_size.ids, "logit"].tolist() == own_size.logits.tolist()
    assert np.abs(alone["logit"] - both["logit"]).max() > 1e-6
    said = capsys.readouterr().out
    assert "random_dropout/version_0, at 96 pixels (step 2)" in " ".join(said.split())
    said = sentence(capsys, evaluate, [str(run), "--enlarged_sizes", "[160]"], 1)
    assert "that the run has batch-norm statistics for ([128]), but found [160]" in said


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.slow  # takes some seconds
def test_a_processor_that_is_slow_in_bfloat16_is_said(
    fast: bool, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "has_fast_bfloat16", lambda: fast)
    evaluate([str(run), "--precision", "bf16-mixed"])
    assert ("Expected a processor with instructions for bfloat16" in capsys.readouterr().err) is not fast
    record = record_of(run / "evaluation" / "valid_bf16")
    assert (record["classifier"], record["engine"]) == ("cnn/version_0, bf16", f"PyTorch {torch.__version__}")


@pytest.mark.slow  # takes some seconds
def test_a_notebook_calls_the_function(run: Path) -> None:
    folders = evaluate_runs([run], "test", tta=True)
    assert folders == [run / "evaluation" / "valid_tta", run / "evaluation" / "test_tta"]
    assert all((folder / "metrics.json").is_file() for folder in folders)
