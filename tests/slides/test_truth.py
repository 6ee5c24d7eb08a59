"""How well slides are scored, against cases that were worked by hand and against scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pcam.slides.marked import MarkedPolygons, Polygon
from pcam.slides.truth import SlideTruth, detections, evaluate, froc, match, write_evaluation
from tests.slides.test_slide import ArrayReader, slide_of


def truth(name: str, false_positives: list[float], lesions: list[float], has_tumour: bool | None = None) -> SlideTruth:
    scores = np.array([0.1, *false_positives, *lesions])
    labels = np.arange(len(scores)) > len(false_positives)
    return SlideTruth(
        name, labels, scores, bool(lesions) if has_tumour is None else has_tumour, false_positives, lesions, 0
    )


def test_froc_is_that_of_a_case_worked_by_hand() -> None:
    # Four slides, five lesions. By falling threshold: .9 finds one lesion; .8 is a false positive (1/4 a slide); .7
    # finds two (3/5); .6 and .5 are false positives (3/4); .4 finds a fourth (4/5); .3 is one more (1). One is missed.
    slides = [
        truth("a", [0.8], [0.9, 0.7]), truth("b", [0.6, 0.5], [0.7, 0.0]), truth("c", [0.3], []), truth("d", [], [0.4]),
    ]  # fmt: skip
    rates, sensitivities = froc(slides)
    assert rates.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.75, 0.75, 1]
    assert sensitivities.tolist() == [0, 0.2, 0.2, 0.6, 0.6, 0.6, 0.8, 0.8]
    record = evaluate(slides).record
    expected = {"0.25": 0.6, "0.5": 0.6, "1": 0.8, "2": 0.8, "4": 0.8, "8": 0.8}
    assert record["froc_sensitivity"] == pytest.approx(expected)
    assert record["froc"] == pytest.approx(np.mean(list(expected.values())))
    assert record["slides_auroc"] == 1  # only c is normal, and its highest score is the lowest
    assert (record["slides"], record["slides_with_tumour"], record["lesions"]) == (4, 3, 5)


def test_aurocs_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slides = []
    for number in range(8):
        labels = (rng.random(200) < 0.3) & (number < 5)
        scores = rng.random(200) * 0.6 + 0.3 * labels + 0.1 * rng.random()
        slides.append(SlideTruth(str(number), labels, scores, bool(labels.any()), [0.5], [], 0))
    evaluation = evaluate(slides)
    all_labels, all_scores = np.concatenate([s.labels for s in slides]), np.concatenate([s.scores for s in slides])
    assert evaluation.record["squares_auroc"] == pytest.approx(roc_auc_score(all_labels, all_scores))
    highest = [slide.scores.max() for slide in slides]
    assert evaluation.record["slides_auroc"] == pytest.approx(roc_auc_score([s.has_tumour for s in slides], highest))
    low, high = evaluation.record["squares_auroc_interval"]
    assert low < evaluation.record["squares_auroc"] < high < low + 0.2
    assert evaluation.record["froc"] is None  # there is no lesion
    write_evaluation(evaluation, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["froc.png", "metrics.json", "roc.png"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluation.record


def test_what_is_undefined_is_null() -> None:
    record = evaluate([truth("a", [0.5], [])]).record
    assert [record[name] for name in ("squares_auroc", "squares_auroc_interval", "slides_auroc", "froc")] == [None] * 4


def test_detections_are_the_highest_around_them() -> None:
    scores = np.full((20, 30), np.nan, np.float32)
    scores[2:18, 2:28] = 0.1
    scores[5, 5], scores[5, 10], scores[9, 9], scores[10, 20] = 0.9, 0.8, 0.7, 0.95
    found = detections(scores)
    # .8 is within 6 squares of .9, and .7 is too (4 and 4); they are no detections of their own.
    assert [(row, column) for row, column, score in found if score > 0.5] == [(10, 20), (5, 5)]
    places = np.array([(row, column) for row, column, _ in found])
    distances = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    assert distances[~np.eye(len(places), dtype=bool)].min() > 6
    reached = np.hypot(*(np.argwhere(~np.isnan(scores))[:, None] - places).transpose(2, 0, 1)).min(axis=1)
    assert reached.max() <= 6  # none is left out


def test_lesions_are_grown_joined_and_counted_as_the_challenge_does() -> None:
    annotated = np.zeros((400, 400), dtype=bool)
    annotated[40:80, 40:80] = True  # 311 um, and grown by 37 um on each side
    annotated[40:80, 88:120] = True  # 62 um away: the same lesion
    annotated[40:80, 200:240] = True  # another
    annotated[300:310, 300:310] = True  # 78 um, with the growth 150 um: isolated tumour cells
    annotated[210:260, 40:90] = True
    annotated[225:240, 55:70] = False  # a hole, which is filled
    found = [(15, 15, 0.9), (15, 25, 0.8), (15, 60, 0.7), (76, 76, 0.6), (90, 10, 0.5), (58, 15, 0.4)]
    false_positives, lesions, isolated = match(found, annotated, 7.776, 4)
    assert false_positives == [0.5]
    assert sorted(lesions) == [0.4, 0.7, 0.9]
    assert isolated == 1


def test_a_slide_is_compared_with_its_annotations() -> None:
    slide = slide_of(ArrayReader([np.full((1280, 1280, 3), 200, np.uint8)]), 0.972)
    scores = np.full((40, 40), np.nan, np.float32)
    scores[1:39, 1:39] = np.random.default_rng(0).random((38, 38)) * 0.5
    scores[10, 10] = 0.9
    # Its last pixel is the first of a square: that square has tumour too.
    tumour = MarkedPolygons([Polygon([(256.0, 256.0), (641.0, 256.0), (641.0, 640.0), (256.0, 640.0)])])
    found = SlideTruth.of("slide", scores, slide, tumour)
    expected = np.zeros((40, 40), dtype=bool)
    expected[8:20, 8:21] = True
    assert np.array_equal(found.labels, expected[1:39, 1:39].ravel())
    assert found.lesions == [pytest.approx(0.9)]
    assert found.has_tumour
    normal = SlideTruth.of("slide", scores, slide, None)
    assert (normal.has_tumour, normal.lesions, normal.labels.any()) == (False, [], False)
    assert max(normal.false_positives) == pytest.approx(0.9)
