"""What is reported of each slide, patient and hospital, against scikit-learn and the metrics of the whole split."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from pcam.commands.evaluate import main as evaluate
from pcam.evaluation import origins
from pcam.evaluation.measurement import Choices, measure
from pcam.evaluation.origins import Spread, measure_origins, origin_figure
from pcam.evaluation.predictions import Predictions
from tests.data.forms import noise, write_camelyon17
from tests.scripts.test_evaluate import short_run


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Three hospitals with six slides of 40 patches each; one slide is without tumour, one patch of unknown origin."""
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(18), 40)
    labels = np.where(slide == 5, 0, rng.integers(2, size=len(slide))).astype(np.uint8)
    logits = (rng.normal(0, 1, len(slide)) + (2 - slide // 6 * 0.8) * (labels - 0.5)).astype(np.float32)
    hospitals = [f"hospital_{number // 6}" for number in slide]
    hospitals[0] = ""
    return Predictions(
        [str(row) for row in range(len(slide))], labels, logits, [str(row) for row in range(len(slide))],
        [f"slide_{number:02d}" for number in slide], None, hospitals,
    )  # fmt: skip


def test_the_numbers_of_each_hospital_are_those_of_its_patches(predictions: Predictions) -> None:
    choices = Choices.on(predictions)
    found = measure_origins(predictions, choices)
    assert list(found) == ["slide", "hospital"]
    assert [result.name for result in found["hospital"]] == ["hospital_0", "hospital_1", "hospital_2"]
    for result in found["hospital"]:
        rows = np.flatnonzero(np.asarray(predictions.hospitals) == result.name)
        labels, scores = predictions.labels[rows], predictions.scores[rows]
        threshold = 1 / (1 + np.exp(-choices.thresholds["youden"]))
        assert result.auroc.value == pytest.approx(roc_auc_score(labels, scores))
        assert result.accuracy.value == accuracy_score(labels, scores > threshold)
        assert result.accuracy_at_half == accuracy_score(labels, scores > 0.5)
        assert result.loss == pytest.approx(log_loss(labels, scores))
        assert (result.patches, result.slides, result.tumour) == (len(rows), 6, labels.mean())
        whole = measure(predictions.subset(rows), choices)  # whose resamples are of slides
        assert result.auroc.interval == whole.metrics["auroc"].interval
        assert result.accuracy.interval == whole.operating_points["youden"]["accuracy"].interval


def test_a_slide_has_no_interval_and_without_tumour_no_auroc(predictions: Predictions) -> None:
    slides = measure_origins(predictions, Choices.on(predictions))["slide"]
    assert len(slides) == 18
    assert all(np.isnan([*slide.auroc.interval, *slide.accuracy.interval]).all() for slide in slides)
    assert [slide.name for slide in slides if np.isnan(slide.auroc.value)] == ["slide_05"]
    assert np.isfinite([slide.accuracy.value for slide in slides]).all()


def test_the_worst_and_the_spread_are_of_those_with_enough_patches(
    predictions: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = measure_origins(predictions, Choices.on(predictions))["hospital"]
    spread = Spread.of(results, "auroc")
    values = [result.auroc.value for result in results]
    assert spread.worst == results[int(np.argmin(values))]
    assert (spread.counted, spread.deviation) == (3, pytest.approx(np.std(values, ddof=1)))
    monkeypatch.setattr(origins, "MIN_PATCHES", 240)
    assert Spread.of(results, "auroc").counted == 2  # hospital_0 lacks the patch whose hospital is not known
    monkeypatch.setattr(origins, "MIN_PATCHES", 241)
    assert Spread.of(results, "accuracy").worst is None


def test_the_figure_has_a_row_for_each_the_worst_on_top(predictions: Predictions) -> None:
    results = measure_origins(predictions, Choices.on(predictions))["hospital"]
    figure = origin_figure(results, "hospital")
    figure.canvas.draw()
    rows = [label.get_text().split(" ")[0] for label in figure.axes[0].get_yticklabels()]
    assert rows == [result.name for result in sorted(results, key=lambda result: -result.accuracy.value)]


@pytest.mark.slow  # trains, and evaluates twice
def test_evaluate_reports_each_origin_of_camelyon17(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_camelyon17(tmp_path / "wilds", *noise({"train": (80, 80)})["train"])
    run = short_run("cnn", tmp_path / "wilds", tmp_path / "cache", tmp_path / "runs")
    evaluate([str(run), "--split", "test"])
    output = run / "evaluation" / "test"
    slides = pd.read_csv(output / "by_slide.csv")
    assert slides["slide"].tolist() == ["patient_040_node_1", "patient_041_node_2"]
    assert slides["patches"].sum() == 32
    assert pd.read_csv(output / "by_hospital.csv")["hospital"].tolist() == ["hospital_2"]
    assert {path.name for path in output.glob("by_*.png")} == {"by_slide.png", "by_patient.png", "by_hospital.png"}
    predictions = pd.read_csv(output / "predictions.csv")
    record = json.loads((output / "metrics.json").read_text())
    assert record["origins"]["hospital"]["accuracy"]["worst"] == "hospital_2"
    assert record["bootstrap"] | {"of": "slides", "units": 2} == record["bootstrap"]
    by_hand = predictions.groupby("slide").apply(lambda rows: ((rows["score"] > 0.5) == rows["label"]).mean())
    assert slides["accuracy_at_half"].tolist() == pytest.approx(by_hand.tolist())
    assert Predictions.read(output / "predictions.csv").hospitals == ["hospital_2"] * 32
    assert "By hospital: the 1 of 1 with the lowest accuracy" in " ".join(capsys.readouterr().out.split())
    (output / "by_hospital.csv").write_text("of other data")
    evaluate([str(run)])
    assert pd.read_csv(run / "evaluation" / "valid" / "by_hospital.csv")["hospital"].tolist() == ["hospital_1"]
