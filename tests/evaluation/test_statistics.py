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
    independent_units,
    interval,
    mean_covariance,
    number_units,
    resample_units,
)


def two_classifiers(count: int, seed: int, better: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.float64)
    shared = rng.normal(labels, 1)
    return labels, np.round(shared + rng.normal(better * labels, 1), 1), np.round(shared + rng.normal(0, 1, count), 1)


def each(values: np.ndarray) -> list[str]:
    """Every patch a unit of its own."""
    return [str(index) for index in range(len(values))]


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
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]), each(labels))
    expected_aurocs, expected_covariance = slow_delong(labels, np.stack([first, second]))
    assert aurocs == pytest.approx(expected_aurocs, abs=1e-14)
    assert aurocs[0] == pytest.approx(roc_auc_score(labels, first), abs=1e-14)
    assert covariance == pytest.approx(expected_covariance, abs=1e-14)
    found = delong_test(labels, first, second, each(labels))
    contrast = np.array([1, -1])
    z = contrast @ expected_aurocs / np.sqrt(contrast @ expected_covariance @ contrast)
    assert (found.difference, found.z) == (pytest.approx(contrast @ expected_aurocs), pytest.approx(z))
    assert found.p == pytest.approx(2 * norm.cdf(-abs(z)))


def test_the_covariance_of_means_is_that_of_a_paired_t_test() -> None:
    values = np.random.default_rng(3).normal(size=(2, 50)) + np.linspace(0, 3, 50)
    means, covariance = mean_covariance(values, each(values[0]))
    expected = ttest_rel(*values)
    assert means == pytest.approx(values.mean(axis=1))
    error = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert (means[0] - means[1]) / error == pytest.approx(expected.statistic)


@pytest.mark.slow  # takes some seconds
def test_delong_agrees_with_the_bootstrap() -> None:
    labels, first, second = two_classifiers(600, seed=2, better=0.1)
    _, covariance = delong_covariance(labels, np.stack([first, second]), each(labels))
    deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    rng = np.random.default_rng(0)
    differences = [
        roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows])
        for rows in rng.integers(600, size=(500, 600))
    ]
    assert deviation == pytest.approx(np.std(differences), rel=0.1)


def clustered(seed: int, slides: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Patches of slides: some slides have both labels, some one, and the patches of a slide look alike."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 12, slides)
    numbers = np.repeat(np.arange(slides), sizes)
    labels = (rng.random(len(numbers)) < np.repeat(rng.beta(0.5, 0.5, slides), sizes)).astype(np.float64)
    staining = rng.normal(size=(2, slides))[:, numbers]
    logits = 1.5 * labels + staining + rng.normal(size=(2, len(numbers)))
    return labels, logits, [f"slide {number}" for number in numbers]


@pytest.mark.slow  # takes some seconds
def test_patches_of_a_slide_count_together_as_in_the_bootstrap() -> None:
    labels, logits, slides = clustered(seed=1)
    aurocs, covariance = delong_covariance(labels, logits, slides)
    rows = [np.flatnonzero(np.array(slides) == slide) for slide in sorted(set(slides))]
    rng = np.random.default_rng(0)
    drawn = []
    for picked in rng.integers(len(rows), size=(600, len(rows))):
        patches = np.concatenate([rows[slide] for slide in picked])
        drawn.append([roc_auc_score(labels[patches], row[patches]) for row in logits])
    assert aurocs == pytest.approx([roc_auc_score(labels, row) for row in logits])
    assert np.sqrt(np.diag(covariance)) == pytest.approx(np.std(drawn, axis=0), rel=0.1)
    contrast = np.array([1, -1])
    assert np.sqrt(contrast @ covariance @ contrast) == pytest.approx(np.std(np.diff(drawn, axis=1)), rel=0.1)
    # Patches taken one by one would be surer than they are.
    alone = delong_covariance(labels, logits, each(labels))[1]
    assert (np.diag(covariance) > 1.5 * np.diag(alone)).all()


def test_repeated_patches_say_no_more_than_once() -> None:
    labels, first, second = two_classifiers(60, seed=4, better=0.3)
    logits = np.stack([first, second])
    once = delong_covariance(labels, logits, each(labels))
    groups = each(labels)
    twice = delong_covariance(np.tile(labels, 2), np.tile(logits, 2), groups * 2)
    assert twice[0] == pytest.approx(once[0])
    assert twice[1] == pytest.approx(once[1])
    values = np.random.default_rng(0).normal(size=(2, 60))
    assert mean_covariance(np.tile(values, 2), groups * 2)[1] == pytest.approx(mean_covariance(values, groups)[1])


def test_a_single_slide_says_nothing_of_others() -> None:
    labels, logits, _ = clustered(seed=2)
    assert np.isnan(delong_covariance(labels, logits, ["one"] * len(labels))[1]).all()
    assert np.isnan(mean_covariance(logits, ["one"] * len(labels))[1]).all()


def test_the_slide_is_the_unit_where_it_is_known() -> None:
    assert independent_units(["a", "b", "b"], None) == ["a", "b", "b"]
    assert independent_units(["a", "b", "b"], ["s", "s", ""]) == ["s", "s", "b"]
    numbers, count = number_units(["s", "s", "b"])
    assert (numbers.tolist(), count) == ([1, 1, 0], 2)


def test_delong_rejects_five_percent_of_equals() -> None:
    p = [delong_test(*two_classifiers(200, seed, better=0.0), each(np.arange(200))).p for seed in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_delong_says_nothing_of_the_same_ranking_or_of_one_patch() -> None:
    labels, first, _ = two_classifiers(50, seed=0, better=0.0)
    same = delong_test(labels, first, 2 * first + 1, each(labels))
    assert same.difference == 0
    assert np.isnan([same.z, same.p]).all()
    alone = delong_test(np.array([0.0, 0.0, 1.0]), np.arange(3.0), np.arange(3.0)[::-1].copy(), ["a", "b", "c"])
    assert alone.difference == 1
    assert np.isnan([alone.z, alone.p]).all()
    one_class = delong_test(np.zeros(3), np.arange(3.0), np.arange(3.0), ["a", "b", "c"])
    assert np.isnan([one_class.difference, one_class.z, one_class.p]).all()


def test_resamples_draw_whole_groups_and_are_the_same_each_time() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = np.concatenate(list(resample_units(groups)))
    assert weights.shape == (RESAMPLES, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean() == pytest.approx(1, abs=0.03)
    assert np.array_equal(weights, np.concatenate(list(resample_units(groups))))


def test_repeats_widen_the_interval_instead_of_narrowing_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)

    def width(groups: list[str], of: np.ndarray) -> float:
        weights = np.concatenate(list(resample_units(groups)))
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
