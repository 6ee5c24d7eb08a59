"""Answers in the words of a person, one for everything that a test can say."""

from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from pcam.evaluation.seeds import Inference
from pcam.study.analysis import Answer
from pcam.study.plan import Arm, Plan, Question
from pcam.study.sentences import amount, answer_words, p_words, signed, spread_words

DIFFERENCE = Question("So?", "one", "two", "reestimated", "difference", change="ImageNet weights")
EQUIVALENCE = Question("So?", "one", "two", "reestimated", "equivalence", 0.01, change="dropout")

PLAN = Plan(
    name="words",
    title="Words",
    split="valid",
    seeds=[1, 2, 3],
    arms={"one": Arm("first", Path("cnn")), "two": Arm("second", Path("cnn"))},
    questions=[DIFFERENCE, EQUIVALENCE],
    source="nowhere",
)


def plain(question: Question, estimate: float, error: float, adjusted: float | None = None, bound: float = 1.0) -> str:
    difference = Inference(estimate, error, inf, (-bound, bound))
    p = difference.p_difference() if question.margin is None else difference.p_equivalence(question.margin)
    return answer_words(PLAN, Answer(question, [1, 2, 3], difference, p, p if adjusted is None else adjusted)).plain


@pytest.mark.parametrize(
    ("question", "numbers", "expected"),
    [
        (DIFFERENCE, (0.0692, 0.008), "ImageNet weights raised AUROC by .069 (.054 to .085)."),
        (DIFFERENCE, (-0.0692, 0.008), "ImageNet weights lowered AUROC by .069 (.054 to .085)."),
        (
            replace(DIFFERENCE, metric="loss", change="replacing the statistics"),
            (-1.239, 0.01, None, inf),
            "Replacing the statistics lowered the loss by 1.239 nats (1.219 to 1.259).",
        ),
        (
            replace(DIFFERENCE, metric="accuracy", change=""),
            (-0.05, 0.01),
            'The accuracy was .050 (.030 to .070) lower with "first" than with "second".',
        ),
        (
            replace(DIFFERENCE, reading="stain_shifted", metric="average_precision"),
            (0.05, 0.01),
            "ImageNet weights raised the average precision on patches with shifted stains by .050 (.030 to .070).",
        ),
        (
            DIFFERENCE,
            (0.004, 0.01),
            "These runs do not show whether ImageNet weights raised or lowered AUROC: the difference may be anything "
            "from -.016 to +.024.",
        ),
        (
            replace(DIFFERENCE, change="", metric="loss"),
            (0.004, 0.01),
            'These runs do not show whether the loss differs between "first" and "second": the difference may be '
            "anything from -.016 to +.024 nats.",
        ),
        (
            DIFFERENCE,
            (0.025, 0.01, 0.06),
            "These runs do not show whether ImageNet weights raised or lowered AUROC: a difference as large as this "
            "one, +.025, comes about by chance too often when 2 questions are asked together.",
        ),
        (
            EQUIVALENCE,
            (0.0012, 0.002),
            "Dropout made no difference that matters: AUROC changed by +.0012 (90 % interval -.0021 to +.0045), less "
            "than the margin of .01.",
        ),
        (
            replace(EQUIVALENCE, change="", metric="loss", margin=0.5),
            (0.1, 0.1),
            '"first" and "second" are equally good: the loss differs by +.100 nats (90 % interval -.064 to +.264), '
            "less than the margin of .5 nats.",
        ),
        (EQUIVALENCE, (-0.118, 0.02), "Dropout lowered AUROC by .118 (.079 to .157), more than the margin of .01."),
        (
            EQUIVALENCE,
            (0.004, 0.01),
            "These runs do not show whether dropout changed AUROC by more than the margin of .01: the difference may "
            "be anything from -.016 to +.024.",
        ),
        (
            replace(EQUIVALENCE, change=""),
            (0.0, 0.005, 0.09),
            "These runs do not show it surely enough. The difference (90 % interval -.008 to +.008) is within the "
            "margin of .01, but when 2 questions are asked together, one of them looks so by chance too often.",
        ),
    ],
)  # fmt: skip
def test_the_plain_answer(question: Question, numbers: tuple[float, ...], expected: str) -> None:
    assert plain(question, *numbers) == expected


def test_numbers_and_certainty_follow_the_plain_answer() -> None:
    words = answer_words(PLAN, Answer(DIFFERENCE, [1, 2], Inference(0.004, 0.01, inf), 0.69, 1.0))
    assert words.numbers == "Difference of AUROC: +0.0040, 95 % interval -0.0156 to +0.0236."
    assert words.certainty == (
        "2 seeds of each; p = .690, after correction for 2 questions p = 1.000. Asked alone, a true difference of "
        "about .028 would have been found four times out of five."
    )
    words = answer_words(PLAN, Answer(EQUIVALENCE, [1], Inference(0.0, 0.003, inf), 0.0004, 0.0008))
    assert words.numbers.endswith("95 % interval -0.0059 to +0.0059, 90 % interval -0.0049 to +0.0049.")
    assert words.certainty == (
        "One seed: the interval counts the patches only, and another seed would give another network; p < .001, after "
        "correction for 2 questions p < .001."
    )
    alone = replace(PLAN, questions=[DIFFERENCE])
    words = answer_words(alone, Answer(DIFFERENCE, [1, 2], Inference(0.1, 0.01, inf), 0.01, 0.01))
    assert words.certainty == "2 seeds of each; p = .010."


@pytest.mark.parametrize(
    ("question", "estimate", "verdict"),
    [
        (DIFFERENCE, 0.1, "Yes."),
        (DIFFERENCE, 0.01, ""),
        (replace(DIFFERENCE, yes_if="higher"), -0.1, "No."),
        (replace(DIFFERENCE, yes_if="lower"), -0.1, "Yes."),
        (EQUIVALENCE, 0.1, "No."),
        (replace(EQUIVALENCE, margin=0.2), 0.1, "Yes."),
        (EQUIVALENCE, 0.01, ""),
    ],
)
def test_the_verdict(question: Question, estimate: float, verdict: str) -> None:
    difference = Inference(estimate, 0.01, inf)
    p = difference.p_difference() if question.margin is None else difference.p_equivalence(question.margin)
    assert answer_words(PLAN, Answer(question, [1, 2, 3], difference, p, p)).verdict == verdict


def test_what_cannot_be_answered_says_why() -> None:
    words = answer_words(PLAN, Answer(DIFFERENCE, [], None, 1.0, 1.0))
    assert words.plain == 'There is no answer yet: no seed of both "first" and "second" is done.'
    words = answer_words(PLAN, Answer(DIFFERENCE, [1], Inference(0.07, nan, inf), 1.0, 1.0))
    assert words.plain.startswith("There is no answer: all patches of a class are of one slide, so nothing shows")
    assert words.plain.endswith("the difference of +.070.")


def test_numbers_are_written_as_people_read_them() -> None:
    assert [amount(value) for value in (0.069, -0.069, 1.5, 0.0, 0.0012)] == [".069", ".069", "1.500", ".000", ".0012"]
    assert [signed(value) for value in (0.069, -0.069, 0.0)] == ["+.069", "-.069", "+.000"]
    assert [p_words(p) for p in (0.0004, 0.118, 1.0)] == ["p < .001", "p = .118", "p = 1.000"]
    assert spread_words([0.5]) == "0.5000"
    assert spread_words([0.5, 0.6], 2, sign=True) == "+0.55 ± 0.07"
