"""Reports from files of runs that are made up, so that what they must say is known."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions
from pcam.run_folder import RunFolder
from pcam.study.analysis import mean_auroc
from pcam.study.figures import curve_style, roc_of_arms_figure
from pcam.study.plan import Arm, Plan, Published, PublishedTable, Question, Run
from pcam.study.report import write_report
from pcam.study.results import RunResult, compute_metrics, write_result
from pcam.study.runner import StudyFolder
from tests.conftest import REPOSITORY

PATCHES = 400
CONFIG = REPOSITORY / "configs" / "random_dropout.yaml"
SHIFTED = REPOSITORY / "configs" / "best.yaml"

PLAN = Plan(
    name="made_up",
    title="A <made up> study",
    split="valid",
    seeds=[1, 2, 3],
    arms={
        "good": Arm("good network", CONFIG, batch_norm_readings=True),
        "same": Arm("the same again", CONFIG, batch_norm_readings=True),
        "poor": Arm("poor network", CONFIG),
        "absent": Arm("absent network", CONFIG),
    },
    questions=[
        Question("Is good better than poor?", "good", "poor", "reestimated", "difference", change="more signal"),
        Question("Is good as good as the same?", "good", "same", "reestimated", "equivalence", 0.05),
        Question("Does the lag hide it?", "good", "good", "reestimated", "difference", other_reading="momentum_0.001"),
        Question("Is good within .01 of poor?", "good", "poor", "reestimated", "equivalence", 0.01),
        Question("Do equals differ?", "good", "same", "reestimated", "difference"),
        Question("What of the absent?", "good", "absent", "reestimated", "difference"),
    ],
    published={
        "good": Published(auroc=0.654, loss=0.69151, accuracy=0.535, roc_figure=2, loss_figure=6),
        "same": Published(loss=0.69278, accuracy=0.5138, loss_figure=7),
        "absent": Published(auroc=0.9),
    },
    published_tables=[PublishedTable(2, "dropout removed", "same", "good", "It prints another number.")],
    source="a report",
)


def make_run(
    folder: StudyFolder,
    run: Run,
    signal: float,
    seed: int = 0,
    shifted_signal: float | None = None,
    slides: list[str] | None = None,
) -> None:
    """Write what training and measuring leave; higher signals separate the classes better."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(PATCHES) % 2).astype(np.uint8)
    noise = np.random.default_rng((run.seed, seed)).normal(size=PATCHES)
    shared = rng.normal(size=PATCHES)
    trained = RunFolder(folder.runs / run.name / "version_0")
    trained.path.mkdir(parents=True)  # no checkpoints: results alone make the report
    (trained.path / "environment.json").write_text(
        json.dumps(
            {
                "python": "3.11", "packages": {"torch": "2.15", "lightning": "2.6"}, "device": "cpu", "threads": 2,
                "git_commit": "0123456789abcdef", "data_fingerprints": {"train": "def", "valid": "abc"},
            }
        )
    )  # fmt: skip
    events = EventFileWriter(str(trained.path))
    events.close()
    separated = (2.0 * labels - 1) * signal

    def predictions(logits: np.ndarray) -> Predictions:
        ids = [f"{index:03d}" for index in range(PATCHES)]
        return Predictions(
            ids, labels, logits.astype(np.float32), [f"{index // 2}" for index in range(PATCHES)], slides
        )

    true = predictions(separated + 0.9 * shared + 0.1 * noise)
    lagging = predictions(0.1 * separated + noise)
    readings = {"momentum_0.1": true}
    curves = pd.DataFrame({"step": [5, 10], "epoch": [0, 0], "train/loss": [0.6, 0.4]})
    curves = curves.assign(**{"val/loss": [0.5, 0.45], "val/accuracy": [0.7, 0.8], "val/auroc": [0.8, 0.9]})
    if PLAN.arms[run.arm].batch_norm_readings:
        readings |= {"momentum_0.001": lagging, "reestimated": true}
        for name, values in {"loss": [0.6931, 0.7], "accuracy": [0.5, 0.6], "auroc": [0.51, 0.6]}.items():
            curves[f"val/{name}_momentum_0.001"] = values
            for reading in ("momentum_0.1", "reestimated"):
                curves[f"val/{name}_{reading}"] = curves[f"val/{name}"]
    if shifted_signal is not None:
        readings["stain_shifted"] = predictions((2.0 * labels - 1) * shifted_signal + 0.9 * shared + 0.1 * noise)
        curves["val_shifted/loss"] = [0.9, 0.8]
    curves.to_csv(trained.metrics, index=False)
    facts = {
        "step": 10, "batch_size": 32, "train_patches": 200, "passes": 1.6, "data_fingerprint": "abc",
    }  # fmt: skip
    write_result(run, trained, "valid", readings, facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    made = StudyFolder(tmp_path_factory.mktemp("study"))
    for seed in PLAN.seeds:
        make_run(made, Run("good", seed), 1.0)
        make_run(made, Run("same", seed), 1.0, seed=1)
    for seed in (1, 2):
        make_run(made, Run("poor", seed), 0.1)
    (made.runs / "absent_seed_1").mkdir()
    made.failure(Run("absent", 1)).write_text("Expected weights, but found none.\n")
    write_report(PLAN, made)
    return made


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
    run = RunResult.read(folder.runs / "good_seed_2" / "version_0" / "study.json", "valid")
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
    aurocs = [
        RunResult.read(folder.runs / f"good_seed_{seed}" / "version_0" / "study.json", "valid").metrics("reestimated")
        for seed in PLAN.seeds
    ]
    values = np.array([metrics["auroc"] for metrics in aurocs])
    assert arms.loc[("good", "reestimated"), "auroc_mean"] == pytest.approx(values.mean())
    assert arms.loc[("good", "reestimated"), "auroc_sd"] == pytest.approx(values.std(ddof=1))


def test_the_lag_is_what_its_statistics_add_at_the_same_weights(folder: StudyFolder) -> None:
    table = pd.read_csv(folder.report / "lag.csv").set_index(["arm", "metric"])
    assert set(table.index) == {(arm, metric) for arm in ("good", "same") for metric in ("loss", "accuracy", "auroc")}
    runs = [
        RunResult.read(folder.runs / f"good_seed_{seed}" / "version_0" / "study.json", "valid") for seed in PLAN.seeds
    ]
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


def test_published_selection_is_the_validation_with_the_lowest_loss_of_the_reading(folder: StudyFolder) -> None:
    run = RunResult.read(folder.runs / "good_seed_1" / "version_0" / "study.json", "valid")
    assert run.published_selection("momentum_0.001") == {"step": 5, "loss": 0.6931, "accuracy": 0.5, "auroc": 0.51}
    assert run.published_selection("reestimated") == {"step": 10, "loss": 0.45, "accuracy": 0.8, "auroc": 0.9}


def test_a_network_without_batch_norm_reads_the_same_in_all(folder: StudyFolder) -> None:
    run = RunResult.read(folder.runs / "poor_seed_1" / "version_0" / "study.json", "valid")
    assert np.array_equal(run.logits("reestimated"), run.logits("momentum_0.1"))
    assert run.published_selection("momentum_0.001") == run.published_selection("momentum_0.1")


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


def test_the_same_results_give_the_same_bytes(folder: StudyFolder, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.report.rglob("*") if path.is_file()}
    write_report(PLAN, folder)
    assert len(before) == 2 + 5 + 12
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_curves_can_be_told_apart_without_colour(folder: StudyFolder) -> None:
    """By their line, for as many arms as the largest shipped study has, and by a letter on each."""
    runs = [RunResult.read(folder.runs / "good_seed_1" / "version_0" / "study.json", "valid")]
    arms = {f"arm {index}": (runs, mean_auroc(runs, "reestimated")) for index in range(10)}
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


def test_figures_are_there_as_svg_and_png(folder: StudyFolder) -> None:
    names = {path.name for path in (folder.report / "figures").iterdir()}
    stems = {"all_arms", "forest", "roc_good", "loss_good", "loss_same", "loss_poor"}
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("svg", "png")}


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
        make_run(made, Run("poor", seed), 1.0, shifted_signal=0.1)
        make_run(made, Run("absent", seed), 1.0, shifted_signal=0.8)
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
    run = RunResult.read(made.runs / "poor_seed_1" / "version_0" / "study.json", "valid")
    assert run.validation("loss", "stain_shifted").tolist() == [0.9, 0.8]
    # Nothing stands for a reading that a run does not have.
    make_run(made, Run("same", 1), 1.0)
    run = RunResult.read(made.runs / "same_seed_1" / "version_0" / "study.json", "valid")
    with pytest.raises(UserError, match=r"Expected .*version_0 to be read with shifted stains too"):
        run.logits("stain_shifted")


def test_one_seed_says_that_it_counts_patches_only(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    write_report(replace(PLAN, seeds=[1]), made)
    text = (made.report / "report.md").read_text()
    assert "One seed: the interval counts the patches only, and another seed would give another network; p " in text
    assert "nan" not in text


def test_a_study_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected at least one run that is done in .*runs, but found none"):
        write_report(PLAN, StudyFolder(tmp_path))


def test_runs_on_other_patches_are_refused(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    make_run(made, Run("poor", 1), 0.1)
    path = made.runs / "poor_seed_1" / "version_0" / "study.json"
    path.write_text(path.read_text().replace('"abc"', '"xyz"'))
    with pytest.raises(UserError, match=r"measured on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, made)
    path.write_text(path.read_text().replace('"xyz"', '"abc"').replace('"def"', '"xyz"'))
    with pytest.raises(UserError, match=r"trained on the same patches, but those of .*poor_seed_1.* are not those of"):
        write_report(PLAN, made)
    with pytest.raises(UserError, match=r"Expected a result on the split 'test' in .*, but found one on 'valid'"):
        write_report(replace(PLAN, split="test"), made)


def test_runs_of_another_arm_are_refused(tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    arm = made.runs / "good_seed_1" / "arm.json"
    arm.write_text(json.dumps({"digest": PLAN.arms["good"].digest()}))
    write_report(PLAN, made)
    for content in ('{"digest": "another"}', '{"digest":', "[]"):
        arm.write_text(content)
        with pytest.raises(
            UserError, match=r"Expected .*good_seed_1 to be a run of the arm 'good' as the study's YAML"
        ):
            write_report(PLAN, made)


@pytest.mark.parametrize("name", ["study.json", "study/valid_momentum_0.001.csv.gz", "metrics.csv"])
@pytest.mark.parametrize("part", [None, 0.0, 0.5])
def test_a_run_that_is_not_whole_is_named(name: str, part: float | None, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    path = made.runs / "good_seed_1" / "version_0" / name
    content = path.read_bytes()
    path.unlink()
    if part is not None:
        path.write_bytes(content[: int(part * len(content))])
    if (name, part) == ("study.json", None):  # then it is not done
        with pytest.raises(UserError, match="Expected at least one run that is done"):
            write_report(PLAN, made)
    elif (name, part) != ("metrics.csv", 0.5):  # nothing tells that later steps are missing
        with pytest.raises(UserError, match=rf"Expected .*{name}.* (not whole|cannot be read)"):
            write_report(PLAN, made)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["step"], None, "it has no step"),
        (["environment", "threads"], None, "it has no environment.threads"),
        (["environment", "packages", "torch"], None, "it has no environment.packages.torch"),
        (["environment", "data_fingerprints"], {}, "it has no environment.data_fingerprints.train"),
        (["environment"], "Linux", "it has no environment.python, "),
        (["readings", "momentum_0.001", "loss"], None, "it has no readings.momentum_0.001.loss"),
        (["readings"], {}, "its readings are none"),
        (["readings", "momentum_0.5"], {}, "its readings are momentum_0.1, momentum_0.001, reestimated, momentum_0.5"),
        ([], 7, "not iterable"),
    ],
)
def test_a_result_that_lacks_something_is_named(keys: list[str], value: object, reason: str, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    path = made.runs / "good_seed_1" / "version_0" / "study.json"
    record = json.loads(path.read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    if not keys:
        record = value
    elif value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=rf"Expected the result of a run in .*study.json, but it is not whole .*{reason}"
    ):
        write_report(PLAN, made)


@pytest.mark.parametrize("content", ["step,train/loss\n1,2\n", "step,train/loss,val/loss\na,b,c\n", ""])
def test_curves_that_are_none_are_named(content: str, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    (made.runs / "good_seed_1" / "version_0" / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=r"Expected .*metrics.csv as the study wrote it, but it is not there or not wh"):
        write_report(PLAN, made)


@pytest.mark.parametrize("content", [None, "{", '{"python": "3.11"}', "7"])
def test_a_run_whose_environment_is_lost_is_not_measured(content: str | None, tmp_path: Path) -> None:
    made = StudyFolder(tmp_path)
    make_run(made, Run("good", 1), 1.0)
    trained = RunFolder(made.runs / "good_seed_1" / "version_0")
    result = RunResult.read(trained.path / "study.json", "valid")
    readings = {"momentum_0.1": result.predictions("momentum_0.1")}
    (trained.path / "environment.json").unlink()
    if content is not None:
        (trained.path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"Expected what a run was trained on in .*environment.json, but it cannot"):
        write_result(Run("good", 1), trained, "valid", readings, {})


def test_patches_of_a_slide_count_together_where_slides_are_known(tmp_path: Path, folder: StudyFolder) -> None:
    made = StudyFolder(tmp_path)
    slides = [f"0{index % 20}" for index in range(PATCHES)]
    for seed in PLAN.seeds:
        make_run(made, Run("good", seed), 1.0, slides=slides)
    write_report(PLAN, made)
    run = RunResult.read(made.runs / "good_seed_1" / "version_0" / "study.json", "valid")
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


def test_metrics_of_scores_that_saturate_are_finite() -> None:
    made = Predictions(["a", "b"], np.array([0, 1], np.uint8), np.array([100, -100], np.float32), ["a", "b"])
    assert compute_metrics(made) == {"auroc": 0, "average_precision": 0.5, "accuracy": 0, "loss": 100}
