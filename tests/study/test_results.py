"""Results of runs: what stands for what, and an answer for each that is damaged or of something else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions
from pcam.run_folder import RunFolder
from pcam.study.plan import Run
from pcam.study.report import write_report
from pcam.study.results import RunResult, compute_metrics, write_result
from pcam.study.runner import StudyFolder
from tests.study.made_up import PLAN, make_run


def test_published_selection_is_the_validation_with_the_lowest_loss_of_the_reading(folder: StudyFolder) -> None:
    run = RunResult.read(folder.runs / "good_seed_1" / "version_0" / "study.json", "valid")
    assert run.published_selection("momentum_0.001") == {"step": 5, "loss": 0.6931, "accuracy": 0.5, "auroc": 0.51}
    assert run.published_selection("reestimated") == {"step": 10, "loss": 0.45, "accuracy": 0.8, "auroc": 0.9}


def test_a_network_without_batch_norm_reads_the_same_in_all(folder: StudyFolder) -> None:
    run = RunResult.read(folder.runs / "poor_seed_1" / "version_0" / "study.json", "valid")
    assert np.array_equal(run.logits("reestimated"), run.logits("momentum_0.1"))
    assert run.published_selection("momentum_0.001") == run.published_selection("momentum_0.1")


def test_patches_that_are_called_otherwise_are_still_the_same_patches(tmp_path: Path) -> None:
    """As the same patches are in another form of the data: their order in the store stays, that of their names not."""
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    trained = RunFolder(made.runs / "good_seed_1" / "version_0")
    before = RunResult.read(trained.path / "study.json", "valid")
    predictions = before.predictions("momentum_0.1")
    renamed = replace(predictions, ids=predictions.ids[::-1])
    facts = {key: before.record[key] for key in ("step", "batch_size", "train_patches", "passes", "data_fingerprint")}
    write_result(Run("good", 1), trained, "valid", {"momentum_0.1": renamed}, facts)
    after = RunResult.read(trained.path / "study.json", "valid")
    assert after.predictions("momentum_0.1").ids == renamed.ids
    assert np.array_equal(after.logits("momentum_0.1"), before.logits("momentum_0.1"))
    assert np.array_equal(after.labels, before.labels)
    assert after.units == before.units


def test_runs_on_other_patches_are_refused(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    path = made.runs / "poor_seed_1" / "version_0" / "study.json"
    path.write_text(path.read_text().replace('"abc"', '"xyz"'))
    with pytest.raises(UserError, match=r"measured on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, made)
    path.write_text(path.read_text().replace('"xyz"', '"abc"').replace('"def"', '"xyz"'))
    with pytest.raises(UserError, match=r"trained on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, made)
    with pytest.raises(UserError, match=r"Expected a result on the split 'test' in .*, but found one on 'valid'"):
        write_report(replace(PLAN, split="test"), made)


@pytest.mark.slow  # takes some seconds
def test_runs_of_another_arm_are_refused(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    arm = made.runs / "good_seed_1" / "arm.json"
    arm.write_text(json.dumps({"digest": PLAN.arms["good"].digest()}))
    write_report(PLAN, made)
    for content in ('{"digest": "another"}', '{"digest":', "[]"):
        arm.write_text(content)
        with pytest.raises(
            UserError, match=r"Expected .*good_seed_1 to be a run of the arm 'good' as the study's YAML"
        ):
            write_report(PLAN, made)


@pytest.mark.parametrize("name", ["study.json", "study/valid_momentum_0.001.csv.gz", "metrics.csv"])
@pytest.mark.parametrize("part", [None, 0.0, 0.5])
def test_a_run_that_is_not_whole_is_named(name: str, part: float | None, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    path = made.runs / "good_seed_1" / "version_0" / name
    content = path.read_bytes()
    path.unlink()
    if part is not None:
        path.write_bytes(content[: int(part * len(content))])
    if (name, part) == ("study.json", None):  # then it is not done
        with pytest.raises(UserError, match="Expected at least one run that is done"):
            write_report(PLAN, made)
    elif (name, part) != ("metrics.csv", 0.5):  # nothing tells that later steps are missing
        with pytest.raises(UserError, match=rf"Expected .*{name}.* (not whole|cannot be read)"):
            write_report(PLAN, made)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["step"], None, "it has no step"),
        (["environment", "threads"], None, "it has no environment.threads"),
        (["environment", "packages", "torch"], None, "it has no environment.packages.torch"),
        (["environment", "data_fingerprints"], {}, "it has no environment.data_fingerprints.train"),
        (["environment"], "Linux", "it has no environment.python, "),
        (["readings", "momentum_0.001", "loss"], None, "it has no readings.momentum_0.001.loss"),
        (["readings"], {}, "its readings are none"),
        (["readings", "momentum_0.5"], {}, "its readings are momentum_0.1, momentum_0.001, reestimated, momentum_0.5"),
        ([], 7, "not iterable"),
    ],
)
def test_a_result_that_lacks_something_is_named(keys: list[str], value: object, reason: str, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    path = made.runs / "good_seed_1" / "version_0" / "study.json"
    record = json.loads(path.read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    if not keys:
        record = value
    elif value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=rf"Expected the result of a run in .*study.json, but it is not whole .*{reason}"
    ):
        write_report(PLAN, made)


@pytest.mark.parametrize("content", ["step,train/loss\n1,2\n", "step,train/loss,val/loss\na,b,c\n", ""])
def test_curves_that_are_none_are_named(content: str, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    (made.runs / "good_seed_1" / "version_0" / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=r"Expected .*metrics.csv as the study wrote it, but it is not there or not wh"):
        write_report(PLAN, made)


@pytest.mark.parametrize("content", [None, "{", '{"python": "3.11"}', "7"])
def test_a_run_whose_environment_is_lost_is_not_measured(content: str | None, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    trained = RunFolder(made.runs / "good_seed_1" / "version_0")
    result = RunResult.read(trained.path / "study.json", "valid")
    readings = {"momentum_0.1": result.predictions("momentum_0.1")}
    (trained.path / "environment.json").unlink()
    if content is not None:
        (trained.path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"Expected what a run was trained on in .*environment.json, but it cannot"):
        write_result(Run("good", 1), trained, "valid", readings, {})


def test_metrics_of_scores_that_saturate_are_finite() -> None:
    made = Predictions(["a", "b"], np.array([0, 1], np.uint8), np.array([100, -100], np.float32), ["a", "b"])
    assert compute_metrics(made) == {"auroc": 0, "average_precision": 0.5, "accuracy": 0, "loss": 100}
