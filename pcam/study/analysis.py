"""The numbers of a study's report, from the files of its runs alone.

Everything here is a value or a table of values; what they mean is put into words by `pcam.study.report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from pcam.errors import UserError
from pcam.evaluation.metrics import Cuts, cross_entropy
from pcam.evaluation.seeds import Inference, compare_arms, holm, infer_arm
from pcam.evaluation.statistics import LEVEL, delong_covariance, mean_covariance, resample_units
from pcam.study.plan import Metric, Plan, Question, Run
from pcam.study.readings import MAIN_READING, PUBLISHED_READING, Reading
from pcam.study.results import METRICS, RunResult
from pcam.study.runner import StudyFolder

SIGNIFICANCE: Final = 1 - LEVEL
"""The level below which a p-value counts: 5 %."""

LAG_METRICS: Final[Sequence[Metric]] = ("loss", "accuracy", "auroc")

Results = Mapping[str, Mapping[int, RunResult]]
"""The runs that are done, by arm and seed; an arm of which none is done is not in it."""

LabelVector = Float64[np.ndarray, " patches"]
LogitRows = Float64[np.ndarray, "networks patches"]
Estimates = tuple[Float64[np.ndarray, " networks"], Float64[np.ndarray, "networks networks"]]
"""A metric of several networks on the same patches, and its covariance over patches."""

Estimator = Callable[[LabelVector, LogitRows, Sequence[str]], Estimates]
"""Computes `Estimates` from labels, the logits of each network, and the independent unit of each patch."""


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
        runs: The runs of an arm, in the order of their seeds.
        reading: The reading that they are compared in.
    """

    runs: Sequence[RunResult]
    reading: Reading


@dataclass(frozen=True)
class Answer:
    """What the runs say about a question.

    Args:
        question: The question.
        seeds: The seeds that are done of both arms.
        difference: The mean of the arm minus that of the other, in the question's metric; None if there is no such
            seed. Its standard error is NaN if all patches of a class are of one slide.
        p: The p-value of the question's test; 1 if the test could not be made.
        adjusted: The p-value after correction for the number of questions.
    """

    question: Question
    seeds: Sequence[int]
    difference: Inference | None
    p: float
    adjusted: float

    @property
    def shown(self) -> bool:
        """Whether the test says yes: the arms differ, or they are equal within the margin."""
        return self.adjusted < SIGNIFICANCE

    @property
    def refuted(self) -> bool:
        """Whether the arms differ by more than the margin of equivalence, by the interval of their difference."""
        if self.difference is None or self.question.margin is None:
            return False
        low, high = self.difference.interval()
        return low > self.question.margin or high < -self.question.margin


@dataclass(frozen=True)
class Lag:
    """What evaluation with the published study's batch-norm statistics does to an arm, the weights the same.

    Args:
        arm: The name of the arm.
        seeds: The number of its seeds.
        differences: The published reading minus the re-estimated one, in each of `LAG_METRICS`.
    """

    arm: str
    seeds: int
    differences: Mapping[Metric, Inference]


@dataclass(frozen=True)
class Missing:
    """Runs of an arm that are not done, for one reason.

    Args:
        arm: The name of the arm.
        seeds: The seeds of the runs.
        reason: Why training or measuring failed; None if it was not tried yet.
    """

    arm: str
    seeds: Sequence[int]
    reason: str | None


def collect_results(plan: Plan, folder: StudyFolder) -> Results:
    """Read the results of all runs that are done.

    Args:
        plan: The study.
        folder: The folder of the study.

    Returns:
        The results, in the order of the plan's arms.

    Raises:
        UserError: If no run is done, if one was trained with other options than its arm has, or if runs were trained
            or measured on different patches.
    """
    results: dict[str, dict[int, RunResult]] = {}
    for planned in plan.runs():
        if folder.results.is_done(planned):
            results.setdefault(planned.arm, {})[planned.seed] = folder.results.read(plan, planned)
    if not results:
        raise UserError(
            f"Expected the result of at least one run in {folder.results.path}, but found none; do the study's runs "
            f"before asking for the report alone."
        )
    ordered = {arm: results[arm] for arm in plan.arms if arm in results}
    runs = [run for seeds in ordered.values() for run in seeds.values()]
    fingerprints: dict[str, Callable[[RunResult], str]] = {
        "measured": lambda run: run.record["data_fingerprint"],
        "trained": lambda run: run.record["environment"]["data_fingerprints"]["train"],
    }
    for run in runs[1:]:
        for use, fingerprint in fingerprints.items():
            if fingerprint(run) != fingerprint(runs[0]):
                raise UserError(
                    f"Expected all runs of a study to be {use} on the same patches, but those of {run.folder} are not "
                    f"those of {runs[0].folder}; move one of them away."
                )
    return ordered


def find_missing(plan: Plan, folder: StudyFolder) -> list[Missing]:
    """List the runs that are not done, those of an arm with the same reason together."""
    seeds: dict[tuple[str, str | None], list[int]] = {}
    for run in (Run(arm, seed) for arm in plan.arms for seed in plan.seeds_of(arm)):
        if not folder.results.is_done(run):
            failure = folder.failure(run)
            reason = failure.read_text(encoding="utf-8").strip() if failure.exists() else None
            seeds.setdefault((run.arm, reason), []).append(run.seed)
    return [Missing(arm, numbers, reason) for (arm, reason), numbers in seeds.items()]


def arm_mean(runs: Sequence[RunResult], reading: Reading, metric: Metric = "auroc") -> Inference:
    """Estimate the mean of a metric of an arm over its seeds."""
    logits = np.stack([run.logits(reading) for run in runs])
    estimates = ESTIMATORS[metric](runs[0].labels, logits, runs[0].units)
    return infer_arm(*estimates, bounds=(0.0, inf if metric == "loss" else 1.0))


def answer_questions(plan: Plan, results: Results) -> list[Answer]:
    """Answer each question of a study, and correct the p-values for their number.

    Args:
        plan: The study.
        results: The runs that are done.

    Returns:
        The answers, in the order of the questions.
    """
    differences: list[tuple[list[int], Inference | None]] = []
    for question in plan.questions:
        seeds = sorted(results.get(question.arm, {}).keys() & results.get(question.other, {}).keys())
        difference = None
        if seeds:
            first, second = (
                Side([results[arm][seed] for seed in seeds], reading)
                for arm, reading in zip((question.arm, question.other), question.readings, strict=True)
            )
            difference = compare(first, second, question.metric)
        differences.append((seeds, difference))
    p_values = [
        _p_value(question, difference) for question, (_, difference) in zip(plan.questions, differences, strict=True)
    ]
    adjusted = holm(np.array(p_values)).tolist()
    rows = zip(plan.questions, differences, p_values, adjusted, strict=True)
    return [Answer(question, seeds, difference, p, holm_p) for question, (seeds, difference), p, holm_p in rows]


def _p_value(question: Question, difference: Inference | None) -> float:
    if difference is None or not isfinite(difference.standard_error):
        return 1.0
    return difference.p_difference() if question.margin is None else difference.p_equivalence(question.margin)


def compare(first: Side, second: Side, metric: Metric) -> Inference:
    """Estimate by how much two arms, or two readings of one arm, differ at the same seeds.

    Args:
        first: One side.
        second: The other.
        metric: What they are compared in.

    Returns:
        The mean of the first minus that of the second, with an error that counts patches and seeds.
    """
    logits = np.stack([run.logits(side.reading) for side in (first, second) for run in side.runs])
    merits, covariance = ESTIMATORS[metric](first.runs[0].labels, logits, first.runs[0].units)
    shape = (2, len(first.runs))
    bounds = (-inf, inf) if metric == "loss" else (-1.0, 1.0)
    return compare_arms(merits.reshape(shape), covariance.reshape(*shape, *shape), bounds)


def shown_readings(plan: Plan, run: RunResult) -> dict[Reading, str]:
    """Name the readings of a run that a page shows: the published study's only in a study that is about its lag.

    Args:
        plan: The study. It is about the lag if it repeats a publication, or asks of that reading.
        run: The run.

    Returns:
        The names, by reading.
    """
    return {name: words for name, words in run.reading_names.items() if name != PUBLISHED_READING or is_about_lag(plan)}


def is_about_lag(plan: Plan) -> bool:
    """Whether a study asks what lagging batch-norm statistics do, or repeats a publication that had them."""
    return bool(plan.published) or any(PUBLISHED_READING in question.readings for question in plan.questions)


def measure_lags(plan: Plan, results: Results) -> list[Lag]:
    """Measure what the published study's statistics do to each arm whose batch norm is read in several ways."""
    lags = []
    for arm, seeds in results.items():
        if plan.arms[arm].batch_norm_readings:
            runs = list(seeds.values())
            lagging, current = Side(runs, PUBLISHED_READING), Side(runs, MAIN_READING)
            lags.append(Lag(arm, len(runs), {metric: compare(lagging, current, metric) for metric in LAG_METRICS}))
    return lags


def estimate_losses(labels: LabelVector, logits: LogitRows, units: Sequence[str]) -> Estimates:
    """Estimate the mean loss of each network, in nats."""
    return mean_covariance(np.stack([cross_entropy(labels, row) for row in logits]), units)


def estimate_accuracies(labels: LabelVector, logits: LogitRows, units: Sequence[str]) -> Estimates:
    """Estimate the accuracy of each network at a score of 0.5."""
    return mean_covariance(((logits > 0) == labels).astype(np.float64), units)


def estimate_balanced_accuracies(labels: LabelVector, logits: LogitRows, units: Sequence[str]) -> Estimates:
    """Estimate the mean of sensitivity and specificity of each network, at a score of 0.5.

    It is no mean over patches, as each class is divided by its own number of patches. Its covariance is that of the
    mean over patches that it is close to (the delta method).

    Source: Cochran 1977, "Sampling techniques", section 2.11, for the variance of a ratio.
    """
    correct = ((logits > 0) == labels).astype(np.float64)
    values = np.zeros_like(correct)
    rates = []
    for label in (0, 1):
        of_class = labels == label
        rates.append(correct[:, of_class].mean(axis=1, keepdims=True))
        values[:, of_class] = (correct[:, of_class] - rates[-1]) / (2 * of_class.mean())
    return mean_covariance(values + sum(rates) / 2, units)


def estimate_average_precisions(labels: LabelVector, logits: LogitRows, units: Sequence[str]) -> Estimates:
    """Estimate the average precision of each network.

    It is no mean over patches or pairs of patches, so its covariance is that of 2,000 resamples of whole units.

    Source: Obuchowski and Rockette 1995, whose analysis takes any estimate of the covariance; Efron and Tibshirani
    1993, "An introduction to the bootstrap", chapter 8, for the resampling of whole units.
    """
    whole = np.ones((1, len(labels)))
    values = np.array([Cuts.count(labels, row, whole).average_precision()[0] for row in logits])
    resampled = np.concatenate(
        [
            np.stack([Cuts.count(labels, row, weights).average_precision() for row in logits], axis=1)
            for weights in resample_units(units)
        ]
    )
    resampled = resampled[~np.isnan(resampled).any(axis=1)]  # resamples of a single class
    return values, np.cov(resampled, rowvar=False).reshape(len(values), len(values))


ESTIMATORS: Final[Mapping[Metric, Estimator]] = {
    "auroc": delong_covariance,
    "average_precision": estimate_average_precisions,
    "accuracy": estimate_accuracies,
    "balanced_accuracy": estimate_balanced_accuracies,
    "loss": estimate_losses,
}


def number_tables(
    plan: Plan, results: Results, answers: Sequence[Answer], lags: Sequence[Lag]
) -> dict[str, pd.DataFrame]:
    """Put every number of a report into tables, at full precision.

    Args:
        plan: The study.
        results: The runs that are done.
        answers: The answers to its questions.
        lags: What lagging statistics do.

    Returns:
        The tables `runs`, `arms`, `questions`, `lag` and `curves`, without those that would be empty.
    """
    runs = [
        {"arm": arm, "seed": seed, "reading": reading, "step": run.record["step"], "seconds": run.record["seconds"]}
        | run.metrics(reading)
        | {f"published_selection_{name}": value for name, value in run.published_selection(reading).items()}
        for arm, seeds in results.items()
        for seed, run in seeds.items()
        for reading in run.reading_names
    ]
    arms = [
        _arm_row(arm, list(seeds.values()), reading)
        for arm, seeds in results.items()
        for reading in next(iter(seeds.values())).record["readings"]
    ]
    questions = [
        asdict(answer.question)
        | {"seeds": len(answer.seeds), "p": answer.p, "p_holm": answer.adjusted, "shown": answer.shown}
        | (_inference_row(answer.difference) if answer.difference is not None else {})
        for answer in answers
    ]
    lag_rows = [
        {"arm": lag.arm, "metric": metric, "seeds": lag.seeds} | _inference_row(difference)
        for lag in lags
        for metric, difference in lag.differences.items()
    ]
    curves = [
        run.curves.assign(arm=arm, seed=seed)[["arm", "seed", *run.curves.columns]]
        for arm, seeds in results.items()
        for seed, run in seeds.items()
    ]
    rows: dict[str, list[dict[str, Any]]] = {"runs": runs, "arms": arms, "questions": questions, "lag": lag_rows}
    return {name: pd.DataFrame(table) for name, table in rows.items() if table} | {"curves": pd.concat(curves)}


def _arm_row(arm: str, runs: Sequence[RunResult], reading: Reading) -> dict[str, Any]:
    low, high = arm_mean(runs, reading).interval()
    row: dict[str, Any] = {
        "arm": arm, "reading": reading, "seeds": len(runs), "auroc_low": low, "auroc_high": high,
    }  # fmt: skip
    for metric in METRICS:
        values = [run.metrics(reading)[metric] for run in runs]
        row |= {f"{metric}_mean": np.mean(values), f"{metric}_sd": deviation(values)}
    return row


def _inference_row(difference: Inference) -> dict[str, float]:
    low, high = difference.interval()
    return {
        "estimate": difference.estimate,
        "standard_error": difference.standard_error,
        "degrees_of_freedom": difference.degrees_of_freedom,
        "low": low,
        "high": high,
        "detectable": difference.detectable(),
    }


def deviation(values: Sequence[float]) -> float:
    """Compute the standard deviation of a sample; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
