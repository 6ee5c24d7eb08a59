"""The report of a study: its pages, its tables and its figures, with the words that explain them."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pcam.atomic import atomic_path
from pcam.evaluation import figures as evaluation_figures
from pcam.study.analysis import (
    LAG_METRICS,
    Answer,
    Lag,
    Results,
    answer_questions,
    arm_mean,
    collect_results,
    find_missing,
    measure_lags,
    number_tables,
    shown_readings,
)
from pcam.study.growth import fit_growths
from pcam.study.pages import Block, picture_block, render_html, render_markdown, table_block
from pcam.study.pictures import PUBLISHED_METRICS, Picture, any_batch_norm, draw_pictures
from pcam.study.plan import METRIC_NAMES, Plan
from pcam.study.readings import MAIN_READING, PUBLISHED_READING, READING_MOMENTA, READING_NAMES, Reading
from pcam.study.results import METRICS
from pcam.study.runner import StudyFolder
from pcam.study.sentences import (
    METRIC_MEANINGS,
    METRIC_UNITS,
    AnswerWords,
    answer_words,
    claims,
    growth_words,
    interval_words,
    lag_words,
    missing_words,
    p_words,
    seeds_words,
    spread_words,
)
from pcam.terminal import joined

OFFICIAL_TRAIN_PATCHES: Final = 262_144
"""The training patches of PatchCamelyon in its official form, on which most published networks were trained."""


def write_report(plan: Plan, folder: StudyFolder, page: Path | None = None) -> list[Path]:
    """Write `report.html`, `report.md`, the tables as CSV and the figures.

    Args:
        plan: The study.
        folder: The folder of the study, whose results are read and whose report is written.
        page: Where else to write the Markdown page; its figures go into the folder `images` beside it, under the name
            of the page and their own.

    Returns:
        The paths of the pages.

    Raises:
        UserError: If no run is done, if one was trained with other options than its arm has, or if runs were trained
            or measured on different patches.
    """
    results = collect_results(plan, folder)
    answers, lags = answer_questions(plan, results), measure_lags(plan, results)
    words = [answer_words(plan, answer) for answer in answers]
    growths = fit_growths(plan, results)
    tables = number_tables(plan, results, answers, lags)
    if answers:
        tables["questions"] = tables["questions"].assign(answer=[answer.plain for answer in words])
    for name, table in tables.items():
        with atomic_path(folder.report / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    pictures = draw_pictures(plan, results, answers, growths)
    sources = {picture.path: picture.save(folder.report) for picture in pictures}
    context = _context(plan, folder, results, answers, lags, words, pictures, list(tables))
    context |= {"growths": [growth_words(fit) for fit in growths]}
    text = render_markdown("report.md.j2", context | {"command": ""})
    html = render_html(plan.title, text, {name: _data_uri(source) for name, source in sources.items()})
    pages = {folder.report / "report.html": html, folder.report / "report.md": text}
    if page is not None:
        command = (
            f"pcam study --config {plan.name} --report_only --results {folder.results.path.as_posix()} --page "
            f"{page.as_posix()}"
        )
        text = render_markdown("report.md.j2", context | {"command": Block(command)})
        for name, source in sources.items():
            published = f"images/{page.stem}_{Path(name).name}"
            text = text.replace(f"]({quote(name)})", f"]({quote(published)})")
            with atomic_path(page.parent / published) as temporary:
                temporary.write_bytes(source)
        pages[page] = text
    for path, content in pages.items():
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return list(pages)


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
    blocks = {picture.name: picture_block(picture.path, picture.caption, picture.alternative) for picture in pictures}
    asked = {question.metric for question in plan.questions} | {result.metric for result in plan.published_results}
    return {
        "plan": plan,
        "runs": len(plan.runs()),
        "done": sum(len(seeds) for seeds in results.values()),
        "seeds": seeds_words(plan),
        "missing": [missing_words(plan, missing) for missing in find_missing(plan, folder)],
        "answers": list(zip(plan.questions, words, strict=True)),
        "claims": claims(plan, results),
        "lag": lag_words(results, lags) if lags else "",
        "metrics": [METRIC_MEANINGS[metric] for metric in METRIC_MEANINGS if metric in asked],
        "conclusions": [
            (conclusion, [(plan.questions[number - 1], words[number - 1]) for number in conclusion.questions])
            for conclusion in plan.conclusions
        ],
        "forest": blocks.pop("forest", None),
        "growth": blocks.pop("growth", None),
        "readings": blocks.pop("readings", None),
        "published": blocks.pop("published", None),
        "all_arms": blocks.pop("all_arms"),
        "pictures": list(blocks.values()),
        "questions_table": _questions_table(answers),
        "lag_table": _lag_table(plan, lags),
        "published_table": _published_table(plan, results),
        "changes_table": _changes_table(plan, results),
        "elsewhere_tables": _elsewhere_tables(plan, results),
        "arms_table": _arms_table(plan, results),
        "conditions_table": _conditions_table(plan, results),
        "patches": f"{len(run.labels):,}",
        "tumour": f"{100 * run.labels.mean():.1f} %",
        "units": f"{len(set(run.units)):,} {'slides' if run.slides_known else 'groups of identical patches'}",
        "train_patches": _train_patches_words(results),
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
        for reading, name in shown_readings(plan, runs[0]).items():
            mean = arm_mean(runs, reading)
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
    lag = f", with batch-norm statistics of momentum {momentum:g}" if any_batch_norm(plan, results) else ""
    return table_block(
        f"The published results and ours. The published study chose the checkpoint with the lowest validation loss "
        f"('published selection'){lag}.",
        ["arm", "what", "AUROC", "loss", "accuracy", "at step"],
        rows,
    )


def _elsewhere_tables(plan: Plan, results: Results) -> list[Block]:
    """Rank what others report among the arms, in one table for each metric that they report."""
    tables = []
    for metric in dict.fromkeys(result.metric for result in plan.published_results):
        rows = [
            (result.value, [result.label, "published", f"{result.value:.4g}", "not published", result.source])
            for result in plan.published_results
            if result.metric == metric
        ]
        for arm, seeds in results.items():
            mean = arm_mean(list(seeds.values()), MAIN_READING, metric)
            interval = evaluation_figures.interval_words(mean.interval())
            number = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            words = [plan.arms[arm].label, f"ours, {number}", f"{mean.estimate:.4f}", interval, "this study"]
            rows.append((mean.estimate, words))
        name = METRIC_NAMES[metric]
        caption = (
            f"{name[0].upper()}{name[1:]}: what others published, and ours, the best first. Ours were trained on "
            f"{_train_patches_words(results)} of the {OFFICIAL_TRAIN_PATCHES:,} training patches of "
            f"PatchCamelyon and measured on {plan.split}: means over seeds, with intervals that count patches and "
            f"seeds; with one seed, patches only. Published values are as their sources have them; where patches or "
            f"protocol differ from ours, so do the values."
        )
        rows.sort(key=lambda row: row[0], reverse=metric != "loss")
        header = ["network", "whose", name, "95 % interval", "source"]
        tables.append(table_block(caption, header, [words for _, words in rows]))
    return tables


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


def _train_patches_words(results: Results) -> str:
    """List the numbers of patches that runs were trained on, as "500, 5,000 or 20,000"."""
    numbers = sorted({run.record["train_patches"] for seeds in results.values() for run in seeds.values()})
    return joined([f"{number:,}" for number in numbers], "or")


def _how(plan: Plan, arm: str, reading: Reading) -> str:
    """Name the reading of an arm after a comma, if its batch norm is read in several ways."""
    return f", {READING_NAMES[reading]}" if plan.arms[arm].batch_norm_readings else ""


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
