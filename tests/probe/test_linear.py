"""The linear unit against scikit-learn, and against eva's protocol written down by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pcam.errors import UserError
from pcam.evaluation.metrics import measure_logits
from pcam.probe import few_shot, linear
from pcam.probe.few_shot import few_shot_table, neighbour_logits
from pcam.probe.linear import LogisticRegression, apply_linear, fit_eva, fit_lbfgs
from pcam.probe.run import check_both_classes
from pcam.probe.store import EmbeddedSplit


def embedded(count: int, features: int = 12, seed: int = 0, dtype: Any = np.float32) -> EmbeddedSplit:
    """Embeddings that tell the classes apart with errors; features of very different size, one of them constant."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.uint8)
    values = rng.normal(size=(count, features)) + 0.5 * labels[:, None] * np.linspace(0, 1, features)
    values *= np.logspace(-1, 1, features)
    values[:, 0] = 3.0
    return EmbeddedSplit(Path(), values.astype(dtype), labels, 0.0, 0)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_logistic_regression_is_that_of_scikit_learn(
    strength: float, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ROWS", 77)  # several blocks, the last one smaller
    train, valid = embedded(500, dtype=dtype), embedded(200, seed=1)
    weight, bias, _ = LogisticRegression(train.matrix, train.labels).fit(strength)
    reference = make_pipeline(StandardScaler(), Reference(C=strength, tol=1e-8, max_iter=10_000))
    reference.fit(train.matrix.astype(np.float64), train.labels)
    expected = reference.decision_function(valid.matrix.astype(np.float64))
    np.testing.assert_allclose(apply_linear(valid.matrix, weight, bias), expected, atol=2e-3 * np.abs(expected).max())


def test_the_strength_is_that_with_the_lowest_loss_on_valid() -> None:
    train, valid = embedded(80, features=60), embedded(400, features=60, seed=1)
    fit = fit_lbfgs(train, valid)
    losses = [row["val/loss"] for row in fit.rows]
    best = int(np.argmin(losses))
    assert 0 < best < len(linear.STRENGTHS) - 1
    assert fit.facts["strength"] == linear.STRENGTHS[best] == fit.rows[best]["strength"]
    assert fit.step == fit.rows[best]["step"]
    assert len(losses) == best + 3  # after two that are worse, no more are tried
    measured = measure_logits(valid.labels, apply_linear(valid.matrix, fit.weight, fit.bias))
    assert measured["loss"] == losses[best]
    logits = apply_linear(valid.matrix, fit.weight, fit.bias)
    assert measured["auroc"] == pytest.approx(roc_auc_score(valid.labels, logits))
    assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(valid.labels, logits > 0))


def test_evas_protocol_is_that_of_a_loop_written_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "EVA_STEPS", 61)  # 20 epochs of 3 steps, and one step that is not validated
    train, valid = embedded(600), embedded(300, seed=1)

    torch.manual_seed(7)
    layer = nn.Linear(12, 1)
    order = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-4)
    inputs, labels = torch.from_numpy(train.matrix), torch.from_numpy(train.labels).float()
    best, waited, history = (-1.0, None, 0), 0, []
    for epoch in range(1, 21):
        shuffled = torch.randperm(600, generator=order)
        for rows in (shuffled[:256], shuffled[256:512], shuffled[512:]):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(layer(inputs[rows]).squeeze(-1), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            decisions = layer(torch.from_numpy(valid.matrix)).squeeze(-1).sigmoid() > 0.5
        accuracy = balanced_accuracy_score(valid.labels, decisions.numpy())
        history.append(accuracy)
        waited += 1
        if accuracy > best[0]:
            best, waited = (accuracy, (layer.weight.detach().clone(), layer.bias.detach().clone()), 3 * epoch), 0
        if waited == 5:  # a fifth of 20.3 epochs, rounded up
            break

    fit = fit_eva(train, valid, 7)
    weight, bias = best[1]
    assert fit.weight.tolist() == weight.double()[0].tolist()
    assert fit.bias == bias.item()
    assert fit.step == best[2]
    assert [row["val/balanced_accuracy"] for row in fit.rows] == pytest.approx(history, abs=1e-12)
    assert fit_eva(train, valid, 8).weight.tolist() != fit.weight.tolist()


def test_training_ends_early_when_balanced_accuracy_does_not_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = embedded(600), embedded(300, seed=1)
    monkeypatch.setattr(linear, "measure_logits", lambda labels, logits: {"balanced_accuracy": 0.5})
    monkeypatch.setattr(linear, "EVA_STEPS", 300)  # 100 epochs
    fit = fit_eva(train, valid, 1)
    assert len(fit.rows) == 1 + 20
    assert fit.step == 3


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ROWS", 64)
    train, valid = embedded(200), embedded(50, seed=1)
    distances, found = NearestNeighbors(n_neighbors=7, metric="cosine").fit(train.matrix).kneighbors(valid.matrix)
    weights = np.exp((distances[:, :1] - distances) / 0.07)
    tumour = (weights * train.labels[found]).sum(axis=1)
    expected = np.log((tumour + 0.5) / (weights.sum(axis=1) - tumour + 0.5))
    np.testing.assert_allclose(neighbour_logits(train, valid.matrix, 7), expected, atol=1e-4)
    assert len(neighbour_logits(train, valid.matrix, 1000)) == 50


@pytest.mark.slow  # takes some seconds
def test_a_few_shot_curve_rises_with_the_patches_and_narrows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot, "SHOTS", (5, 100, 1000))
    train, valid = embedded(400), embedded(300, seed=1)
    table = few_shot_table(train, valid, 1.0, draws=6, seed=0)
    assert table["shots"].tolist() == [5, 100]
    assert table["auroc"].iloc[1] > table["auroc"].iloc[0] + 0.05
    widths = table["auroc_high"] - table["auroc_low"]
    assert widths.iloc[1] < widths.iloc[0] / 2
    assert (table["auroc_low"] <= table["auroc"]).all()
    assert few_shot_table(train, valid, 1.0, draws=6, seed=0).equals(table)


def test_one_class_alone_is_refused() -> None:
    one = replace(embedded(5), labels=np.ones(5, np.uint8))
    with pytest.raises(UserError, match="both classes in train, but all 5 have the label 1"):
        check_both_classes(one, embedded(20))
