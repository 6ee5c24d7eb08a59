"""Reports from files of runs that are made up, so that what they must say is known."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, log_loss, roc_auc_score

from pcam.errors import UserError
from pcam.study.analysis import arm_mean
from pcam.study.figures import curve_style, roc_of_arms_figure
from pcam.study.plan import PublishedResult, Question, Run
from pcam.study.report import write_report
from pcam.study.runner import StudyFolder
from tests.study.made_up import PATCHES, PLAN, SHIFTED, make_run


def test_each_question_has_an_answer_that_follows_from_its_test(folder: StudyFolder) -> None:
    table = pd.read_csv(folder.report / "questions.csv")
    answers = table["answer"].tolist()
    assert re.fullmatch(r"More signal raised AUROC by \.\d{3} \(\.\d{3} to \.\d{3}\)\.", answers[0])
    assert re.fullmatch(
        r'"good network" and "the same again" are equally good: AUROC differs by [-+]\.\d{3,4} '
        r"\(90 % interval -\.\d{3,4} to \+\.\d{3,4}\), less than the margin of \.05\.",
        answers[1],
    )
    assert re.fullmatch(
        r'AUROC was \.\d{3} \(\.\d{3} to \.\d{3}\) higher with "good network \(re-estimated\)" than with '
        r"\"good network \(momentum 0\.001 \(Keras's 0\.999\)\)\"\.",
        answers[2],
    )
    assert re.fullmatch(r"AUROC was \.\d{3} .* higher with .* than with .*, more than the margin of \.01\.", answers[3])
    assert re.fullmatch(
        r'These runs do not show whether AUROC differs between "good network" and "the same again": the difference may '
        r"be anything from -\.\d{3,4} to \+\.\d{3,4}\.",
        answers[4],
    )
    assert answers[5] == 'There is no answer yet: no seed of both "good network" and "absent network" is done.'
    assert table["seeds"].tolist() == [2, 3, 3, 2, 3, 0]
    assert table["shown"].tolist() == [True, True, True, False, False, False]
    assert (table["p_holm"] >= table["p"]).all()
    assert table["p_holm"][5] == 1
    page = (folder.report / "report.md").read_text()
    details = {line for line in page.splitlines() if line.startswith("- **") and "Difference of" in line}
    assert len(details) == 5
    assert sum("would have been found four times out of five" in line for line in details) == 1
    (refuted,) = (line for line in details if "within .01 of poor" in line)
    assert "p = " not in refuted  # of the test of equivalence: it speaks of another claim


def test_the_numbers_agree_with_scikit_learn(folder: StudyFolder) -> None:
    run = folder.results.read(PLAN, Run("good", 2))
    assert list(run.reading_names) == ["momentum_0.1", "momentum_0.001", "reestimated"]
    for reading in run.reading_names:
        logits = run.logits(reading)
        scores = 1 / (1 + np.exp(-logits))
        assert run.metrics(reading) == pytest.approx(
            {
                "auroc": roc_auc_score(run.labels, scores),
                "average_precision": average_precision_score(run.labels, scores),
                "accuracy": accuracy_score(run.labels, scores > 0.5),
                "loss": log_loss(run.labels, scores),
            }
        )
    arms = pd.read_csv(folder.report / "arms.csv").set_index(["arm", "reading"])
    aurocs = [folder.results.read(PLAN, Run("good", seed)).metrics("reestimated") for seed in PLAN.seeds]
    values = np.array([metrics["auroc"] for metrics in aurocs])
    assert arms.loc[("good", "reestimated"), "auroc_mean"] == pytest.approx(values.mean())
    assert arms.loc[("good", "reestimated"), "auroc_sd"] == pytest.approx(values.std(ddof=1))


def test_the_lag_is_what_its_statistics_add_at_the_same_weights(folder: StudyFolder) -> None:
    table = pd.read_csv(folder.report / "lag.csv").set_index(["arm", "metric"])
    assert set(table.index) == {(arm, metric) for arm in ("good", "same") for metric in ("loss", "accuracy", "auroc")}
    runs = [folder.results.read(PLAN, Run("good", seed)) for seed in PLAN.seeds]
    for metric in ("loss", "accuracy", "auroc"):
        found = table.loc[("good", metric)]
        lags = [run.metrics("momentum_0.001")[metric] - run.metrics("reestimated")[metric] for run in runs]
        assert found["seeds"] == 3
        assert found["estimate"] == pytest.approx(np.mean(lags))
        # Seeds alone would say this; patches can only add to it.
        assert found["standard_error"] >= np.std(lags, ddof=1) / 3**0.5 * (1 - 1e-9)
        assert found["low"] < found["estimate"] < found["high"]
    row = next(
        line for line in (folder.report / "report.md").read_text().splitlines() if "| good network | 3 | +" in line
    )
    assert f"| {table.loc[('good', 'loss'), 'estimate']:+.4f} (" in row


class Page(HTMLParser):
    """The tags, what a browser would load, and the alternatives of images."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attributes)
        if tag in ("img", "script", "link", "iframe"):
            self.sources.append(found.get("src") or found.get("href") or "")
            self.alternatives.append(found.get("alt") or "")


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(folder: StudyFolder) -> None:
    text = (folder.report / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.sources
    for source in page.sources:
        assert source.startswith("data:image/svg+xml;base64,")
        assert b"<svg" in base64.b64decode(source.partition(",")[2])
    assert all(len(alternative) > 20 for alternative in page.alternatives)
    assert "A &lt;made up&gt; study" in text
    assert "<made up>" not in text


@pytest.mark.slow  # takes some seconds
def test_a_label_can_break_neither_page_nor_figures(tmp_path: Path) -> None:
    label = "a|b *c* <script>alert(1)</script> $\\frac{$ [d](javascript:e)\nf"
    plan = replace(PLAN, arms=dict(PLAN.arms) | {"good": replace(PLAN.arms["good"], label=label)})
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    write_report(plan, made)
    text = (made.report / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert "href" not in text
    assert "<td>a|b *c* &lt;script&gt;alert(1)&lt;/script&gt; $\\frac{$ [d](javascript:e) f</td>" in text


@pytest.mark.slow  # takes some seconds
def test_a_page_shows_no_more_than_its_study_asks_of(tmp_path: Path) -> None:
    plan = replace(PLAN, questions=[PLAN.questions[0]], published={}, published_tables=[])
    made = StudyFolder(tmp_path)
    make_run(made, Run("poor", 1), 0.1, plan=plan, train_patches=500)
    make_run(made, Run("good", 1), 1.0, plan=plan, train_patches=20_000)
    write_report(plan, made)
    text = (made.report / "report.md").read_text()
    assert "momentum 0.1 (PyTorch's)" in text
    for about_the_lag in ("momentum 0.001", "readings.svg", "three kinds"):
        assert about_the_lag not in text
    assert "margin of equivalence" not in text
    assert "trained on 500 or 20,000 patches" in text
    missing = [line for line in text.splitlines() if "not trained yet" in line]
    assert [line[4:].partition(",")[0] for line in missing] == [
        "good network", "the same again", "poor network", "absent network",
    ]  # fmt: skip
    assert "momentum_0.001" in (made.report / "arms.csv").read_text()  # the tables have every number


@pytest.mark.slow  # takes some seconds
def test_a_page_shows_the_figures_of_an_arm_whatever_its_name(tmp_path: Path) -> None:
    arms = {"my arm (1)": PLAN.arms["good"]}
    plan = replace(PLAN, arms=arms, questions=[], published={}, published_tables=[], conclusions=[])
    made = StudyFolder(tmp_path / "study")
    make_run(made, Run("my arm (1)", 1), 1.0, plan=plan)
    page = tmp_path / "docs" / "page.md"
    write_report(plan, made, page)
    shown = re.findall(r"\]\((\S+\.svg)\)", page.read_text())
    assert any("my%20arm" in name for name in shown)
    assert all((page.parent / unquote(name)).is_file() for name in shown)


@pytest.mark.slow  # takes some seconds
def test_the_same_results_give_the_same_bytes(folder: StudyFolder, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.report.rglob("*") if path.is_file()}
    write_report(PLAN, folder)
    assert len(before) == 2 + 5 + 16
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_curves_can_be_told_apart_without_colour(folder: StudyFolder) -> None:
    """By their line, for as many arms as the largest shipped study has, and by a letter on each."""
    runs = [folder.results.read(PLAN, Run("good", 1))]
    arms = {f"arm {index}": (runs, arm_mean(runs, "reestimated")) for index in range(10)}
    (axes,) = roc_of_arms_figure(arms, "reestimated").axes
    letters = [text.get_text() for text in axes.texts]
    labels = [str(line.get_label()) for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert letters == list("ABCDEFGHIJ")
    assert [label.partition(",")[0] for label in labels] == [
        f"{letter}: {label}" for letter, label in zip(letters, arms, strict=True)
    ]
    assert len({text.get_position() for text in axes.texts}) == len(arms)
    styles = [curve_style(index) for index in range(64)]
    assert len(set(styles)) == len(styles)
    assert len({dashes for _, dashes in styles[:8]}) == 8


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_pages_hold_what_a_reader_must_know(name: str, folder: StudyFolder) -> None:
    text = " ".join((folder.report / name).read_text().split())
    for expected in (
        "8 of 12 runs are done",
        "absent network, seed 1: Expected weights, but found none.",
        "absent network, seeds 2, 3: not trained yet",
        "poor network, seed 3: not trained yet",
        "Slides are not known",
        "Identical patches count together",
        "resamples of 200 groups of identical patches",
        "lag.csv",
        "It prints another number.",
        "0.69151",
        "-0.02120",  # 0.5138 - 0.5350, published
        "ln 2 = .693",
        "of what they were before training, 99.0 % after 10 steps is still in them",  # 0.999 to the power of 10
    ):
        assert expected in text
    assert "2,250" not in text  # the steps of another study


def test_figures_are_there_as_svg_and_png(folder: StudyFolder) -> None:
    names = {path.name for path in (folder.report / "figures").iterdir()}
    stems = {"all_arms", "forest", "readings", "published", "roc_good", "loss_good", "loss_same", "loss_poor"}
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("svg", "png")}


@pytest.mark.slow  # takes some seconds
def test_stains_shifted_are_a_reading_and_nothing_published_need_be(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    plan = replace(
        PLAN,
        arms={name: replace(PLAN.arms[name], config=SHIFTED) for name in ("poor", "absent")},
        questions=[Question("Under other stains?", "absent", "poor", "stain_shifted", "difference")],
        published={},
        published_tables=[],
        source="what to keep",
    )
    for seed in plan.seeds:
        make_run(made, Run("poor", seed), 1.0, shifted_signal=0.1, plan=plan)
        make_run(made, Run("absent", seed), 1.0, shifted_signal=0.8, plan=plan)
    write_report(plan, made)
    answer = pd.read_csv(made.report / "questions.csv")["answer"][0]
    assert re.fullmatch(
        r'AUROC on patches with shifted stains was \.\d{3} .* higher with "absent network" than with "poor network"\.',
        answer,
    )
    text = (made.report / "report.md").read_text()
    assert "| poor network | as trained | 3 |" in text
    assert "| poor network | stains shifted | 3 |" in text
    assert "ublished" not in text
    assert "momentum" not in text
    assert not (made.report / "lag.csv").exists()
    run = made.results.read(plan, Run("poor", 1))
    assert run.validation("loss", "stain_shifted").tolist() == [0.9, 0.8]
    # Nothing stands for a reading that a run does not have.
    make_run(made, Run("same", 1), 1.0)
    run = made.results.read(PLAN, Run("same", 1))
    with pytest.raises(UserError, match=r"Expected .*same_seed_1 to be read with shifted stains too"):
        run.logits("stain_shifted")


@pytest.mark.slow  # takes some seconds
def test_one_seed_says_that_it_counts_patches_only(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    write_report(replace(PLAN, seeds=[1]), made)
    text = (made.report / "report.md").read_text()
    assert "One seed: the interval counts the patches only, and another seed would give another network; p " in text
    assert "nan" not in text


@pytest.mark.slow  # takes some seconds
def test_what_others_published_stands_among_the_arms_in_the_same_metric(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    for seed in (1, 2):
        make_run(made, Run("good", seed), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    accuracies = {
        arm: np.mean([
            balanced_accuracy_score(run.labels, run.logits("reestimated") > 0)
            for run in (made.results.read(PLAN, Run(arm, seed)) for seed in seeds)
        ])
        for arm, seeds in {"good": (1, 2), "poor": (1,)}.items()
    }  # fmt: skip
    between = round((accuracies["good"] + accuracies["poor"]) / 2, 3)
    results = [
        PublishedResult("theirs", "balanced_accuracy", between, "a leaderboard, on test"),
        PublishedResult("another", "loss", 0.001, "a page"),
        PublishedResult("the best", "balanced_accuracy", 0.999, "a leaderboard, on test"),
    ]
    pages = write_report(replace(PLAN, published={}, published_tables=[], published_results=results), made)
    text = pages[1].read_text()
    tables = text.partition("## Published elsewhere, and ours")[2].partition("## The answers")[0].split("*Loss: ")
    rows = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
            for table in tables]  # fmt: skip
    assert [row[:3] for row in rows[0][2:]] == [
        ["the best", "published", "0.999"],
        ["good network", "ours, 2 seeds", f"{accuracies['good']:.4f}"],
        ["theirs", "published", f"{between:.4g}"],
        ["poor network", "ours, 1 seed", f"{accuracies['poor']:.4f}"],
    ]
    assert [row[3:] for row in rows[0][2:] if row[1] == "published"] == [
        ["not published", "a leaderboard, on test"]
    ] * 2
    assert all(re.fullmatch(r"0\.\d{3} to [01]\.\d{3}", row[3]) for row in rows[0][2:] if row[1] != "published")
    assert [row[0] for row in rows[1][2:]] == ["another", "good network", "poor network"]  # the lowest loss first
    assert "trained on 200 of the 262,144 training patches of PatchCamelyon and measured on valid" in tables[0]
    assert "<td>theirs</td>" in pages[0].read_text()


def test_a_study_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected the result of at least one run in .*results, but found none"):
        write_report(PLAN, StudyFolder(tmp_path))


@pytest.mark.slow  # takes some seconds
def test_patches_of_a_slide_count_together_where_slides_are_known(tmp_path: Path, folder: StudyFolder) -> None:
    made = StudyFolder(tmp_path)
    slides = [f"0{index % 20}" for index in range(PATCHES)]
    for seed in PLAN.seeds:
        make_run(made, Run("good", seed), 1.0, slides=slides)
    write_report(PLAN, made)
    run = made.results.read(PLAN, Run("good", 1))
    assert run.units == slides
    text = (made.report / "report.md").read_text()
    assert "Patches of one slide count together" in text
    assert "2,000 resamples of 20 slides and of seeds." in text
    assert "Slides are not known" not in text
    known, unknown = (
        pd.read_csv(report / "arms.csv").set_index(["arm", "reading"]).loc[("good", "reestimated")]
        for report in (made.report, folder.report)
    )
    assert known["auroc_mean"] == unknown["auroc_mean"]
    assert known["auroc_low"] != unknown["auroc_low"]
