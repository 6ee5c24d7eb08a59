"""What evaluating leaves behind: JSON, CSV, figures, TensorBoard events, and tables on the screen."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.special import expit
from torch.utils.tensorboard import SummaryWriter

from pcam.atomic import atomic_path
from pcam.data.packed import PackedSplit
from pcam.evaluation.figures import (
    POINT_NAMES,
    confusion_figure,
    interval_words,
    patch_grid,
    precision_recall_figure,
    reliability_figure,
    roc_comparison_figure,
    roc_figure,
    score_histogram_figure,
)
from pcam.evaluation.metrics import CALIBRATION_BINS, Calibration, Choices, Estimate, Measurement
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.seeds import Inference, infer_arm
from pcam.evaluation.statistics import RESAMPLES, SEED, delong_covariance, delong_test, interval
from pcam.options import CheckpointName, SplitName
from pcam.run_folder import RunFolder, are_seeds

WORST_PATCHES: Final = 16
"""Patches of each class in the figure of the worst mistakes."""

CALIBRATION_WORDS: Final = {
    "loss": "NLL in nats",
    "brier_score": "Brier score",
    "expected_calibration_error": f"error, {CALIBRATION_BINS} bins",
    "expected_calibration_error_if_perfect": "error if perfect",
    "expected_calibration_error_if_perfect_95": "in 95 % below",
    "calibration_slope": "slope",
}
"""What the table calls the calibration's numbers."""


@dataclass(frozen=True)
class System:
    """What is measured: a run's classifier, a variant of it, or an ensemble.

    Args:
        name: For tables and figures.
        run: The run folder that the results are written to.
        variant: What the results' folder has after the split's name: "", "_ensemble", "_bn", "_tta" or some of them.
        step: Optimizer steps behind the weights; 0 for an ensemble.
        data_root: Folder with the patches.
        stores: The packed splits.
        predictions: Of each split.
    """

    name: str
    run: RunFolder
    variant: str
    step: int
    data_root: Path
    stores: Mapping[SplitName, PackedSplit]
    predictions: Mapping[SplitName, Predictions]

    def output(self, split: SplitName) -> Path:
        """The folder for the results on a split."""
        return self.run.evaluation(split).with_name(split + self.variant)


def write_results(
    system: System, split: SplitName, checkpoint: CheckpointName, choices: Choices, measurement: Measurement
) -> None:
    """Write all results of one system on one split."""
    output, predictions, store = system.output(split), system.predictions[split], system.stores[split]
    (output / "metrics.json").unlink(missing_ok=True)
    predictions.write(output / "predictions.csv")
    scores, labels = predictions.tensors()
    worst = _worst(predictions)
    calibrations = {"as trained": measurement.calibration}
    if measurement.rescaled is not None:
        calibrations[f"temperature {choices.temperature:.2f}"] = measurement.rescaled
    figures = {
        "roc": roc_figure(scores, labels, measurement),
        "precision_recall": precision_recall_figure(scores, labels),
        "reliability": reliability_figure(calibrations),
        "score_histogram": score_histogram_figure(predictions, choices),
        "confusion": confusion_figure(measurement.confusion),
        "worst_patches": patch_grid(store[worst].patches, scores[worst], labels[worst]),
    }
    record = {
        "split": split,
        "classifier": system.name,
        "checkpoint": checkpoint,
        "step": system.step,
        "patches": len(predictions.ids),
        "positives": int(predictions.labels.sum()),
        "data_root": str(system.data_root),
        "data_fingerprint": store.fingerprint,
        **_estimates(measurement.metrics),
        "operating_points": {
            name: {
                "threshold": float(expit(choices.thresholds[name])),
                "confusion_matrix": measurement.confusion[name].astype(int).tolist(),
                **_estimates(point),
            }
            for name, point in measurement.operating_points.items()
        },
        "calibration": {
            "bins": CALIBRATION_BINS,
            "temperature": _defined(choices.temperature),
            "before": _calibration(measurement.calibration),
            "after": None if measurement.rescaled is None else _calibration(measurement.rescaled),
        },
        "bootstrap": {
            "resamples": RESAMPLES,
            "seed": SEED,
            "of": "groups of identical patches" if predictions.slides is None else "slides",
            "units": len(set(predictions.units)),
            "level": 0.95,
        },
    }
    scalars = {name: estimate.value for name, estimate in measurement.metrics.items()}
    scalars |= dict(zip(["auroc_low", "auroc_high"], measurement.metrics["auroc"].interval, strict=True))
    for point, decisions in measurement.operating_points.items():
        scalars |= {f"{point}/{name}": estimate.value for name, estimate in decisions.items()}
    if measurement.rescaled is not None:
        after = measurement.rescaled
        scalars |= {"temperature": choices.temperature}
        scalars |= {"calibrated/loss": after.loss, "calibrated/expected_calibration_error": after.error}
    _write_figures(output, f"evaluation/{split}", figures, scalars, system.step)
    # Last: its presence says that all the rest is there.
    with atomic_path(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _worst(predictions: Predictions) -> NDArray[np.int64]:
    """Rows of the highest scores of label 0, then of the lowest of label 1; one of each group of identical patches."""
    _, unique = np.unique(np.asarray(predictions.groups), return_index=True)
    rows = []
    for label, sign in ((0, -1), (1, 1)):
        of_label = unique[predictions.labels[unique] == label]
        rows.append(of_label[np.argsort(sign * predictions.scores[of_label], kind="stable")][:WORST_PATCHES])
    return np.concatenate(rows)


def _write_figures(
    output: Path, tag: str, figures: Mapping[str, Figure], scalars: Mapping[str, float], step: int
) -> None:
    """Write figures as PNG, and figures and scalars for TensorBoard, which shows the folder as a run of its own."""
    for stale in output.glob("events.out.tfevents.*"):
        stale.unlink()
    with SummaryWriter(output) as writer:
        for name, figure in figures.items():
            with atomic_path(output / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=150)
                pixels = np.asarray(Image.open(temporary).convert("RGB"))
            writer.add_image(f"{tag}/{name}", pixels, step, dataformats="HWC")  # drawing anew takes longer
        for name, value in scalars.items():
            if not math.isnan(value):
                writer.add_scalar(f"{tag}/{name}", value, step)


def _defined(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "metrics": {name: _defined(estimate.value) for name, estimate in estimates.items()},
        "intervals": {
            name: None if math.isnan(estimate.interval[0]) else list(estimate.interval)
            for name, estimate in estimates.items()
        },
    }


def _calibration(calibration: Calibration) -> dict[str, float | None]:
    return {
        "loss": calibration.loss,
        "brier_score": calibration.brier_score,
        "expected_calibration_error": calibration.error,
        "expected_calibration_error_if_perfect": calibration.chance_error,
        "expected_calibration_error_if_perfect_95": calibration.chance_error_limit,
        "calibration_slope": _defined(calibration.slope),
    }


def _words(estimate: Estimate, labels: NDArray[np.uint8]) -> str:
    if math.isnan(estimate.value):
        return "undefined" + (": only one class" if len(set(labels.tolist())) == 1 else "")
    unsure = math.isnan(estimate.interval[0])
    return f"{estimate.value:.4f}" + ("" if unsure else f" ({interval_words(estimate.interval)})")


def print_details(system: System, choices: Choices, measurements: Mapping[SplitName, Measurement]) -> None:
    """Print all numbers of one system, on valid and on the split that was asked for."""
    columns = [f"{split}, {len(system.predictions[split].ids):,} patches" for split in measurements]
    labels = [system.predictions[split].labels for split in measurements]
    console = Console()
    drawn = "patches" if system.predictions["valid"].slides is None else "slides"
    table = Table("metric", title=f"{system.name} (step {system.step:,}), 95 % intervals for other {drawn}")
    for column in columns:
        table.add_column(column, justify="right")
    for name in next(iter(measurements.values())).metrics:
        cells = [measurement.metrics[name] for measurement in measurements.values()]
        table.add_row(
            name.removeprefix("expected_"), *(_words(cell, truth) for cell, truth in zip(cells, labels, strict=True))
        )
    console.print(table)
    for column, measurement in zip(columns, measurements.values(), strict=True):
        table = Table("threshold", title=f"Thresholds chosen on valid: {column}")
        for heading in ("score >", "sensitivity", "specificity", "accuracy", "f1"):
            table.add_column(heading, justify="right")
        for point, decisions in measurement.operating_points.items():
            numbers = [expit(choices.thresholds[point])]
            numbers += [decisions[name].value for name in ("sensitivity", "specificity", "accuracy", "f1")]
            table.add_row(POINT_NAMES[point].removesuffix(" on valid"), *(f"{number:.4f}" for number in numbers))
        console.print(table)
    temperature = "undefined" if math.isnan(choices.temperature) else f"{choices.temperature:.3f}"
    table = Table("calibration", title=f"Before and after temperature scaling, fitted on valid: {temperature}")
    for split in measurements:
        table.add_column(f"{split} before", justify="right")
        table.add_column(f"{split} after", justify="right")
    pairs = [
        _calibration(calibration) if calibration else {}
        for measurement in measurements.values()
        for calibration in (measurement.calibration, measurement.rescaled)
    ]
    for name in pairs[0]:
        numbers = [values.get(name) for values in pairs]
        table.add_row(
            CALIBRATION_WORDS[name], *("undefined" if number is None else f"{number:.4f}" for number in numbers)
        )
    console.print(table)


def mean_over_seeds(
    results: Sequence[tuple[System, Measurement]], split: SplitName
) -> tuple[list[str], Inference, dict[str, float]] | None:
    """Average systems that are seeds of one experiment, evaluated in the same way.

    Args:
        results: All systems that were measured.
        split: What they were measured on.

    Returns:
        The names of the seeds, which are all systems but ensembles; their mean AUROC, its interval for other patches
        and other seeds; and the means of accuracy and loss. None if the systems are something else, or the split has
        one class.
    """
    seeds = [(system, measurement) for system, measurement in results if "_ensemble" not in system.variant]
    predictions = [system.predictions[split] for system, _ in seeds]
    labels = predictions[0].labels.astype(np.float64)
    if not are_seeds([system.run for system, _ in seeds]) or not 0 < labels.sum() < len(labels):
        return None
    logits = np.stack([predicted.logits.astype(np.float64) for predicted in predictions])
    means = {
        name: float(np.mean([measurement.metrics[name].value for _, measurement in seeds]))
        for name in ("accuracy", "loss")
    }
    return (
        [system.name for system, _ in seeds],
        infer_arm(*delong_covariance(labels, logits, predictions[0].units)),
        means,
    )


def compare(results: Sequence[tuple[System, Measurement]], split: SplitName, output: Path) -> None:
    """Write and print how systems differ on the same patches, and the mean of those that are seeds."""
    labels, units = results[0][0].predictions[split].labels, results[0][0].predictions[split].units
    pairs = []
    for (first, one), (second, other) in itertools.combinations(results, 2):
        logits = [system.predictions[split].logits.astype(np.float64) for system in (first, second)]
        test = delong_test(labels.astype(np.float64), logits[0], logits[1], units)
        low, high = interval(one.resampled_auroc - other.resampled_auroc)
        pairs.append((first.name, second.name, test, Estimate(test.difference, (low, high))))
    mean = mean_over_seeds(results, split)
    named = {system.name: (system.predictions[split], measurement) for system, measurement in results}
    if 0 < labels.sum() < len(labels):
        _write_figures(output, f"evaluation/{split}", {"roc_comparison": roc_comparison_figure(named)}, {}, 0)
    record = {
        "split": split,
        "patches": len(labels),
        "data_fingerprint": results[0][0].stores[split].fingerprint,
        "classifiers": {
            system.name: {"results": str(system.output(split)), **_estimates(measurement.metrics)}
            for system, measurement in results
        },
        "auroc_differences": [
            {
                "first": first,
                "second": second,
                "difference": _defined(difference.value),
                "interval": None if math.isnan(difference.interval[0]) else list(difference.interval),
                "delong_z": _defined(test.z),
                "delong_p": _defined(test.p),
            }
            for first, second, test, difference in pairs
        ],
        "mean_over_seeds": None
        if mean is None
        else {
            "seeds": mean[0],
            "auroc": mean[1].estimate,
            "interval": [_defined(end) for end in mean[1].interval()],
            **mean[2],
        },
    }
    with atomic_path(output / "comparison.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    metrics = {system.name: _estimates(measurement.metrics)["metrics"] for system, measurement in results}
    with atomic_path(output / "comparison.csv") as temporary:
        pd.DataFrame.from_dict(metrics, orient="index").to_csv(temporary, index_label="classifier")
    console = Console()
    table = Table("", "classifier", title=f"{split}, {len(labels):,} patches, 95 % intervals")
    for name in ("auroc", "accuracy", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (system, measurement) in enumerate(results, 1):
        decisions = [f"{measurement.metrics[name].value:.4f}" for name in ("accuracy", "loss")]
        table.add_row(str(number), system.name, _words(measurement.metrics["auroc"], labels), *decisions)
    if mean is not None:
        names, auroc, others = mean
        words = f"{auroc.estimate:.4f} ({interval_words(auroc.interval())})"
        label = f"mean of {len(names)} seeds; the interval is for other patches and other seeds"
        table.add_row("", label, words, *(f"{value:.4f}" for value in others.values()))
    console.print(table)
    table = Table("pair", title="Differences in AUROC; DeLong's p is not corrected for the number of pairs")
    table.add_column("first - second", justify="right", no_wrap=True)
    table.add_column("p", justify="right")
    numbers = itertools.combinations(range(1, len(results) + 1), 2)
    for (left, right), (_, _, test, difference) in zip(numbers, pairs, strict=True):
        p = "undefined" if math.isnan(test.p) else f"{test.p:.2g}"
        table.add_row(f"{left} - {right}", _words(difference, labels), p)
    console.print(table)
    print(f"Comparison: {output}")
