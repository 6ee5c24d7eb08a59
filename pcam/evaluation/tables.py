"""The tables that evaluating and explaining print."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.special import expit

from pcam.evaluation.calibration import CALIBRATION_BINS
from pcam.evaluation.comparison import Comparison, MeanOverSeeds, System
from pcam.evaluation.explain import CHANCE, CentreShare
from pcam.evaluation.figures import POINT_NAMES, interval_words
from pcam.evaluation.measurement import Choices, Estimate, Measurement
from pcam.evaluation.origins import MIN_PATCHES, OriginResult, Spread
from pcam.evaluation.results import calibration_numbers
from pcam.options import Origin, SplitName
from pcam.patches import CLASS_NAMES
from pcam.terminal import printable

CALIBRATION_WORDS: Final = {
    "loss": "NLL in nats",
    "brier_score": "Brier score",
    "expected_calibration_error": f"error, {CALIBRATION_BINS} bins",
    "expected_calibration_error_if_perfect": "error if perfect",
    "expected_calibration_error_if_perfect_95": "in 95 % below",
    "calibration_slope": "slope",
}
"""The names of the calibration's numbers in the table."""


def print_details(system: System, choices: Choices, measurements: Mapping[SplitName, Measurement]) -> None:
    """Print all metrics of one system.

    Args:
        system: The system.
        choices: The temperature and the thresholds.
        measurements: The metrics on the valid split, and on the split that was asked for.
    """
    columns = [f"{split}, {len(system.predictions[split].ids):,} patches" for split in measurements]
    labels = [system.predictions[split].labels for split in measurements]
    console = Console()
    drawn = "patches" if system.predictions["valid"].slides is None else "slides"
    table = Table("metric", title=f"{escape(system.name)} (step {system.step:,}), 95 % intervals for other {drawn}")
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
        calibration_numbers(calibration) if calibration else {}
        for measurement in measurements.values()
        for calibration in (measurement.calibration, measurement.rescaled)
    ]
    for name in pairs[0]:
        found = [values.get(name) for values in pairs]
        table.add_row(CALIBRATION_WORDS[name], *("undefined" if value is None else f"{value:.4f}" for value in found))
    console.print(table)


WORST_ROWS: Final = 8
"""How many slides, patients or hospitals a table shows: those with the lowest accuracy."""


def print_origins(origins: Mapping[Origin, Sequence[OriginResult]]) -> None:
    """Print how well a classifier does on slides, patients and hospitals, as far as they are known.

    Args:
        origins: The results on one split.
    """
    console = Console()
    for origin, results in origins.items():
        spreads = {metric: Spread.of(results, metric) for metric in ("auroc", "accuracy")}
        said = [
            f"{metric}: worst {getattr(spread.worst, metric).value:.4f} ({escape(printable(spread.worst.name))})"
            + ("" if math.isnan(spread.deviation) else f", standard deviation {spread.deviation:.4f}")
            for metric, spread in spreads.items()
            if spread.worst is not None
        ]
        table = Table(
            title=f"By {origin}: the {min(WORST_ROWS, len(results))} of {len(results):,} with the lowest accuracy at "
            f"the threshold of valid;\naccuracy at a score of 0.5; mean score and calibration error",
            caption="\n".join([*said, f"of those with {MIN_PATCHES} patches or more"]) if said else None,
        )
        table.add_column(origin, overflow="fold")
        for heading in ("patches", "tumour", "auroc", "accuracy", "at 0.5", "score", "error"):
            table.add_column(heading, justify="right")
        for result in sorted(results, key=lambda result: result.accuracy.value)[:WORST_ROWS]:
            one_class = np.array([round(result.tumour)], dtype=np.uint8)
            table.add_row(
                escape(printable(result.name)),
                f"{result.patches:,}",
                f"{result.tumour:.1%}",
                _words(result.auroc, one_class),
                _words(result.accuracy, one_class),
                f"{result.accuracy_at_half:.4f}",
                f"{result.mean_score:.3f}",
                f"{result.calibration_error:.3f}",
            )
        console.print(table)


def print_comparison(
    split: SplitName,
    results: Sequence[tuple[System, Measurement]],
    pairs: Sequence[tuple[str, str, Comparison]],
    mean: MeanOverSeeds | None,
) -> None:
    """Print how several systems compare on the same patches.

    Args:
        split: The split that they were measured on.
        results: The systems, with their metrics.
        pairs: The names of each pair of systems, and their comparison.
        mean: The mean of those that are seeds; None if they are not.
    """
    labels = results[0][0].predictions[split].labels
    console = Console()
    table = Table("", "classifier", title=f"{split}, {len(labels):,} patches, 95 % intervals")
    shown = ("accuracy", "loss")
    for name in ("auroc", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (system, measurement) in enumerate(results, 1):
        decisions = [f"{measurement.metrics[name].value:.4f}" for name in shown]
        table.add_row(str(number), escape(system.name), _words(measurement.metrics["auroc"], labels), *decisions)
    if mean is not None:
        words = f"{mean.auroc.estimate:.4f} ({interval_words(mean.auroc.interval())})"
        label = f"mean of {len(mean.names)} seeds; the interval is for other patches and other seeds"
        table.add_row("", label, words, *(f"{mean.metrics[name]:.4f}" for name in shown))
    console.print(table)
    if mean is not None:
        table = Table("", "mean", title=f"{len(mean.names)} seeds: mean ± standard deviation; of AUROC the interval")
        table.add_row("auroc", words)
        for name, value in mean.metrics.items():
            table.add_row(name.replace("_", " "), f"{value:.4f} ± {mean.deviations[name]:.4f}")
        console.print(table)
    table = Table("pair", title="Differences in AUROC; DeLong's p is not corrected for the number of pairs")
    table.add_column("first - second", justify="right", no_wrap=True)
    table.add_column("p", justify="right")
    numbers = itertools.combinations(range(1, len(results) + 1), 2)
    for (left, right), (_, _, pair) in zip(numbers, pairs, strict=True):
        p = "undefined" if math.isnan(pair.p) else f"{pair.p:.2g}"
        table.add_row(f"{left} - {right}", _words(pair.difference, labels), p)
    console.print(table)


def print_centre_shares(runs: Mapping[str, Mapping[str, CentreShare]], split: SplitName) -> None:
    """Print how much of the attribution of each run lies in the centre of the patches.

    Args:
        runs: The centre share of each class, by the name of the run.
        split: The split that it was computed over.
    """
    table = Table(
        title=f"Mean share of HiResCAM in the centre, {split}, 95 % intervals; chance is {CHANCE:.4f}",
        caption="none: patches without evidence anywhere, which have no share",
    )
    table.add_column("run", overflow="fold")
    for name in CLASS_NAMES:
        table.add_column(name, justify="right", no_wrap=True)
    for run, shares in runs.items():
        table.add_row(escape(run), *(_share_words(share) for share in shares.values()))
    Console().print(table)


def _words(estimate: Estimate, labels: NDArray[np.uint8]) -> str:
    if math.isnan(estimate.value):
        return "undefined" + (": only one class" if len(set(labels.tolist())) == 1 else "")
    unsure = math.isnan(estimate.interval[0])
    return f"{estimate.value:.4f}" + ("" if unsure else f" ({interval_words(estimate.interval)})")


def _share_words(share: CentreShare) -> str:
    none = f"none: {share.without_evidence:,} of {share.patches:,}"
    if math.isnan(share.mean):
        return f"undefined\n{none}"
    return f"{share.mean:.4f}\n{interval_words(share.interval)}\n{none}"
