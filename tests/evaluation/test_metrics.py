"""Metrics and predictions, against scikit-learn and hand-worked cases."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score

from pcam.evaluation.metrics import measure
from pcam.evaluation.predictions import Predictions


def predictions(logits: list[float], labels: list[int]) -> Predictions:
    count = len(logits)
    return Predictions(
        ids=[f"patch{count - index}" for index in range(count)],
        labels=np.array(labels, dtype=np.uint8),
        logits=np.array(logits, dtype=np.float32),
        groups=[f"{index:040x}" for index in range(count)],
    )


def test_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    logits = np.round(rng.normal(labels, 1.5), 1)  # rounded: ties
    found = measure(predictions(logits.tolist(), labels.tolist()))
    scores = 1 / (1 + np.exp(-logits))
    assert found == {
        "auroc": pytest.approx(roc_auc_score(labels, scores)),
        "average_precision": pytest.approx(average_precision_score(labels, scores)),
        "accuracy": pytest.approx(accuracy_score(labels, scores > 0.5)),
        "loss": pytest.approx(log_loss(labels, scores), rel=1e-6),
    }


def test_large_logits_keep_their_order() -> None:
    """In float32 their scores would all be 1."""
    assert measure(predictions([20, 21, 22, 23], [0, 0, 1, 1]))["auroc"] == 1.0


def test_scores_do_not_overflow() -> None:
    assert predictions([-1000, 0, 1000], [0, 1, 1]).scores.tolist() == [0.0, 0.5, 1.0]


def test_predictions_are_written_at_full_precision_in_the_order_of_ids(tmp_path: Path) -> None:
    written = predictions([0.1, 1 / 3, -7.7], [0, 1, 1])
    written.write(tmp_path / "predictions.csv")
    table = pd.read_csv(tmp_path / "predictions.csv", dtype={"group": str})
    assert table.columns.tolist() == ["id", "label", "logit", "score", "group"]
    assert table["id"].tolist() == ["patch1", "patch2", "patch3"]
    assert np.array_equal(table["logit"].to_numpy(np.float32)[::-1], written.logits)
    assert np.array_equal(table["score"].to_numpy()[::-1], written.scores)
    assert table["group"].tolist() == written.groups[::-1]
