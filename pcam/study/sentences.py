"""The numbers of a report in the words of a person: the plain answer first, then the numbers, then how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Final

import numpy as np

from pcam.evaluation.seeds import Inference
from pcam.evaluation.statistics import LEVEL
from pcam.study.analysis import Answer, Lag, Missing, Results, deviation
from pcam.study.growth import Fit
from pcam.study.plan import METRIC_NAMES, Metric, Plan, Question
from pcam.study.readings import (
    MAIN_READING,
    PUBLISHED_READING,
    READING_MOMENTA,
    READING_NAMES,
    TRAINED_READING,
    share_of_start,
)
from pcam.study.results import METRICS
from pcam.terminal import joined

METRIC_MEANINGS: Final[Mapping[Metric, str]] = {
    "loss": "Loss is how far the scores are from the labels: ln 2 = .693 is that of a network that knows nothing, and "
    "lower is better.",
    "accuracy": "Accuracy is the share of patches that are classified correctly.",
    "balanced_accuracy": "Balanced accuracy is the mean of the shares of patches with and without tumour that are "
    "classified correctly.",
    "auroc": "AUROC is how often a patch with tumour scores higher than one without: 1 is perfect, .5 is guessing.",
    "average_precision": "Average precision is the share of tumour among the patches with the highest scores, averaged "
    "over all cuts.",
}
"""What the metrics say, for readers who do not know them."""

METRIC_UNITS: Final[Mapping[Metric, str]] = {metric: " nats" if metric == "loss" else "" for metric in METRIC_NAMES}

INNER_LEVEL: Final = 2 * LEVEL - 1
"""The level of the interval that lies within the margin exactly where a test of equivalence at 5 % says yes: 90 %."""


@dataclass(frozen=True)
class AnswerWords:
    """An answer in sentences.

    Args:
        plain: What a reader without statistics needs.
        numbers: The difference and its interval; empty if there is none.
        certainty: How sure it is: seeds, p-values, and what the study could have found; empty if there is no answer.
        verdict: "Yes." or "No."; empty if the runs do not show it.
    """

    plain: str
    numbers: str
    certainty: str
    verdict: str = ""


def answer_words(plan: Plan, answer: Answer) -> AnswerWords:
    """Say what the runs say about a question.

    Args:
        plan: The study.
        answer: The answer in numbers.

    Returns:
        The answer in sentences.
    """
    question, difference = answer.question, answer.difference
    one, other = side_names(plan, question)
    if difference is None:
        return AnswerWords(f'There is no answer yet: no seed of both "{one}" and "{other}" is done.', "", "")
    if not isfinite(difference.standard_error):
        plain = (
            f"There is no answer: all patches of a class are of one slide, so nothing shows by how much other slides "
            f"would change the difference of {signed(difference.estimate)}."
        )
        return AnswerWords(plain, "", "")
    plain = (_difference if question.margin is None else _equivalence)(plan, answer, difference)
    unit = METRIC_UNITS[question.metric]
    numbers = (
        f"Difference of {METRIC_NAMES[question.metric]}: {difference.estimate:+.4f}{unit}, 95 % interval "
        f"{interval_words(difference.interval())}"
    )
    if question.margin is not None:
        numbers += f", 90 % interval {interval_words(difference.interval(INNER_LEVEL))}"
    return AnswerWords(plain, f"{numbers}.", _certainty(plan, answer, difference), _verdict(answer, difference))


def _verdict(answer: Answer, difference: Inference) -> str:
    if not answer.shown:
        return "No." if answer.refuted else ""
    wrong_way = "lower" if difference.estimate > 0 else "higher"
    return "No." if answer.question.margin is None and answer.question.yes_if == wrong_way else "Yes."


def _difference(plan: Plan, answer: Answer, difference: Inference) -> str:
    question = answer.question
    metric, unit = _metric_phrase(question), METRIC_UNITS[question.metric]
    one, other = side_names(plan, question)
    if answer.shown:
        return f"{_effect(plan, question, difference)}."
    open_question = (
        f"whether {question.change} raised or lowered {metric}"
        if question.change
        else f'whether {metric} differs between "{one}" and "{other}"'
    )
    low, high = difference.interval()
    if low > 0 or high < 0:
        return (
            f"These runs do not show {open_question}: a difference as large as this one, "
            f"{signed(difference.estimate)}{unit}, comes about by chance too often when {len(plan.questions)} "
            f"questions are asked together."
        )
    return (
        f"These runs do not show {open_question}: the difference may be anything from {_signed_range(low, high)}{unit}."
    )


def _equivalence(plan: Plan, answer: Answer, difference: Inference) -> str:
    question = answer.question
    metric, margin, unit = _metric_phrase(question), _margin_words(question), METRIC_UNITS[question.metric]
    one, other = side_names(plan, question)
    inner = difference.interval(INNER_LEVEL)
    if answer.shown:
        numbers = f"{signed(difference.estimate)}{unit} (90 % interval {_signed_range(*inner)})"
        if question.change:
            change = question.change[0].upper() + question.change[1:]
            return f"{change} made no difference that matters: {metric} changed by {numbers}, less than {margin}."
        return f'"{one}" and "{other}" are equally good: {metric} differs by {numbers}, less than {margin}.'
    if answer.refuted:
        return f"{_effect(plan, question, difference)}, more than {margin}."
    assert question.margin is not None
    if -question.margin < inner[0] and inner[1] < question.margin:
        return (
            f"These runs do not show it surely enough. The difference (90 % interval {_signed_range(*inner)}{unit}) is "
            f"within {margin}, but when {len(plan.questions)} questions are asked together, one of them looks so by "
            f"chance too often."
        )
    open_question = (
        f"whether {question.change} changed {metric} by more than {margin}"
        if question.change
        else f'whether {metric} differs by more than {margin} between "{one}" and "{other}"'
    )
    low, high = difference.interval()
    return (
        f"These runs do not show {open_question}: the difference may be anything from {_signed_range(low, high)}{unit}."
    )


def _effect(plan: Plan, question: Question, difference: Inference) -> str:
    """Say by how much a metric is higher or lower, without the full stop."""
    higher = difference.estimate > 0
    low, high = difference.interval() if higher else tuple(-end for end in reversed(difference.interval()))
    by = f"{amount(difference.estimate)}{METRIC_UNITS[question.metric]} ({amount(low)} to {amount(high)})"
    metric = _metric_phrase(question)
    if question.change:
        change = question.change[0].upper() + question.change[1:]
        return f"{change} {'raised' if higher else 'lowered'} {metric} by {by}"
    one, other = side_names(plan, question)
    metric = metric[0].upper() + metric[1:]
    return f'{metric} was {by} {"higher" if higher else "lower"} with "{one}" than with "{other}"'


def _certainty(plan: Plan, answer: Answer, difference: Inference) -> str:
    sentences = [f"{len(answer.seeds)} seeds of each"]
    if len(answer.seeds) == 1:
        sentences = ["One seed: the interval counts the patches only, and another seed would give another network"]
    if not answer.refuted:  # else p would be of the claim that they are equal
        corrected = f", after correction for {len(plan.questions)} questions {p_words(answer.adjusted)}"
        sentences.append(f"{p_words(answer.p)}{corrected if len(plan.questions) > 1 else ''}")
    words = f"{'; '.join(sentences)}."
    if answer.question.margin is None and not answer.shown:
        unit = METRIC_UNITS[answer.question.metric]
        words += (
            f" Asked alone, a true difference of about {amount(difference.detectable())}{unit} would have been found "
            f"four times out of five."
        )
    return words


def side_names(plan: Plan, question: Question) -> tuple[str, str]:
    """Name both sides of a question, with their readings where these differ."""
    labels = plan.arms[question.arm].label, plan.arms[question.other].label
    if question.other_reading is None:
        return labels
    one, other = (
        f"{label} ({READING_NAMES[reading]})" for label, reading in zip(labels, question.readings, strict=True)
    )
    return one, other


def _metric_phrase(question: Question) -> str:
    where = " on patches with shifted stains" if question.readings == ("stain_shifted", "stain_shifted") else ""
    return f"{'the ' if question.metric != 'auroc' else ''}{METRIC_NAMES[question.metric]}{where}"


def _margin_words(question: Question) -> str:
    return f"the margin of {question.margin:g}{METRIC_UNITS[question.metric]}".replace(" 0.", " .")


def missing_words(plan: Plan, missing: Missing) -> str:
    """Name runs that are not done, and say why."""
    seeds = f"seed{'s' if len(missing.seeds) > 1 else ''} {', '.join(map(str, missing.seeds))}"
    return f"{plan.arms[missing.arm].label}, {seeds}: {missing.reason or 'not trained yet'}"


def growth_words(fit: Fit) -> str:
    """Say what more training patches bring, and what twice the most would bring if the law held on."""
    share, low, high = fit.change()
    *_, before, most = fit.aurocs
    if low < 0 < high:
        return (
            f"{fit.label}: these runs do not show whether more patches help; each doubling of their number may have "
            f"changed 1 - AUROC by anything from {100 * low:+.0f} % to {100 * high:+.0f} %."
        )
    sizes = sorted(abs(100 * value) for value in (low, high))
    law = (
        f"{fit.label}: each doubling of the number of patches {'lowered' if share < 0 else 'raised'} 1 - AUROC, what "
        f"is missing to a perfect ranking, by {abs(100 * share):.0f} % ({sizes[0]:.0f} % to {sizes[1]:.0f} %)."
    )
    if fit.departs():
        seen = float(np.mean(fit.aurocs[most]) - np.mean(fit.aurocs[before]))
        return (
            f"{law} But this does not hold to the end: from {before:,} to {most:,} patches, AUROC changed by "
            f"{signed(seen)}, where this law says {signed(fit.predict(most) - fit.predict(before))}. So what more "
            f"patches would bring is not known."
        )
    gain = fit.predict(2 * most) - fit.predict(most)
    return (
        f"{law} If it goes on so, {2 * most:,} patches in place of {most:,} {'raise' if gain > 0 else 'lower'} AUROC "
        f"by {amount(gain)}."
    )


def seeds_words(plan: Plan) -> str:
    """Name the seeds of the arms, and of those that have their own."""
    own = [
        f'seeds {", ".join(map(str, arm.seeds))} of "{arm.label}"'
        for arm in plan.arms.values()
        if arm.seeds is not None
    ]
    shared = f"seeds {', '.join(map(str, plan.seeds))}"
    return f"{f'{len(plan.arms)} arms' if len(plan.arms) > 1 else 'one arm'}, {'; '.join([shared, *own])}"


def lag_words(results: Results, lags: Sequence[Lag]) -> str:
    """Say how much of the statistics before training is left in those of the published study's momentum."""
    steps = sorted({run.record["step"] for lag in lags for run in results[lag.arm].values()})
    shares = [f"{_share_words(share_of_start(number))} after {number:,} steps" for number in steps]
    momentum = READING_MOMENTA[PUBLISHED_READING]
    return (
        f"With the published study's momentum, {1 - momentum:g} in Keras's convention and {momentum:g} in PyTorch's, "
        f"the statistics that evaluation uses follow the network slowly: of what they were before training, "
        f"{joined(shares, 'and')} {'are' if len(shares) > 1 else 'is'} still in them."
    )


def _share_words(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"


def claims(plan: Plan, results: Results) -> list[str]:
    """Say of each published arm with batch norm what its weights can do, and what the published evaluation showed."""
    found = []
    for arm, runs in results.items():
        if arm in plan.published and plan.arms[arm].batch_norm_readings:
            lagging, current, trained = (
                {
                    metric: amount(float(np.mean([run.metrics(reading)[metric] for run in runs.values()])))
                    for metric in METRICS
                }
                for reading in (PUBLISHED_READING, MAIN_READING, TRAINED_READING)
            )
            steps = next(iter(runs.values())).record["step"]
            found.append(
                f"{plan.arms[arm].label}, after {steps:,} steps: with statistics of the published study's momentum, a "
                f"validation loss of {lagging['loss']} and an AUROC of {lagging['auroc']}; the same weights with "
                f"re-estimated statistics, {current['loss']} and {current['auroc']}; with those of momentum 0.1, "
                f"{trained['loss']} and {trained['auroc']}."
            )
    return [*found, f"A network that knows nothing has a loss of ln 2 = {amount(log(2))}."] if found else found


def amount(value: float) -> str:
    """Write the size of a number without its sign, as ".069"; four digits where three would be too coarse."""
    digits = 3 if abs(value) >= 0.005 or value == 0 else 4
    text = f"{abs(value):.{digits}f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def signed(value: float) -> str:
    """Write a number with its sign, as "+.069"."""
    return f"{'-' if value < 0 else '+'}{amount(value)}"


def _signed_range(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def interval_words(interval: tuple[float, float]) -> str:
    """Write an interval of a difference, as "+0.0526 to +0.0858"."""
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def p_words(p: float) -> str:
    """Write a p-value, as "p = .118" or "p < .001"."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def spread_words(values: Sequence[float], digits: int = 4, *, sign: bool = False) -> str:
    """Write a mean and, of several values, the standard deviation, as "0.8730 ± 0.0055"."""
    mean = f"{np.mean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {deviation(values):.{digits}f}"
