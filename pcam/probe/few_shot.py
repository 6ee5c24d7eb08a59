"""What embeddings tell without all training patches: nearest neighbours, and probes of a few patches of each class."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pcam.atomic import atomic_path
from pcam.evaluation.metrics import measure_logits
from pcam.evaluation.statistics import INTERVAL_QUANTILES
from pcam.probe.linear import LogisticRegression, apply_linear, blocks
from pcam.probe.store import EmbeddedSplit

SHOTS: Final = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Patches of each class that a curve has points at, as far as there are as many."""

SHOT_METRICS: Final = ("auroc", "balanced_accuracy")


def neighbour_logits(train: EmbeddedSplit, values: NDArray[Any], neighbours: int) -> NDArray[np.float64]:
    """Classify by nearest neighbours, weighted by their cosine similarity.

    Args:
        train: The patches that are voted with.
        values: The embeddings of the patches that are classified, shape (patches, features).
        neighbours: How many vote, at least 1; all if there are fewer.

    Returns:
        The logit of each patch's share of tumour among its neighbours, with one half vote for each class added, so that
        it is finite.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4,
    whose temperature 0.07 the weights have.
    """
    count = min(neighbours, len(train.labels))
    labels = torch.from_numpy(train.labels.astype(np.float32))
    found = []
    for _, block in blocks(values):
        queries = normalize(block)
        best: Tensor = torch.full((len(queries), 0), 0.0)
        votes: Tensor = torch.full((len(queries), 0), 0.0)
        for rows, others in blocks(train.matrix):  # the best so far, and those of another block
            similar = torch.cat([best, queries @ normalize(others).T], dim=1)
            voting = torch.cat([votes, labels[rows].expand(len(queries), -1)], dim=1)
            best, places = similar.topk(min(count, similar.shape[1]), dim=1)
            votes = voting.gather(1, places)
        weights = ((best - best[:, :1]) / 0.07).exp()
        tumour = (weights * votes).sum(dim=1)
        found.append(torch.log((tumour + 0.5) / (weights.sum(dim=1) - tumour + 0.5)).double().numpy())
    return np.concatenate(found)


def few_shot_table(
    train: EmbeddedSplit, measured: EmbeddedSplit, strength: float, draws: int, seed: int
) -> pd.DataFrame:
    """Fit probes to a few patches of each class, many times.

    Args:
        train: What is drawn from, without replacement.
        measured: What each probe is measured on.
        strength: The inverse strength of the penalty, as that of a probe of all patches: scikit-learn's C, which weighs
            the sum over patches, so that few patches are trusted less.
        draws: Number of draws of each size.
        seed: Seed of the draws.

    Returns:
        A row for each size, `shots`: mean, and the 2.5th and 97.5th percentile over draws, of AUROC and balanced
        accuracy.
    """
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(train.labels == label) for label in (0, 1)]
    rows = []
    for shots in (size for size in SHOTS if size <= min(map(len, of_class))):
        found = []
        for _ in range(draws):
            chosen = np.sort(np.concatenate([rng.choice(rows_of, shots, replace=False) for rows_of in of_class]))
            regression = LogisticRegression(train.matrix[chosen], train.labels[chosen])
            weight, bias, _ = regression.fit(strength)
            logits = apply_linear(measured.matrix, weight, bias)
            found.append(measure_logits(measured.labels, logits))
        row: dict[str, float] = {"shots": shots, "draws": draws}
        for metric in SHOT_METRICS:
            values = [measurement[metric] for measurement in found]
            low, high = np.quantile(values, INTERVAL_QUANTILES)
            row |= {metric: float(np.mean(values)), f"{metric}_low": float(low), f"{metric}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def few_shot_figure(tables: Sequence[tuple[str, pd.DataFrame]], split: str) -> Figure:
    """Draw AUROC over the number of patches of each class.

    Args:
        tables: The name of each network, and its table.
        split: The split that was measured.

    Returns:
        The means over draws, with bands from the 2.5th to the 97.5th percentile of draws.
    """
    figure = Figure(figsize=(6.2, 4.6), layout="constrained")
    axes = figure.subplots()
    marks = "osD^vPX*"
    for number, (name, table) in enumerate(tables):
        (line,) = axes.plot(table["shots"], table["auroc"], marker=marks[number % len(marks)], markersize=4, label=name)
        axes.fill_between(
            table["shots"], table["auroc_low"], table["auroc_high"], color=line.get_color(), alpha=0.15, linewidth=0
        )
    axes.set_xscale("log")
    axes.set(xlabel="training patches of each class", ylabel=f"AUROC on {split}")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def write_few_shot(table: pd.DataFrame, name: str, split: str, folder: Path) -> None:
    """Write `few_shot.csv` and `few_shot.png`.

    Args:
        table: The table.
        name: The name of the network, for the figure.
        split: The split that was measured.
        folder: Where to.
    """
    with atomic_path(folder / "few_shot.csv") as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(folder / "few_shot.png") as temporary:
        few_shot_figure([(name, table)], split).savefig(temporary, format="png", dpi=150)


def write_neighbours(logits: NDArray[np.float64], labels: NDArray[np.uint8], neighbours: int, folder: Path) -> None:
    """Write `neighbours.json`: what nearest neighbours reach.

    Args:
        logits: The logit of each patch.
        labels: Its label.
        neighbours: How many voted.
        folder: Where to.
    """
    with atomic_path(folder / "neighbours.json") as temporary:
        contents = {"neighbours": neighbours, "patches": len(labels), **measure_logits(labels, logits)}
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
