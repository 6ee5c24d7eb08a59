"""Resampling and DeLong's test, against slow references written down from their definitions."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel
from sklearn.metrics import roc_auc_score

from pcam.evaluation import statistics
from pcam.evaluation.statistics import (
    RESAMPLES,
    delong_covariance,
    delong_test,
    interval,
    mean_covariance,
    resample_groups,
)


def two_classifiers(count: int, seed: int, better: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.float64)
    shared = rng.normal(labels, 1)
    return labels, np.round(shared + rng.normal(better * labels, 1), 1), np.round(shared + rng.normal(0, 1, count), 1)


def slow_delong(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As DeLong et al. 1988 define it: every pair of patches is compared."""
    placements = []
    for label, sign in ((1, 1), (0, -1)):
        own, others = logits[:, labels == label], logits[:, labels != label]
        pairs = zip(own, others, strict=True)
        wins = [[[(np.sign(sign * (x - y)) + 1) / 2 for y in other] for x in mine] for mine, other in pairs]
        placements.append(np.array(wins).mean(axis=2))
    aurocs = placements[0].mean(axis=1)
    covariance = sum(
        (values - aurocs[:, None]) @ (values - aurocs[:, None]).T / (values.shape[1] - 1) / values.shape[1]
        for values in placements
    )
    return aurocs, covariance


def test_delong_agrees_with_its_definition() -> None:
    labels, first, second = two_classifiers(90, seed=1, better=0.3)
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]))
    expected_aurocs, expected_covariance = slow_delong(labels, np.stack([first, second]))
    assert aurocs == pytest.approx(expected_aurocs, abs=1e-14)
    assert aurocs[0] == pytest.approx(roc_auc_score(labels, first), abs=1e-14)
    assert covariance == pytest.approx(expected_covariance, abs=1e-14)
    found = delong_test(labels, first, second)
    contrast = np.array([1, -1])
    z = contrast @ expected_aurocs / np.sqrt(contrast @ expected_covariance @ contrast)
    assert (found.difference, found.z) == (pytest.approx(contrast @ expected_aurocs), pytest.approx(z))
    assert found.p == pytest.approx(2 * norm.cdf(-abs(z)))


def test_the_covariance_of_means_is_that_of_a_paired_t_test() -> None:
    values = np.random.default_rng(3).normal(size=(2, 50)) + np.linspace(0, 3, 50)
    means, covariance = mean_covariance(values)
    expected = ttest_rel(*values)
    assert means == pytest.approx(values.mean(axis=1))
    error = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert (means[0] - means[1]) / error == pytest.approx(expected.statistic)


def test_delong_agrees_with_the_bootstrap() -> None:
    labels, first, second = two_classifiers(600, seed=2, better=0.1)
    _, covariance = delong_covariance(labels, np.stack([first, second]))
    deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    rng = np.random.default_rng(0)
    differences = [
        roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows])
        for rows in rng.integers(600, size=(500, 600))
    ]
    assert deviation == pytest.approx(np.std(differences), rel=0.1)


def test_delong_rejects_five_percent_of_equals() -> None:
    p = [delong_test(*two_classifiers(200, seed, better=0.0)).p for seed in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_delong_says_nothing_of_the_same_ranking_or_of_one_patch() -> None:
    labels, first, _ = two_classifiers(50, seed=0, better=0.0)
    same = delong_test(labels, first, 2 * first + 1)
    assert same.difference == 0
    assert np.isnan([same.z, same.p]).all()
    alone = delong_test(np.array([0.0, 0.0, 1.0]), np.arange(3.0), np.arange(3.0))
    assert np.isnan([alone.difference, alone.z, alone.p]).all()


def test_resamples_draw_whole_groups_and_are_the_same_each_time() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = np.concatenate(list(resample_groups(groups)))
    assert weights.shape == (RESAMPLES, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean() == pytest.approx(1, abs=0.03)
    assert np.array_equal(weights, np.concatenate(list(resample_groups(groups))))


def test_repeats_widen_the_interval_instead_of_narrowing_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)

    def width(groups: list[str], of: np.ndarray) -> float:
        weights = np.concatenate(list(resample_groups(groups)))
        low, high = interval((weights @ of) / weights.sum(axis=1))
        return high - low

    once = width([str(index) for index in range(100)], values)
    assert width([str(index % 100) for index in range(400)], np.tile(values, 4)) == pytest.approx(once)
    assert once == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)


def test_chunks_cover_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 1000)
    assert sum(statistics.chunks(2000, 300)) == 2000
    assert max(statistics.chunks(2000, 300)) == 3
    assert max(statistics.chunks(2, 5000)) == 1


def test_an_interval_leaves_out_what_is_undefined() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))).all()
