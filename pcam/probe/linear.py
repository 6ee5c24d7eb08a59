"""The linear unit on top of embeddings: logistic regression by L-BFGS, and the protocol of eva's leaderboard."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pcam.evaluation.metrics import measure_logits
from pcam.probe.store import EmbeddedSplit

ROWS: Final = 16_384
"""Embeddings that are in memory at a time, in float32: 100 MB if each has 1,536 values."""

STRENGTHS: Final = tuple(10.0**exponent for exponent in range(-5, 2))
"""The inverse strengths of the penalty that are tried, as scikit-learn's `C`: from a strong penalty to a weak one.

Two that are worse on valid than the best so far are enough: weaker ones overfit more, and take ever more iterations."""

EVA_STEPS: Final = 12_500
EVA_BATCH: Final = 256
EVA_RATE: Final = 3e-4
EVA_PATIENCE: Final = 0.2
"""The protocol of eva's leaderboard for classification of patches. Training ends when balanced accuracy on valid has
not risen for this share of the epochs that the steps are.

Source: github.com/kaiko-ai/eva, configs/vision/pathology/offline/classification/patch_camelyon.yaml (3 epochs of
12.2) and docs/leaderboards.md ("Early stopping: 20% * [Max epochs]"). AdamW is PyTorch's, with its weight decay of
0.01, as in that config; the table of docs/leaderboards.md says 0.
"""


@dataclass
class Fit:
    """A linear unit, and how it was found.

    Args:
        weight: Shape (features,).
        bias: One number.
        step: Optimizer steps behind it; for L-BFGS, its iterations.
        passes: How often it has seen all training patches.
        rows: What was measured on the way: a row for each strength, or each epoch, with its `step`.
        facts: What was chosen.
    """

    weight: NDArray[np.float64]
    bias: float
    step: int
    passes: float
    rows: Sequence[Mapping[str, float]]
    facts: Mapping[str, float] = field(default_factory=dict)


def blocks(values: NDArray[Any]) -> Iterator[tuple[slice, Tensor]]:
    """Go through embeddings a few at a time.

    Args:
        values: Shape (patches, features), in memory or memory-mapped.

    Yields:
        Which rows, and their values as float32.
    """
    for start in range(0, len(values), ROWS):
        rows = slice(start, min(start + ROWS, len(values)))
        yield rows, torch.from_numpy(np.array(values[rows])).float()


def apply_linear(values: NDArray[Any], weight: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
    """Compute the logits of embeddings.

    Args:
        values: Shape (patches, features).
        weight: Shape (features,).
        bias: One number.

    Returns:
        Shape (patches,).
    """
    linear = torch.from_numpy(weight).float()
    logits: NDArray[np.float64] = np.concatenate([(block @ linear).numpy() for _, block in blocks(values)]) + bias
    return logits.astype(np.float64)


class LogisticRegression:
    """Logistic regression on standardised embeddings with a squared penalty, by L-BFGS, in bounded memory.

    It minimises what scikit-learn's `LogisticRegression` behind a `StandardScaler` does: C times the summed
    cross-entropy, plus half of the squared length of the weights.

    Args:
        values: Training embeddings, shape (patches, features).
        labels: Their labels, 0 or 1.
    """

    def __init__(self, values: NDArray[Any], labels: NDArray[np.uint8]) -> None:
        self._values = values
        self._labels = torch.from_numpy(labels.astype(np.float32))
        sums = sum(block.double().sum(dim=0) for _, block in blocks(values))
        assert isinstance(sums, Tensor)
        mean = sums / len(values)
        squares = sum((block.double() - mean).square().sum(dim=0) for _, block in blocks(values))
        assert isinstance(squares, Tensor)
        std = (squares / len(values)).sqrt()
        std[std <= 1e-5 * mean.abs()] = 1  # a feature that is always the same, but for rounding
        self._mean, self._std = mean.numpy(), std.numpy()
        self._start = np.zeros(values.shape[1] + 1)

    def fit(self, strength: float) -> tuple[NDArray[np.float64], float, int]:
        """Find the weights, starting from those of the last call.

        Args:
            strength: The inverse strength of the penalty, scikit-learn's C; above 0.

        Returns:
            Weight and bias for embeddings that are not standardised, and the number of iterations.
        """
        penalty = 1 / (strength * len(self._values))
        found = minimize(
            self._loss, self._start, args=(penalty,), jac=True, method="L-BFGS-B",
            options={"maxiter": 1000, "maxcor": 20, "gtol": 1e-5, "ftol": 1e-9},
        )  # fmt: skip
        self._start = found.x
        weight, bias = self._unscaled(found.x)
        return weight, bias, int(found.nit)

    def _unscaled(self, parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Turn weights for standardised embeddings into those for embeddings as they are."""
        weight = parameters[:-1] / self._std
        return weight, float(parameters[-1] - weight @ self._mean)

    def _loss(self, parameters: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        weight, bias = self._unscaled(parameters)
        linear = torch.from_numpy(weight).float()
        loss, gradient, total = 0.0, torch.zeros(len(weight), dtype=torch.float64), 0.0
        for rows, block in blocks(self._values):
            logits = (block @ linear).double() + bias
            labels = self._labels[rows].double()
            loss += float(binary_cross_entropy_with_logits(logits, labels, reduction="sum"))
            residuals = logits.sigmoid() - labels
            gradient += (residuals.float() @ block).double()
            total += float(residuals.sum())
        count = len(self._values)
        slopes = (gradient.numpy() - total * self._mean) / self._std / count + penalty * parameters[:-1]
        value = loss / count + 0.5 * penalty * float(parameters[:-1] @ parameters[:-1])
        return value, np.append(slopes, total / count)


def fit_lbfgs(train: EmbeddedSplit, valid: EmbeddedSplit) -> Fit:
    """Fit logistic regressions, and choose the strength of the penalty with the lowest cross-entropy on valid.

    Args:
        train: What is learned from.
        valid: What the strength is chosen on.

    Returns:
        The linear unit, with a row for each strength.
    """
    regression = LogisticRegression(train.matrix, train.labels)
    rows: list[dict[str, float]] = []
    fits = []
    step = 0
    for strength in STRENGTHS:
        weight, bias, iterations = regression.fit(strength)
        step += iterations
        measured = measure_logits(valid.labels, apply_linear(valid.matrix, weight, bias))
        loss = measure_logits(train.labels, apply_linear(train.matrix, weight, bias))["loss"]
        rows.append({"step": step, "epoch": step, "strength": strength, "train/loss": loss, **_named(measured)})
        fits.append((weight, bias))
        best = min(range(len(rows)), key=lambda row: rows[row]["val/loss"])
        if len(rows) - best > 2:
            break
    weight, bias = fits[best]
    chosen = int(rows[best]["step"])
    return Fit(weight, bias, chosen, float(chosen), rows, {"strength": STRENGTHS[best]})


def fit_eva(train: EmbeddedSplit, valid: EmbeddedSplit, seed: int) -> Fit:
    """Train the linear unit by the protocol of eva's leaderboard.

    One layer on embeddings as they are, AdamW with a rate of 0.0003, batches of 256, at most 12,500 steps; validation
    after each epoch; the epoch with the highest balanced accuracy on valid counts.

    Args:
        train: What is learned from.
        valid: What is validated on.
        seed: Seed of the first weights and of the order of patches.

    Returns:
        The linear unit, with a row for each epoch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.matrix.shape[1], 1)
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=EVA_RATE)
    labels = torch.from_numpy(train.labels.astype(np.float32))
    epoch_steps = math.ceil(len(labels) / EVA_BATCH)
    patience = math.ceil(EVA_PATIENCE * EVA_STEPS / epoch_steps)
    rows: list[dict[str, float]] = []
    best: tuple[NDArray[np.float64], float, int] | None = None
    highest, since, step = -1.0, 0, 0
    while step < EVA_STEPS and since < patience:
        order = torch.randperm(len(labels), generator=chance)
        losses = 0.0
        for batch in torch.split(order, EVA_BATCH)[: EVA_STEPS - step]:
            embeddings = torch.from_numpy(train.matrix[batch.numpy()]).float()
            loss = binary_cross_entropy_with_logits(layer(embeddings).squeeze(-1), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += float(loss.detach()) * len(batch)
            step += 1
        if step % epoch_steps and rows:  # the steps end within an epoch, which eva does not validate
            break
        weight, bias = layer.weight.detach().double().numpy()[0].copy(), float(layer.bias.detach())
        measured = measure_logits(valid.labels, apply_linear(valid.matrix, weight, bias))
        rows.append({"step": step, "epoch": len(rows), "train/loss": losses / len(labels), **_named(measured)})
        since += 1
        if measured["balanced_accuracy"] > highest:
            highest, since, best = measured["balanced_accuracy"], 0, (weight, bias, step)
    assert best is not None
    return Fit(best[0], best[1], best[2], best[2] / epoch_steps, rows)


def _named(measured: Mapping[str, float]) -> dict[str, float]:
    """Name what was measured on valid as a training does."""
    return {f"val/{name}": value for name, value in measured.items()}
