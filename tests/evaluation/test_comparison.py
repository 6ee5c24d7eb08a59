"""Two predictions of the same patches, compared, against scikit-learn, DeLong's test and a plain bootstrap."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pcam.errors import UserError
from pcam.evaluation.comparison import compare
from pcam.evaluation.measurement import Choices, measure
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import delong_test
from tests.evaluation.test_metrics import random_predictions


@pytest.fixture
def first() -> Predictions:
    return random_predictions(300)


@pytest.fixture
def second(first: Predictions) -> Predictions:
    """Of the same patches, by a classifier that is a little worse."""
    disturbance = np.random.default_rng(1).normal(scale=2, size=300)
    return replace(first, logits=(first.logits + disturbance).astype(np.float32))


def shuffled(made: Predictions) -> Predictions:
    rows = np.random.default_rng(2).permutation(len(made.ids))
    return Predictions(
        [made.ids[row] for row in rows],
        made.labels[rows],
        made.logits[rows],
        [made.groups[row] for row in rows],
        None if made.slides is None else [made.slides[row] for row in rows],
    )


def test_the_numbers_are_those_of_each_alone_and_of_delongs_test(first: Predictions, second: Predictions) -> None:
    found = compare(first, second)
    assert found.first.value == pytest.approx(roc_auc_score(first.labels, first.logits), abs=1e-14)
    assert found.second.value == pytest.approx(roc_auc_score(first.labels, second.logits), abs=1e-14)
    test = delong_test(first.labels.astype(float), first.logits.astype(float), second.logits.astype(float), first.units)
    assert (found.difference.value, found.z, found.p) == (test.difference, test.z, test.p)
    assert found.difference.value == pytest.approx(found.first.value - found.second.value, abs=1e-14)
    for of_one, made in ((found.first, first), (found.second, second)):
        assert of_one == measure(made, Choices.on(made)).metrics["auroc"]
    low, high = found.difference.interval
    assert low < found.difference.value < high
    assert (high - low) / (2 * 1.96) == pytest.approx(found.difference.value / found.z, rel=0.1)  # DeLong's error
    assert found.units == len(set(first.groups))


def test_patches_are_matched_by_their_ids(first: Predictions, second: Predictions) -> None:
    assert compare(first, shuffled(second)) == compare(first, second)
    with_slides = replace(first, slides=[str(row // 10) for row in range(300)])
    other = replace(with_slides, logits=second.logits)
    assert compare(with_slides, shuffled(other)) == compare(with_slides, other)


def test_slides_are_the_units_where_they_are_known(first: Predictions, second: Predictions) -> None:
    slides = [str(row // 10) for row in range(300)]
    found = compare(replace(first, slides=slides), replace(second, slides=slides))
    assert found.units == 30
    assert found.p != compare(first, second).p


def test_one_class_leaves_everything_undefined(first: Predictions, second: Predictions) -> None:
    labels = np.ones_like(first.labels)
    found = compare(replace(first, labels=labels), replace(second, labels=labels))
    numbers = [*found.first, *found.second, *found.difference, found.z, found.p]
    assert np.isnan([number for item in numbers for number in np.atleast_1d(item)]).all()


def test_predictions_of_other_patches_are_refused(first: Predictions, second: Predictions) -> None:
    with pytest.raises(UserError, match="found 300 and 300 of which 299 have the same id"):
        compare(first, replace(second, ids=["another", *second.ids[1:]]))
    labels = second.labels.copy()
    labels[7] = 1 - labels[7]
    with pytest.raises(UserError, match=rf"but 1 of 300 patches have another label .* is {first.ids[7]}\)"):
        compare(first, replace(second, labels=labels))
    with pytest.raises(UserError, match="but 300 of 300 patches have another label or other pixels"):
        compare(first, replace(second, groups=["f" * 40] * 300))
