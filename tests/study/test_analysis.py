"""Comparisons in every metric, against SciPy, scikit-learn and an independent bootstrap."""

from math import inf
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import delong_test
from pcam.study.analysis import Side, arm_mean, compare
from pcam.study.plan import Metric, Run
from pcam.study.results import ResultsFolder, RunResult

PATCHES = 300
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(PATCHES) % 3 == 0).astype(np.uint8)
SHARED = RNG.normal(size=PATCHES)

REFERENCES = {
    "auroc": roc_auc_score,
    "average_precision": average_precision_score,
    "accuracy": lambda labels, scores: accuracy_score(labels, scores > 0.5),
    "balanced_accuracy": lambda labels, scores: balanced_accuracy_score(labels, scores > 0.5),
    "loss": log_loss,
}


def logits(signal: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng((seed, int(100 * signal))).normal(size=PATCHES)
    return (signal * (2.0 * LABELS - 1) + 0.8 * SHARED + 0.4 * noise).astype(np.float32)


def result(folder: Path, values: np.ndarray, labels: np.ndarray = LABELS, groups: list[str] | None = None) -> RunResult:
    names = [f"{row:03d}" for row in range(PATCHES)]
    results = ResultsFolder(folder)
    predictions = Predictions(names, labels, values, groups or names)
    results.write(Run("arm", 1), {"momentum_0.1": predictions}, b"step\n", {})
    return RunResult(folder / "arm_seed_1", {"readings": {"momentum_0.1": {}}}, results.patches)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Two arms of three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    return (
        Side([result(folder / f"good{seed}", logits(1.0, seed)) for seed in range(3)], "momentum_0.1"),
        Side([result(folder / f"poor{seed}", logits(0.6, seed)) for seed in range(3)], "momentum_0.1"),
    )


def score(run: RunResult) -> np.ndarray:
    scores: np.ndarray = 1 / (1 + np.exp(-run.logits("momentum_0.1")))
    return scores


@pytest.mark.parametrize("metric", list(REFERENCES))
def test_a_difference_is_that_of_the_means_over_seeds(metric: Metric, sides: tuple[Side, Side]) -> None:
    found = compare(*sides, metric)
    means = [np.mean([REFERENCES[metric](LABELS, score(run)) for run in side.runs]) for side in sides]
    assert found.estimate == pytest.approx(means[0] - means[1])
    assert found.bounds == ((-inf, inf) if metric == "loss" else (-1, 1))
    low, high = found.interval()
    assert low < found.estimate < high
    assert (found.estimate < 0) == (metric == "loss")


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_with_one_seed_loss_and_accuracy_are_a_paired_test_over_patches(
    metric: Metric, sides: tuple[Side, Side]
) -> None:
    first, second = (Side(side.runs[:1], side.reading) for side in sides)
    scores = [score(side.runs[0]) for side in (first, second)]
    values = {
        "loss": [-np.log(np.where(LABELS == 1, scored, 1 - scored)) for scored in scores],
        "accuracy": [((scored > 0.5) == LABELS).astype(float) for scored in scores],
    }[metric]
    found = compare(first, second, metric)
    assert found.estimate / found.standard_error == pytest.approx(ttest_rel(*values).statistic)


def test_the_error_of_a_balanced_accuracy_is_that_of_two_shares(sides: tuple[Side, Side]) -> None:
    run = sides[0].runs[0]
    found = arm_mean([run], "momentum_0.1", "balanced_accuracy")
    shares = [recall_score(LABELS, score(run) > 0.5, pos_label=label) for label in (0, 1)]
    numbers = [int((label == LABELS).sum()) for label in (0, 1)]
    assert found.estimate == pytest.approx(np.mean(shares))
    variance = sum(share * (1 - share) / number for share, number in zip(shares, numbers, strict=True)) / 4
    assert found.standard_error == pytest.approx((variance * PATCHES / (PATCHES - 1)) ** 0.5)
    assert found.bounds == (0, 1)
    assert arm_mean([run], "momentum_0.1", "loss").bounds == (0, inf)


def test_with_one_seed_auroc_is_delongs_test(sides: tuple[Side, Side]) -> None:
    first, second = (Side(side.runs[:1], side.reading) for side in sides)
    one, other = (side.runs[0].logits("momentum_0.1") for side in (first, second))
    expected = delong_test(LABELS.astype(float), one, other, first.runs[0].units)
    assert compare(first, second, "auroc").p_difference() == pytest.approx(expected.p)


@pytest.mark.slow  # takes some seconds
def test_with_one_seed_average_precision_agrees_with_an_independent_bootstrap(sides: tuple[Side, Side]) -> None:
    first, second = (Side(side.runs[:1], side.reading) for side in sides)
    one, other = (score(side.runs[0]) for side in (first, second))
    rng = np.random.default_rng(1)
    differences = []
    for _ in range(1000):
        rows = rng.integers(PATCHES, size=PATCHES)
        differences.append(
            average_precision_score(LABELS[rows], one[rows]) - average_precision_score(LABELS[rows], other[rows])
        )
    assert compare(first, second, "average_precision").standard_error == pytest.approx(np.std(differences), rel=0.1)


@pytest.mark.parametrize("metric", list(REFERENCES))
def test_patches_that_are_not_independent_make_a_difference_less_sure(metric: Metric, tmp_path: Path) -> None:
    """Every patch four times: as many are there, but only a quarter of them say something."""
    rows = np.arange(PATCHES) // 4
    labels, groups = LABELS[rows], [str(row) for row in rows]
    found = {}
    for name, units in {"apart": [str(row) for row in range(PATCHES)], "together": groups}.items():
        made = []
        for signal in (1.0, 0.6):
            run = result(tmp_path / f"{name}_{signal}", logits(signal, 0)[rows], labels, units)
            made.append(Side([run], "momentum_0.1"))
        found[name] = compare(*made, metric)
    assert found["together"].estimate == found["apart"].estimate
    assert found["together"].standard_error == pytest.approx(2 * found["apart"].standard_error, rel=0.15)
