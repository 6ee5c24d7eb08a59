"""The files that evaluating writes: metrics, predictions, figures and TensorBoard events."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from torch.utils.tensorboard import SummaryWriter

from pcam.atomic import atomic_path
from pcam.evaluation.calibration import CALIBRATION_BINS, Calibration
from pcam.evaluation.comparison import Comparison, MeanOverSeeds, System
from pcam.evaluation.figures import (
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
    roc_comparison_figure,
    roc_figure,
    score_histogram_figure,
)
from pcam.evaluation.measurement import Choices, Estimate, Measurement
from pcam.evaluation.origins import OriginResult, measure_origins, origin_figure, spread_record, write_origins
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.sheets import patch_grid
from pcam.evaluation.statistics import LEVEL, RESAMPLES, SEED, Interval
from pcam.options import CheckpointName, Origin, SplitName

WORST_PATCHES: Final = 16
"""The number of patches of each class in the figure of the worst mistakes."""


def write_results(
    system: System, split: SplitName, checkpoint: CheckpointName, choices: Choices, measurement: Measurement
) -> dict[Origin, list[OriginResult]]:
    """Write all results of one system on one split to its folder.

    Args:
        system: The system.
        split: The split.
        checkpoint: The checkpoint that the weights are from.
        choices: The temperature and the thresholds.
        measurement: The metrics of the system on the split.

    Returns:
        How well the system does on each slide, patient and hospital, as far as the data tell them.
    """
    output, predictions, store = system.output(split), system.predictions[split], system.stores[split]
    (output / "metrics.json").unlink(missing_ok=True)
    predictions.write(output / "predictions.csv")
    origins = measure_origins(predictions, choices)
    write_origins(origins, output)
    scalars = {name: estimate.value for name, estimate in measurement.metrics.items()}
    scalars |= dict(zip(["auroc_low", "auroc_high"], measurement.metrics["auroc"].interval, strict=True))
    for point, decisions in measurement.operating_points.items():
        scalars |= {f"{point}/{name}": estimate.value for name, estimate in decisions.items()}
    if measurement.rescaled is not None:
        after = measurement.rescaled
        scalars |= {"temperature": choices.temperature}
        scalars |= {"calibrated/loss": after.loss, "calibrated/expected_calibration_error": after.error}
    figures = _figures(system, split, choices, measurement)
    figures |= {f"by_{origin}": origin_figure(results, origin) for origin, results in origins.items()}
    _write_figures(output, f"evaluation/{split}", figures, scalars, system.step)
    record = {
        "split": split,
        "classifier": system.name,
        "checkpoint": checkpoint,
        "step": system.step,
        "engine": system.engine,
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
        "origins": {origin: spread_record(results) for origin, results in origins.items()},
        "calibration": {
            "bins": CALIBRATION_BINS,
            "temperature": _number_or_none(choices.temperature),
            "before": calibration_numbers(measurement.calibration),
            "after": None if measurement.rescaled is None else calibration_numbers(measurement.rescaled),
        },
        "bootstrap": {
            "resamples": RESAMPLES,
            "seed": SEED,
            "of": "groups of identical patches" if predictions.slides is None else "slides",
            "units": len(set(predictions.units)),
            "level": LEVEL,
        },
    }
    # Written last: the presence of this file says that all the others are there.
    with atomic_path(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return origins


def write_comparison(
    output: Path,
    split: SplitName,
    results: Sequence[tuple[System, Measurement]],
    pairs: Sequence[tuple[str, str, Comparison]],
    mean: MeanOverSeeds | None,
) -> None:
    """Write how several systems compare on the same patches.

    Args:
        output: The folder.
        split: The split that they were measured on.
        results: The systems, with their metrics.
        pairs: The names of each pair of systems, and their comparison.
        mean: The mean of those that are seeds; None if they are not.
    """
    labels = results[0][0].predictions[split].labels
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
                "difference": _number_or_none(pair.difference.value),
                "interval": _interval_or_none(pair.difference.interval),
                "delong_z": _number_or_none(pair.z),
                "delong_p": _number_or_none(pair.p),
            }
            for first, second, pair in pairs
        ],
        "mean_over_seeds": None
        if mean is None
        else {
            "seeds": mean.names,
            "auroc": mean.auroc.estimate,
            "interval": [_number_or_none(end) for end in mean.auroc.interval()],
            **mean.metrics,
            "standard_deviations": {name: _number_or_none(value) for name, value in mean.deviations.items()},
        },
    }
    with atomic_path(output / "comparison.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    metrics = {system.name: _estimates(measurement.metrics)["metrics"] for system, measurement in results}
    with atomic_path(output / "comparison.csv") as temporary:
        pd.DataFrame.from_dict(metrics, orient="index").to_csv(temporary, index_label="classifier")


def calibration_numbers(calibration: Calibration) -> dict[str, float | None]:
    """List the numbers of a calibration under the names that they have in `metrics.json`; None is undefined."""
    return {
        "loss": calibration.loss,
        "brier_score": calibration.brier_score,
        "expected_calibration_error": calibration.error,
        "expected_calibration_error_if_perfect": calibration.chance_error,
        "expected_calibration_error_if_perfect_95": calibration.chance_error_limit,
        "calibration_slope": _number_or_none(calibration.slope),
    }


def worst_patches(predictions: Predictions) -> NDArray[np.int64]:
    """Find the worst mistakes, one patch of each group of identical patches.

    Args:
        predictions: The predictions of a split.

    Returns:
        The rows of the normal patches with the highest scores, then of the tumour patches with the lowest.
    """
    _, unique = np.unique(np.asarray(predictions.groups), return_index=True)
    rows = []
    for label, sign in ((0, -1), (1, 1)):
        of_label = unique[predictions.labels[unique] == label]
        rows.append(of_label[np.argsort(sign * predictions.scores[of_label], kind="stable")][:WORST_PATCHES])
    return np.concatenate(rows)


def _figures(system: System, split: SplitName, choices: Choices, measurement: Measurement) -> dict[str, Figure]:
    predictions = system.predictions[split]
    scores, labels = predictions.tensors()
    calibrations = {"as trained": measurement.calibration}
    if measurement.rescaled is not None:
        calibrations[f"temperature {choices.temperature:.2f}"] = measurement.rescaled
    worst = worst_patches(predictions)
    return {
        "roc": roc_figure(scores, labels, measurement),
        "precision_recall": precision_recall_figure(scores, labels),
        "reliability": reliability_figure(calibrations),
        "score_histogram": score_histogram_figure(predictions, choices),
        "confusion": confusion_figure(measurement.confusion),
        "worst_patches": patch_grid(
            system.stores[split][worst].patches,
            scores[worst],
            labels[worst],
            ids=[predictions.ids[row] for row in worst],
            title=f"{system.name} on {split}: the normal patches with the highest scores, then the tumour patches with "
            f"the lowest.\nAbove each patch: the end of its id in predictions.csv, its label and its score (red if "
            f"wrong at a threshold of 0.5).",
        ),
    }


def _write_figures(
    output: Path, tag: str, figures: Mapping[str, Figure], scalars: Mapping[str, float], step: int
) -> None:
    """Write figures as PNG, and figures and scalars for TensorBoard, which shows the folder as a run of its own.

    Not those of the valid split as the run was trained: the run itself shows them at the step of the checkpoint, and
    TensorBoard's list of runs would be twice as long.
    """
    for stale in output.glob("events.out.tfevents.*"):
        stale.unlink(missing_ok=True)  # another evaluation may have done it
    for name, figure in figures.items():
        with atomic_path(output / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    if output.name == "valid":
        return
    with SummaryWriter(output) as writer:
        for name in figures:
            pixels = np.asarray(Image.open(output / f"{name}.png").convert("RGB"))
            writer.add_image(f"{tag}/{name}", pixels, step, dataformats="HWC")  # faster than drawing the figure again
        for name, value in scalars.items():
            if not math.isnan(value):
                writer.add_scalar(f"{tag}/{name}", value, step)


def _number_or_none(value: float) -> float | None:
    """Replace NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _interval_or_none(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval[0]) else list(interval)


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "metrics": {name: _number_or_none(estimate.value) for name, estimate in estimates.items()},
        "intervals": {name: _interval_or_none(estimate.interval) for name, estimate in estimates.items()},
    }
