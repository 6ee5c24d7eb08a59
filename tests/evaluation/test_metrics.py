"""Metrics and predictions, against scikit-learn, SciPy, torchmetrics and hand-worked cases."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchmetrics.functional.classification import binary_calibration_error

from pcam.evaluation.calibration import Calibration, calibration_slope, fit_temperature
from pcam.evaluation.measurement import Choices, measure, resampled_auroc
from pcam.evaluation.metrics import ROC_GRID, Cuts, cross_entropy
from pcam.evaluation.predictions import Predictions, average_scores
from pcam.evaluation.statistics import resample_units
from pcam.models.symmetry import SymmetryAverage


def predictions(logits, labels, groups=None) -> Predictions:
    count = len(logits)
    return Predictions(
        ids=[f"patch{count - index}" for index in range(count)],
        labels=np.array(labels, dtype=np.uint8),
        logits=np.array(logits, dtype=np.float32),
        groups=[f"{index:040x}" for index in (range(count) if groups is None else groups)],
    )


def random_predictions(count: int = 500, seed: int = 0, scale: float = 1.5) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    logits = np.round(rng.normal(scale * labels, scale), 1)  # rounded: ties
    return predictions(logits, labels, rng.integers(0, count * 3 // 4, count))


def metrics_of(made: Predictions) -> dict[str, float]:
    return {name: estimate.value for name, estimate in measure(made, Choices(np.nan, {"0.5": 0.0})).metrics.items()}


def test_metrics_agree_with_scikit_learn() -> None:
    made = random_predictions()
    labels, scores, called = made.labels, made.scores, made.scores > 0.5
    regression = LogisticRegression(C=np.inf, tol=1e-10).fit(made.logits.astype(np.float64)[:, None], labels)
    expected_error = binary_calibration_error(*made.tensors(), n_bins=15)
    assert metrics_of(made) == {
        "auroc": pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-14),
        "average_precision": pytest.approx(reference.average_precision_score(labels, scores), abs=1e-14),
        "accuracy": pytest.approx(reference.accuracy_score(labels, called), abs=1e-14),
        "balanced_accuracy": pytest.approx(reference.balanced_accuracy_score(labels, called), abs=1e-14),
        "f1": pytest.approx(reference.f1_score(labels, called), abs=1e-14),
        "sensitivity": pytest.approx(reference.recall_score(labels, called), abs=1e-14),
        "specificity": pytest.approx(reference.recall_score(labels, called, pos_label=0), abs=1e-14),
        "loss": pytest.approx(reference.log_loss(labels, scores), abs=1e-14),
        "brier_score": pytest.approx(reference.brier_score_loss(labels, scores), abs=1e-14),
        "expected_calibration_error": pytest.approx(expected_error.item(), abs=1e-12),
        "calibration_slope": pytest.approx(regression.coef_.item(), rel=1e-6),
    }


def test_resampled_metrics_agree_with_scikit_learn_weighted_by_the_resample() -> None:
    made = random_predictions(80)
    labels, logits = made.labels.astype(np.float64), made.logits.astype(np.float64)
    weights = next(resample_units(made.groups))[:20]
    cuts = Cuts.count(labels, logits, weights)
    heights = cuts.sensitivity_at(ROC_GRID)
    for row, weight in enumerate(weights):
        assert cuts.auroc()[row] == pytest.approx(reference.roc_auc_score(labels, logits, sample_weight=weight))
        precision = reference.average_precision_score(labels, logits, sample_weight=weight)
        assert cuts.average_precision()[row] == pytest.approx(precision)
        confusion = reference.confusion_matrix(labels, logits > 0.3, sample_weight=weight)
        assert cuts.confusion(0.3)[row].tolist() == confusion.tolist()
        assert cuts.decisions(0.3)["f1"][row] == pytest.approx(
            reference.f1_score(labels, logits > 0.3, sample_weight=weight)
        )
        false, true, _ = reference.roc_curve(labels, logits, sample_weight=weight, drop_intermediate=False)
        assert heights[row] == pytest.approx(np.interp(ROC_GRID, false, true))


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    made = random_predictions(60, scale=1.0)
    found = measure(made, Choices.on(made))
    rng = np.random.default_rng(5)
    groups = {name: np.flatnonzero(np.asarray(made.groups) == name) for name in sorted(set(made.groups))}
    names = list(groups)
    resampled = []
    for _ in range(2000):
        rows = np.concatenate([groups[names[index]] for index in rng.integers(len(names), size=len(names))])
        resampled.append(reference.accuracy_score(made.labels[rows], made.logits[rows] > 0))
    assert found.metrics["accuracy"].interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.01)
    low, high = found.roc_band
    assert (low <= high).all()
    assert (low[0], high[-1]) == (pytest.approx(0, abs=0.2), 1)


def test_the_resampled_auroc_is_that_of_the_measurement() -> None:
    made = random_predictions(200)
    assert np.array_equal(resampled_auroc(made), measure(made, Choices.on(made)).resampled_auroc)


def test_large_logits_keep_their_order() -> None:
    """In float32 the scores of the first would all be 1, in float64 those of the second."""
    assert metrics_of(predictions([20, 21, 22, 23], [0, 0, 1, 1]))["auroc"] == 1.0
    assert metrics_of(predictions([50, 51, 52, 53], [0, 0, 1, 1]))["auroc"] == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_leaves_undefined_what_needs_two(label: int) -> None:
    made = predictions([-1.0, 2.0, 0.5], [label] * 3)
    choices = Choices.on(made)
    found = measure(made, choices)
    undefined = {name for name, estimate in found.metrics.items() if np.isnan(estimate.value)}
    one_sided = "sensitivity" if label == 0 else "specificity"
    rest = {"auroc", "average_precision", "balanced_accuracy", "calibration_slope"}
    assert undefined == rest | {one_sided}
    assert np.isnan(found.metrics["auroc"].interval).all()
    assert choices.thresholds == {"0.5": 0.0}
    assert np.isnan(choices.temperature)
    assert found.rescaled is None


def test_operating_points_are_chosen_as_their_names_say() -> None:
    logits = [-3.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0]
    labels = [0, 0, 1, 0, 1, 0, 1, 1]
    choices = Choices.on(predictions(logits, labels))
    # Youden: 4 of 4 and 2 of 4, or 2 of 4 and 4 of 4 are as good; the higher threshold comes first.
    assert choices.thresholds == {"0.5": 0.0, "youden": 1.5, "sensitivity_95": -1.5, "specificity_95": 1.5}
    point = measure(predictions(logits, labels), choices)
    assert point.operating_points["sensitivity_95"]["sensitivity"].value == 1.0
    assert point.operating_points["specificity_95"]["specificity"].value == 1.0
    assert point.confusion["youden"].tolist() == [[4, 0], [2, 2]]


def test_operating_points_agree_with_the_roc_curve_of_scikit_learn() -> None:
    made = random_predictions(300)
    choices = Choices.on(made)
    false, true, _ = reference.roc_curve(made.labels, made.logits, drop_intermediate=False)
    points = measure(made, choices).operating_points
    youden = points["youden"]
    assert youden["sensitivity"].value + youden["specificity"].value - 1 == pytest.approx((true - false).max())
    assert points["sensitivity_95"]["specificity"].value == pytest.approx(1 - false[true >= 0.95].min())
    assert points["specificity_95"]["sensitivity"].value == pytest.approx(true[false <= 0.05].max())


def test_the_temperature_is_recovered_and_lowers_the_loss() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < expit(honest)).astype(np.float64)
    temperature = fit_temperature(labels, 3 * honest)
    assert temperature == pytest.approx(3, rel=0.05)
    losses = [cross_entropy(labels, 3 * honest / (temperature + step)).mean() for step in (-0.01, 0, 0.01)]
    assert losses[1] == min(losses)
    assert calibration_slope(labels, 3 * honest) == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
def test_no_temperature_where_none_is_best(labels: list[int]) -> None:
    assert np.isnan(fit_temperature(np.array(labels, dtype=float), np.array([-2.0, -1.0, 1.0, 2.0])))
    assert np.isnan(calibration_slope(np.array(labels, dtype=float), np.array([-2.0, -1.0, 1.0, 2.0])))


def test_a_calibrated_score_shows_the_simulated_error() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 1000)
    groups = [str(index) for index in range(1000)]
    splits = [(rng.random(1000) < expit(logits)).astype(np.float64) for _ in range(200)]
    found = Calibration.of(splits[0], logits, groups)
    errors = [
        binary_calibration_error(torch.from_numpy(expit(logits)), torch.from_numpy(split).long(), 15).item()
        for split in splits
    ]
    assert found.chance_error == pytest.approx(np.mean(errors), rel=0.05)
    assert found.chance_error_limit == pytest.approx(np.quantile(errors, 0.95), rel=0.1)
    assert found.error == pytest.approx(errors[0])
    inside = (found.chance_shares[0] <= found.shares) & (found.shares <= found.chance_shares[1])
    assert inside.mean() >= 0.8
    assert found.counts.sum() == 1000


def test_scores_do_not_overflow() -> None:
    assert predictions([-1000, 0, 1000], [0, 1, 1]).scores.tolist() == [0.0, 0.5, 1.0]


def test_an_ensemble_averages_scores() -> None:
    members = [predictions([-1.0, 0.0, 3.0, 90.0], [0, 0, 1, 1]), predictions([2.0, 0.5, 1.0, 80.0], [0, 0, 1, 1])]
    found = average_scores(members)
    assert found.scores == pytest.approx((members[0].scores + members[1].scores) / 2, rel=1e-6)
    assert 80 < found.logits[3] < 81  # finite: close to 80 + ln 2
    assert found.ids == members[0].ids


def test_the_symmetry_average_sees_all_eight_symmetries_once_and_averages_scores() -> None:
    class Linear(nn.Module):
        """A logit that is another in each of the eight views."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))

        def forward(self, patches):
            return (patches * self.weights).sum(dim=(1, 2, 3))

    patches = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    network = Linear()
    views = [view.flip(dims) for view in (patches, patches.transpose(2, 3)) for dims in ((), (2,), (3,), (2, 3))]
    scores = torch.stack([network(view).sigmoid() for view in views])
    assert len(scores[:, 0].unique()) == 8
    average = SymmetryAverage(network)
    assert average(patches).sigmoid().numpy() == pytest.approx(scores.mean(dim=0).numpy(), rel=1e-5)
    assert average(patches.rot90(1, (2, 3))).numpy() == pytest.approx(average(patches).numpy(), rel=1e-4)


def test_predictions_are_written_at_full_precision_in_the_order_of_ids(tmp_path: Path) -> None:
    written = predictions([0.1, 1 / 3, -7.7], [0, 1, 1])
    written.write(tmp_path / "predictions.csv")
    table = pd.read_csv(tmp_path / "predictions.csv", dtype={"group": str})
    assert table.columns.tolist() == ["id", "label", "logit", "score", "group"]
    assert table["id"].tolist() == ["patch1", "patch2", "patch3"]
    assert np.array_equal(table["logit"].to_numpy(np.float32)[::-1], written.logits)
    assert np.array_equal(table["score"].to_numpy()[::-1], written.scores)
    assert table["group"].tolist() == written.groups[::-1]
