"""The report of a study: its pages, its tables and its figures, with the words that explain them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pcam.atomic import atomic_path
from pcam.evaluation import figures as evaluation_figures
from pcam.study.analysis import (
    LAG_METRICS,
    Answer,
    Lag,
    Results,
    answer_questions,
    collect_results,
    find_missing,
    mean_auroc,
    measure_lags,
    number_tables,
)
from pcam.study.backbones import backbone_pictures
from pcam.study.figures import (
    MOST_BANDS,
    ForestRow,
    forest_figure,
    loss_figure,
    published_roc_figure,
    roc_of_arms_figure,
)
from pcam.study.pages import Block, picture_block, render_html, render_markdown, table_block
from pcam.study.plan import METRIC_NAMES, Metric, Plan
from pcam.study.readings import MAIN_READING, PUBLISHED_READING, READING_MOMENTA, READING_NAMES, Reading
from pcam.study.results import METRICS, RunResult
from pcam.study.runner import StudyFolder
from pcam.study.sentences import (
    METRIC_UNITS,
    AnswerWords,
    answer_words,
    claims,
    interval_words,
    lag_words,
    missing_words,
    p_words,
    side_names,
    spread_words,
)

PUBLISHED_METRICS: Final[Sequence[Metric]] = ("auroc", "loss", "accuracy")


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: The name of its files, without ending.
        figure: The figure.
        caption: What it shows.
        alternative: The same, with its numbers, for people who cannot see it.
    """

    name: str
    figure: Figure
    caption: str
    alternative: str


def write_report(plan: Plan, folder: StudyFolder) -> list[Path]:
    """Write `report.html`, `report.md`, the tables as CSV and the figures.

    Args:
        plan: The study.
        folder: The folder of the study, whose runs are read and whose report is written.

    Returns:
        The paths of the two pages.

    Raises:
        UserError: If no run is done, if one was trained with other options than its arm has, or if runs were trained
            or measured on different patches.
    """
    results = collect_results(plan, folder)
    answers, lags = answer_questions(plan, results), measure_lags(plan, results)
    words = [answer_words(plan, answer) for answer in answers]
    tables = number_tables(plan, results, answers, lags)
    if answers:
        tables["questions"] = tables["questions"].assign(answer=[answer.plain for answer in words])
    for name, table in tables.items():
        with atomic_path(folder.report / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    pictures = _pictures(plan, results, answers)
    sources = {_picture_path(picture): _save(picture, folder.report) for picture in pictures}
    page = render_markdown(
        "report.md.j2", _context(plan, folder, results, answers, lags, words, pictures, list(tables))
    )
    contents = {"report.html": render_html(plan.title, page, sources), "report.md": page}
    for name, content in contents.items():
        with atomic_path(folder.report / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [folder.report / name for name in contents]


def _context(
    plan: Plan,
    folder: StudyFolder,
    results: Results,
    answers: Sequence[Answer],
    lags: Sequence[Lag],
    words: Sequence[AnswerWords],
    pictures: Sequence[Picture],
    tables: Sequence[str],
) -> dict[str, object]:
    """Gather what the page says."""
    run = next(iter(next(iter(results.values())).values()))
    blocks = {
        picture.name: picture_block(_picture_path(picture), picture.caption, picture.alternative)
        for picture in pictures
    }
    return {
        "plan": plan,
        "runs": len(plan.runs()),
        "done": sum(len(seeds) for seeds in results.values()),
        "missing": [missing_words(plan, missing) for missing in find_missing(plan, folder)],
        "answers": list(zip(plan.questions, words, strict=True)),
        "claims": claims(plan, results),
        "lag": lag_words(results, lags) if lags else "",
        "forest": blocks.pop("forest", None),
        "all_arms": blocks.pop("all_arms"),
        "pictures": list(blocks.values()),
        "questions_table": _questions_table(answers),
        "lag_table": _lag_table(plan, lags),
        "published_table": _published_table(plan, results),
        "changes_table": _changes_table(plan, results),
        "arms_table": _arms_table(plan, results),
        "conditions_table": _conditions_table(plan, results),
        "patches": f"{len(run.labels):,}",
        "tumour": f"{100 * run.labels.mean():.1f} %",
        "units": f"{len(set(run.units)):,} {'slides' if run.slides_known else 'groups of identical patches'}",
        "train_patches": f"{run.record['train_patches']:,}",
        "fingerprint": run.record["data_fingerprint"],
        "slides_known": run.slides_known,
        "files": Block(", ".join(f"`{name}.csv`" for name in tables)),
    }


def _questions_table(answers: Sequence[Answer]) -> Block:
    rows = []
    for answer in answers:
        difference, question = answer.difference, answer.question
        test = "difference" if question.margin is None else f"equivalence within {question.margin:g}"
        cells = [question.text, METRIC_NAMES[question.metric], test, str(len(answer.seeds))]
        if difference is None:
            rows.append([*cells, *["not run"] * 5])
        else:
            unit = METRIC_UNITS[question.metric]
            detectable = f"{difference.detectable():.4f}" if question.margin is None else "-"
            numbers = [f"{difference.estimate:+.4f}{unit}", interval_words(difference.interval())]
            rows.append([*cells, *numbers, p_words(answer.p), p_words(answer.adjusted), detectable])
    return table_block(
        "The questions, fixed before anything ran. The p-values after Holm are corrected for the number of questions. "
        "Detectable: about the true difference that a test of this question alone, at 5 %, finds four times out of "
        "five.",
        ["question", "metric", "test", "seeds", "difference", "95 % interval", "p", "p after Holm", "detectable"],
        rows,
    )


def _lag_table(plan: Plan, lags: Sequence[Lag]) -> Block:
    rows = []
    for lag in lags:
        cells = [
            f"{difference.estimate:+.4f} ({interval_words(difference.interval())})"
            for difference in lag.differences.values()
        ]
        rows.append([plan.arms[lag.arm].label, str(lag.seeds), *cells])
    return table_block(
        f"What the lag does at the last checkpoint, the weights the same: {READING_NAMES[PUBLISHED_READING]} minus "
        f"{READING_NAMES[MAIN_READING]}. Means over seeds, with 95 % intervals that count patches and seeds; with one "
        f"seed, patches only. These come in addition to the questions, and are not corrected with them.",
        ["arm", "seeds", *(METRIC_NAMES[metric] for metric in LAG_METRICS)],
        rows,
    )


def _arms_table(plan: Plan, results: Results) -> Block:
    rows = []
    for arm, seeds in results.items():
        runs = list(seeds.values())
        for reading, name in runs[0].reading_names.items():
            mean = mean_auroc(runs, reading)
            spread = [spread_words([run.metrics(reading)[metric] for run in runs]) for metric in METRICS]
            words = [
                plan.arms[arm].label,
                name,
                str(len(runs)),
                spread[0],
                evaluation_figures.interval_words(mean.interval()),
            ]
            rows.append(words + spread[1:])
    return table_block(
        f"Every arm on {plan.split}, at its last checkpoint: mean and standard deviation over seeds. The interval of "
        f"the mean AUROC counts patches and seeds; with one seed, patches only.",
        ["arm", "reading", "seeds", "AUROC", "95 % interval", "average precision", "accuracy", "loss"],
        rows,
    )


def _published_table(plan: Plan, results: Results) -> Block:
    rows = []
    for arm, published in plan.published.items():
        label = plan.arms[arm].label
        values = [published.auroc, published.loss, published.accuracy]
        rows.append([label, "published", *("-" if value is None else f"{value:g}" for value in values), "-"])
        runs = list(results.get(arm, {}).values())
        if not runs:
            rows.append([label, "ours", *["not run"] * 3, "-"])
            continue
        chosen = [run.published_selection(PUBLISHED_READING) for run in runs]
        words = [spread_words([choice[name] for choice in chosen], 3) for name in PUBLISHED_METRICS]
        steps = ", ".join(f"{choice['step']:,.0f}" for choice in chosen)
        rows.append([label, f"ours, lowest validation loss{_how(plan, arm, PUBLISHED_READING)}", *words, steps])
        words = [spread_words([run.metrics(MAIN_READING)[name] for run in runs], 3) for name in PUBLISHED_METRICS]
        last = ", ".join(sorted({f"{run.record['step']:,}" for run in runs}))
        rows.append([label, f"ours, last checkpoint{_how(plan, arm, MAIN_READING)}", *words, last])
    momentum = READING_MOMENTA[PUBLISHED_READING]
    lag = f", with batch-norm statistics of momentum {momentum:g}" if _any_batch_norm(plan, results) else ""
    return table_block(
        f"The published results and ours. The published study chose the checkpoint with the lowest validation loss "
        f"('published selection'){lag}.",
        ["arm", "what", "AUROC", "loss", "accuracy", "at step"],
        rows,
    )


def _changes_table(plan: Plan, results: Results) -> Block:
    rows = []
    for table in plan.published_tables:
        values = [
            (getattr(plan.published[table.arm], name), getattr(plan.published[table.other], name))
            for name in ("loss", "accuracy")
        ]
        words = ["-" if None in pair else f"{pair[0] - pair[1]:+.5f}" for pair in values]
        title = f"Table {table.number}: {table.title}"
        rows.append([title, "published", *words])
        seeds = sorted(results.get(table.arm, {}).keys() & results.get(table.other, {}).keys())
        pairs = [(results[table.arm][seed], results[table.other][seed]) for seed in seeds]
        if not pairs:
            rows.append([title, "ours", "not run", "not run"])
            continue
        chosen = [tuple(run.published_selection(PUBLISHED_READING) for run in pair) for pair in pairs]
        words = [spread_words([a[name] - b[name] for a, b in chosen], 4, sign=True) for name in ("loss", "accuracy")]
        rows.append([title, f"ours, published selection{_how(plan, table.arm, PUBLISHED_READING)}", *words])
        last = [tuple(run.metrics(MAIN_READING) for run in pair) for pair in pairs]
        words = [spread_words([a[name] - b[name] for a, b in last], 4, sign=True) for name in ("loss", "accuracy")]
        rows.append([title, f"ours, last checkpoint{_how(plan, table.arm, MAIN_READING)}", *words])
    notes = " ".join(table.note for table in plan.published_tables if table.note)
    return table_block(
        f"The published tables and ours: what the change does to validation loss and accuracy. {notes}".strip(),
        ["table", "what", "loss", "accuracy"],
        rows,
    )


def _conditions_table(plan: Plan, results: Results) -> Block:
    rows = []
    for arm, seeds in results.items():
        for seed, run in seeds.items():
            record = run.record
            environment = record["environment"]
            packages = environment["packages"]
            rows.append(
                [
                    plan.arms[arm].label,
                    str(seed),
                    f"{record['step']:,}",
                    f"{record['passes']:.1f}",
                    f"{record['seconds']:,.0f}",
                    environment["device"],
                    str(environment["threads"]),
                    f"Python {environment['python']}, torch {packages['torch']}, lightning {packages['lightning']}",
                    (environment["git_commit"] or "not known")[:12],
                ]
            )
    return table_block(
        "The runs. A pass is once over all training patches; seconds are those of training with its validations.",
        ["arm", "seed", "steps", "passes", "seconds", "device", "threads", "versions", "commit"],
        rows,
    )


def _any_batch_norm(plan: Plan, results: Results) -> bool:
    """Whether the batch norm of any arm that is there is read in several ways."""
    return any(plan.arms[arm].batch_norm_readings for arm in results)


def _how(plan: Plan, arm: str, reading: Reading) -> str:
    """Name the reading of an arm after a comma, if its batch norm is read in several ways."""
    return f", {READING_NAMES[reading]}" if plan.arms[arm].batch_norm_readings else ""


def _pictures(plan: Plan, results: Results, answers: Sequence[Answer]) -> list[Picture]:
    arms = {plan.arms[arm].label: list(seeds.values()) for arm, seeds in results.items()}
    means = {label: (runs, mean_auroc(runs, MAIN_READING)) for label, runs in arms.items()}
    units = "slides" if next(iter(arms.values()))[0].slides_known else "groups of identical patches"
    how = f", batch norm {READING_NAMES[MAIN_READING]}" if _any_batch_norm(plan, results) else ""
    bands = f", with 95 % bands from resampling {units} and seeds" if len(arms) <= MOST_BANDS else ""
    aurocs = "; ".join(f"{label} {mean.estimate:.4f}" for label, (_, mean) in means.items())
    pictures = [
        Picture(
            "all_arms",
            roc_of_arms_figure(means, MAIN_READING),
            f"ROC curves of all arms at their last checkpoints{how}: means over seeds{bands}.",
            f"ROC curves. AUROC: {aurocs}.",
        )
    ]
    rows = [
        ForestRow(answer.question, answer.difference, side_names(plan, answer.question))
        for answer in answers
        if answer.difference is not None and isfinite(answer.difference.standard_error)
    ]
    if rows:
        numbers = "; ".join(
            f"{METRIC_NAMES[row.question.metric]} of {' minus '.join(row.sides)} {row.difference.estimate:+.4f} "
            f"({interval_words(row.difference.interval())})"
            for row in rows
        )
        caption = "The difference that each question is about, with its 95 % interval; grey: the margin of equivalence."
        pictures.append(Picture("forest", forest_figure(rows), caption, f"{numbers}."))
    pictures += [Picture(*picture) for picture in backbone_pictures(plan, results, means)]
    for arm, seeds in results.items():
        published, label, runs = plan.published.get(arm), plan.arms[arm].label, list(seeds.values())
        if published is not None and published.roc_figure is not None:
            caption = f"Published figure {published.roc_figure} again, at the last checkpoint: {label}."
            figure = published_roc_figure(label, runs, published)
            alternative = f"ROC curves of {label}; {_reading_words(runs, 'auroc')}."
            pictures.append(Picture(f"roc_{arm}", figure, caption, alternative))
        if plan.arms[arm].command == "probe":  # what it logs are strengths of a penalty, or epochs of one layer
            continue
        again = f"Published figure {published.loss_figure} again: l" if published and published.loss_figure else "L"
        caption = f"{again}osses of {label}. Thin lines: each seed; thick lines: their mean."
        alternative = f"Losses of {label} over steps. At the last step: {_reading_words(runs, 'loss')}."
        pictures.append(Picture(f"loss_{arm}", loss_figure(label, runs, published), caption, alternative))
    return pictures


def _reading_words(runs: Sequence[RunResult], metric: Metric) -> str:
    names = runs[0].reading_names
    values = {reading: np.mean([run.metrics(reading)[metric] for run in runs]) for reading in names}
    return ", ".join(f"{METRIC_NAMES[metric]} {value:.3f} {names[reading]}" for reading, value in values.items())


def _picture_path(picture: Picture) -> str:
    """The path of a picture, relative to the pages."""
    return f"figures/{picture.name}.svg"


def _save(picture: Picture, folder: Path) -> str:
    """Write a figure as SVG and PNG; return the SVG as a data URI."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": picture.name}):  # else matplotlib draws new names of its parts each time
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
    path = folder / _picture_path(picture)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    with atomic_path(path.with_name(f"{picture.name}.png")) as temporary:
        picture.figure.savefig(temporary, format="png", dpi=150)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
