"""Inference over seeds and patches, against a published worked example, DeLong's test, hand work and simulation."""

import numpy as np
import pytest
from scipy.stats import norm

from pcam.evaluation.seeds import Inference, compare_arms, holm, infer_arm
from pcam.evaluation.statistics import delong_covariance, delong_test

# Van Dyke et al. 1993: two ways to look for aortic dissection, five readers, 69 normal and 45 abnormal patients, as
# worked by hand in Chakraborty, "The RJafroc book", chapter "Obuchowski Rockette applications" (dataset02, Wilcoxon,
# covariances by jackknife). An AUROC of 69 x 45 pairs with ties is a multiple of 1 / 6210.
AUROCS = np.array([[5711, 5333, 5613, 6043, 5153], [5886, 5622, 5724, 6206, 5775]]) / 6210
VARIANCE, COV1 = 8.0228827e-4, 3.4661371e-4
COV2, COV3 = 3.4407483e-4, 2.3902837e-4
COV2_OF_EACH = (0.0004840, 0.0002042)


def covariance(cov2: float, cov3: float) -> np.ndarray:
    """One with the published components: shape (arms, seeds, arms, seeds)."""
    made = np.full((2, 5, 2, 5), cov3)
    for arm in range(2):
        for other in range(2):
            block = np.full((5, 5), cov2 if arm == other else cov3)
            np.fill_diagonal(block, VARIANCE if arm == other else COV1)
            made[arm, :, other] = block
    return made


def test_two_arms_agree_with_the_published_worked_example() -> None:
    assert AUROCS.round(4).tolist() == [
        [0.9196, 0.8588, 0.9039, 0.9731, 0.8298],
        [0.9478, 0.9053, 0.9217, 0.9994, 0.9300],
    ]
    found = compare_arms(AUROCS, covariance(COV2, COV3))
    assert found.estimate == pytest.approx(-0.0438, abs=5e-5)
    assert (found.estimate / found.standard_error) ** 2 == pytest.approx(4.456, abs=5e-4)
    assert found.degrees_of_freedom == pytest.approx(15.26, abs=5e-3)
    assert found.p_difference() == pytest.approx(0.05167, abs=5e-6)
    assert found.interval() == pytest.approx((-0.0879595, 0.0003589), abs=5e-7)


@pytest.mark.parametrize(
    ("arm", "error", "degrees", "interval"),
    [(0, 0.03317, 12.74, (0.8252, 0.9689)), (1, 0.02157, 12.71, (0.8941, 0.9875))],
)
def test_each_arm_agrees_with_the_published_worked_example(
    arm: int, error: float, degrees: float, interval: tuple[float, float]
) -> None:
    found = infer_arm(AUROCS[arm], covariance(COV2_OF_EACH[arm], 0.0)[arm, :, arm])
    assert found.standard_error == pytest.approx(error, abs=5e-6)
    assert found.degrees_of_freedom == pytest.approx(degrees, abs=1e-2)
    assert found.interval() == pytest.approx(interval, abs=1e-4)


def test_one_seed_is_delongs_test() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200).astype(float)
    logits = labels * 1.0 + rng.normal(size=(2, 200))
    aurocs, matrix = delong_covariance(labels, logits, [str(row) for row in range(len(labels))])
    found = compare_arms(aurocs.reshape(2, 1), matrix.reshape(2, 1, 2, 1))
    expected = delong_test(labels, *logits, [str(row) for row in range(len(labels))])
    assert found.p_difference() == pytest.approx(expected.p)
    assert found.estimate == pytest.approx(expected.difference)
    alone = infer_arm(aurocs[:1], matrix[:1, :1])
    assert alone.interval() == pytest.approx(norm.interval(0.95, aurocs[0], matrix[0, 0] ** 0.5))


@pytest.mark.slow
def test_intervals_cover_where_delong_alone_does_not() -> None:
    """Three seeds with a standard deviation of .005 between them."""
    rng = np.random.default_rng(0)
    patches, seeds, trials = 3000, 3, 400
    true_auroc = norm.cdf(1.9 / 2**0.5)
    labels = np.repeat([0.0, 1.0], patches // 2)
    covered = covered_by_delong = 0
    for _ in range(trials):
        # What a seed adds moves the classes apart: .005 of AUROC is .036 of separation.
        separation = 1.9 + rng.normal(scale=0.036, size=(seeds, 1))
        shared, own = rng.normal(size=patches), rng.normal(size=(seeds, patches))
        logits = labels * separation + 0.8 * shared + 0.6 * own
        aurocs, matrix = delong_covariance(labels, logits, [str(row) for row in range(len(labels))])
        low, high = infer_arm(aurocs, matrix).interval()
        covered += low <= true_auroc <= high
        error = matrix.mean() ** 0.5
        covered_by_delong += abs(aurocs.mean() - true_auroc) <= 1.96 * error
    assert covered / trials > 0.93
    assert covered_by_delong / trials < covered / trials


def test_equivalence_needs_the_interval_within_the_margin() -> None:
    sure = Inference(0.002, 0.003, 20.0)
    low, high = sure.interval(0.9)
    assert -0.01 < low < high < 0.01
    assert sure.p_equivalence(0.01) < 0.05
    # The 90 % interval touches the margin exactly where the test is at 5 %.
    assert sure.p_equivalence(high) == pytest.approx(0.05)
    assert Inference(0.011, 0.001, 20.0).p_equivalence(0.01) > 0.5


@pytest.mark.slow  # takes some seconds
def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    made = Inference(0.0, 0.004, 1000.0)
    estimates = rng.normal(made.detectable(), 0.004, size=20_000)
    assert np.mean([Inference(value, 0.004, 1000.0).p_difference() < 0.05 for value in estimates]) == pytest.approx(
        0.8, abs=0.01
    )


def test_no_interval_holds_what_cannot_be() -> None:
    apart, none = np.array([0.99, 0.80, 0.95]), np.zeros((3, 3))
    low, high = infer_arm(apart, none).interval()
    assert 0 < low < high == 1
    assert infer_arm(1 - apart, none).interval() == (0, pytest.approx(1 - low))
    found = compare_arms(np.stack([apart, apart[::-1] - 0.99]), np.zeros((2, 3, 2, 3)))
    assert found.interval()[1] == 1


def test_identical_networks_do_not_differ() -> None:
    same = Inference(0.0, 0.0, np.inf)
    assert same.p_difference() == 1
    assert same.p_equivalence(0.01) == 0


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2 (not below the one before: .06), .9 x 1.
    assert holm(np.array([0.9, 0.02, 0.01, 0.03])).tolist() == pytest.approx([0.9, 0.06, 0.04, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
