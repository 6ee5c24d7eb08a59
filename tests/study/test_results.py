"""Results of runs: what stands for what, and an answer for each that is damaged or of something else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pcam.errors import UserError
from pcam.evaluation.metrics import measure_logits
from pcam.evaluation.predictions import Predictions
from pcam.run_folder import RunFolder
from pcam.study.measure import measure_run
from pcam.study.plan import Plan, Run
from pcam.study.report import write_report
from pcam.study.results import ResultsFolder
from pcam.study.runner import StudyFolder
from tests.study.made_up import PLAN, make_run

GOOD = Run("good", 1)


def test_published_selection_is_the_validation_with_the_lowest_loss_of_the_reading(folder: StudyFolder) -> None:
    run = folder.results.read(PLAN, GOOD)
    assert run.published_selection("momentum_0.001") == {"step": 5, "loss": 0.6931, "accuracy": 0.5, "auroc": 0.51}
    assert run.published_selection("reestimated") == {"step": 10, "loss": 0.45, "accuracy": 0.8, "auroc": 0.9}


def test_a_network_without_batch_norm_reads_the_same_in_all(folder: StudyFolder) -> None:
    run = folder.results.read(PLAN, Run("poor", 1))
    assert np.array_equal(run.logits("reestimated"), run.logits("momentum_0.1"))
    assert run.published_selection("momentum_0.001") == run.published_selection("momentum_0.1")


@pytest.mark.parametrize("slides", [["", "NA", "s"], None])
def test_what_was_measured_is_read_bit_for_bit(slides: list[str] | None, tmp_path: Path) -> None:
    logits = np.array([1 / 3, -1e-30, 3e38], np.float32)
    predictions = Predictions(["a", "NA", 'a,"b'], np.array([0, 1, 1], np.uint8), logits, ["x", "y", "x"], slides)
    results = ResultsFolder(tmp_path)
    results.write(GOOD, {"momentum_0.1": predictions}, b"step\n", json.loads(record_of(tmp_path / "other").read_text()))
    run = results.read(PLAN, GOOD)
    assert run.logits("reestimated").astype(np.float32).tobytes() == logits.tobytes()
    assert (run.labels.tolist(), run.slides_known) == ([0, 1, 1], slides is not None)
    assert run.units == (["0", "NA", "s"] if slides else ["0", "1", "0"])
    assert results.patches["id"].tolist() == predictions.ids


def test_results_travel_from_machine_to_machine(folder: StudyFolder, tmp_path: Path) -> None:
    other = ResultsFolder(tmp_path / "other")
    other.take(folder.results.files(GOOD))
    assert other.is_done(GOOD)
    assert other.files(GOOD) == folder.results.files(GOOD)
    assert list(other.files(GOOD))[-1] == "good_seed_1/record.json"  # whose presence says that the rest is there


def test_patches_that_are_called_otherwise_are_still_the_same_patches(tmp_path: Path) -> None:
    """As the same patches are in another form of the data: their order in the store stays, that of their names not."""
    results = ResultsFolder(tmp_path)
    first = Predictions(["a", "b"], np.array([0, 1], np.uint8), np.array([1, 2], np.float32), ["x", "y"])
    results.write(GOOD, {"momentum_0.1": first}, b"", {})
    results.write(Run("good", 2), {"momentum_0.1": replace(first, ids=["c", "d"], groups=["v", "w"])}, b"", {})
    with pytest.raises(UserError, match=r"Expected the results in .* to be of one set of patches, but good_seed_3 was"):
        results.write(Run("good", 3), {"momentum_0.1": replace(first, labels=first.labels[::-1])}, b"", {})


def record_of(folder: Path) -> Path:
    """A folder with the result of one run; gives its record."""
    make_run(StudyFolder(folder), GOOD, 1.0)
    return folder / "results" / "good_seed_1" / "record.json"


def test_runs_on_other_patches_are_refused(tmp_path: Path) -> None:
    record_of(tmp_path)
    make_run(StudyFolder(tmp_path), Run("poor", 1), 0.1)
    path = tmp_path / "results" / "poor_seed_1" / "record.json"
    path.write_text(path.read_text().replace('"abc"', '"xyz"'))
    with pytest.raises(UserError, match=r"measured on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, StudyFolder(tmp_path))
    path.write_text(path.read_text().replace('"xyz"', '"abc"').replace('"def"', '"xyz"'))
    with pytest.raises(UserError, match=r"trained on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, StudyFolder(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: replace(plan, split="test"),
            r"Expected a result on the split 'test' in .*, but found one on 'val",
        ),
        (
            lambda plan: replace(plan, arms=dict(plan.arms) | {"good": replace(plan.arms["good"], overrides={"a": 1})}),
            r"Expected .*good_seed_1 to be the result of the arm 'good' as the study's YAML has it, but",
        ),
    ],
)
def test_results_of_another_plan_are_refused(change: Callable[[Plan], Plan], message: str, tmp_path: Path) -> None:
    record_of(tmp_path)
    with pytest.raises(UserError, match=message):
        write_report(change(PLAN), StudyFolder(tmp_path))


def test_a_run_that_was_begun_with_other_options_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    arm = folder.runs / "good_seed_1" / "arm.json"
    arm.parent.mkdir(parents=True)
    arm.write_text(json.dumps({"digest": PLAN.arms["good"].digest()}))
    folder.check_arm(PLAN, GOOD)
    for content in ('{"digest": "another"}', '{"digest":', "[]"):
        arm.write_text(content)
        with pytest.raises(
            UserError, match=r"Expected .*good_seed_1 to be a run of the arm 'good' as the study's YAML"
        ):
            folder.check_arm(PLAN, GOOD)


@pytest.mark.parametrize("name", ["record.json", "logits.csv.gz", "curves.csv.gz", "../patches.csv.gz"])
@pytest.mark.parametrize("part", [None, 0.0, 0.5])
def test_a_result_that_is_not_whole_is_named(name: str, part: float | None, tmp_path: Path) -> None:
    path = (record_of(tmp_path).parent / name).resolve()
    content = path.read_bytes()
    path.unlink()
    if part is not None:
        path.write_bytes(content[: int(part * len(content))])
    expected = rf"Expected .*{path.name}.* not whole"
    if (name, part) == ("record.json", None):  # then it is not done
        expected = "Expected the result of at least one run"
    with pytest.raises(UserError, match=expected):
        write_report(PLAN, StudyFolder(tmp_path))


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
def test_a_record_that_lacks_something_is_named(keys: list[str], value: object, reason: str, tmp_path: Path) -> None:
    path = record_of(tmp_path)
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
    with pytest.raises(UserError, match=rf"Expected the result of .*record.json, but it is not whole .*{reason}"):
        write_report(PLAN, StudyFolder(tmp_path))


@pytest.mark.parametrize("content", ["step,train/loss\n1,2\n", "step,train/loss,val/loss\na,b,c\n", ""])
def test_curves_that_are_none_are_named(content: str, tmp_path: Path) -> None:
    path = record_of(tmp_path).with_name("curves.csv.gz")
    path.unlink()
    pd.DataFrame([content]).to_csv(path, index=False, header=False, compression="gzip")
    with pytest.raises(
        UserError, match=r"Expected .*curves.csv.gz as the study wrote it, but it is not there or not w"
    ):
        write_report(PLAN, StudyFolder(tmp_path))


@pytest.mark.parametrize("content", [None, "{", '{"python": "3.11"}', "7"])
def test_a_run_whose_environment_is_lost_is_not_measured(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"Expected what a run was trained on in .*environment.json, but it cannot"):
        measure_run(GOOD, RunFolder(tmp_path), "valid", tmp_path, ResultsFolder(tmp_path / "results"), with_costs=False)
    assert not (tmp_path / "results").exists()


def test_metrics_of_scores_that_saturate_are_finite() -> None:
    found = measure_logits(np.array([0, 1], np.uint8), np.array([100, -100], np.float32))
    assert found == {"loss": 100, "auroc": 0, "average_precision": 0.5, "accuracy": 0, "balanced_accuracy": 0}
