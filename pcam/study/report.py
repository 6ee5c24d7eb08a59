"""The report of a study, from the files of its runs alone."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from math import inf, log
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.figures import interval_words
from pcam.evaluation.metrics import cross_entropy
from pcam.evaluation.seeds import LEVEL, Inference, compare_arms, holm, infer_arm
from pcam.evaluation.statistics import delong_covariance, mean_covariance
from pcam.study.figures import forest_figure, loss_figure, published_roc_figure, roc_of_arms_figure
from pcam.study.plan import FIRST_READING, READING_NAMES, Plan, Question, Reading
from pcam.study.results import METRICS, RunResult
from pcam.study.runner import StudyFolder

MAIN_READING: Final[Reading] = "reestimated"
"""What the weights give, whatever the momentum was: the reading of figures that show one."""

PUBLISHED_READING: Final[Reading] = "momentum_0.001"
"""That of the published study."""

SIGNIFICANCE: Final = 1 - LEVEL

Results = Mapping[str, Mapping[int, RunResult]]
"""The runs that are done, by arm and seed; an arm without any is not there."""

Labels = Float64[np.ndarray, " patches"]
Logits = Float64[np.ndarray, "networks patches"]
Merits = tuple[Float64[np.ndarray, " networks"], Float64[np.ndarray, "networks networks"]]
"""How good networks are on the same patches, and how that varies together over patches."""

Measure = Callable[[Labels, Logits, Sequence[str]], Merits]

Side = tuple[Sequence[RunResult], Reading]
"""One side of a comparison: an arm's runs, in the order of seeds, and how they are read."""

Lags = list[tuple[str, int, dict[str, Inference]]]
"""An arm, its number of seeds, and what the lag of its batch norm adds to each metric."""


@dataclass(frozen=True)
class Sheet:
    """A table of the report, in words.

    Args:
        caption: What it shows.
        header: Of each column.
        rows: Words of each cell.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: Of its files.
        figure: The figure.
        caption: What it shows.
        alt: The same for who cannot see it, with its numbers.
    """

    name: str
    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Answer:
    """What the runs say to a question.

    Args:
        question: The question.
        seeds: That both arms have.
        difference: Of the arms' mean AUROCs; None if there is no such seed.
        p: Of the question's test; 1 if it could not be made.
        adjusted: The same, for all questions together.
    """

    question: Question
    seeds: Sequence[int]
    difference: Inference | None
    p: float
    adjusted: float


def write_report(plan: Plan, folder: StudyFolder) -> list[Path]:
    """Write `report.html`, `report.md`, CSVs and figures.

    Args:
        plan: The study.
        folder: Where its runs lie; its `report` is written.

    Returns:
        The two pages.

    Raises:
        UserError: If no run is done, or one is of another arm than the plan's or of other patches.
    """
    results = _collect(plan, folder)
    answers = _answer(plan, results)
    lags = _lags(plan, results)
    pictures = _pictures(plan, results, answers)
    sheets = {
        "arms": _arms_sheet(plan, results),
        "questions": _questions_sheet(plan, answers),
        "lag": _lag_sheet(plan, lags),
        "published": _published_sheet(plan, results),
        "changes": _changes_sheet(plan, results),
        "conditions": _conditions_sheet(plan, results),
    }
    tables = _tables(plan, results, answers, lags)
    for name, table in tables.items():
        with atomic_path(folder.report / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    sources = {picture.name: _save(picture, folder.report / "figures") for picture in pictures}
    context = {
        "plan": plan,
        "sheets": sheets,
        "pictures": {picture.name: picture for picture in pictures},
        "sources": sources,
        "answers": [(answer.question.text, _sentence(plan, answer)) for answer in answers],
        "claims": _claims(plan, results),
        "missing": _missing(plan, folder),
        "done": sum(len(seeds) for seeds in results.values()),
        "facts": _facts(results),
        "files": [f"{name}.csv" for name in tables],
    }
    pages = []
    for name in ("report.html", "report.md"):
        environment = Environment(
            autoescape=name.endswith(".html"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string((files("pcam.study") / f"{name}.j2").read_text())
        with atomic_path(folder.report / name) as temporary:
            temporary.write_text(template.render(context))
        pages.append(folder.report / name)
    return pages


def _collect(plan: Plan, folder: StudyFolder) -> Results:
    results: dict[str, dict[int, RunResult]] = {}
    for planned in plan.runs():
        path = folder.result(planned)
        if path is not None:
            folder.check_arm(plan, planned)
            results.setdefault(planned.arm, {})[planned.seed] = RunResult.read(path, plan.split)
    if not results:
        raise UserError(
            f"Expected at least one run that is done in {folder.runs}, but found none; run the study without "
            f"--report-only."
        )
    ordered = {arm: results[arm] for arm in plan.arms if arm in results}
    runs = [run for seeds in ordered.values() for run in seeds.values()]
    first = runs[0]
    for run in runs[1:]:
        for use, print_of in {"measured": _measured_on, "trained": _trained_on}.items():
            if print_of(run) != print_of(first):
                raise UserError(
                    f"Expected all runs of a study to be {use} on the same patches, but those of {run.folder} are not "
                    f"those of {first.folder}; move one of them away."
                )
    return ordered


def _measured_on(run: RunResult) -> str:
    fingerprint: str = run.record["data_fingerprint"]
    return fingerprint


def _trained_on(run: RunResult) -> str:
    fingerprint: str = run.record["environment"]["data_fingerprints"]["train"]
    return fingerprint


def _missing(plan: Plan, folder: StudyFolder) -> list[tuple[str, str]]:
    """The runs that are not done, and why; seeds of an arm with the same reason together."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for run in plan.runs():
        if folder.result(run) is None:
            failure = folder.failure(run)
            reason = failure.read_text().strip() if failure.exists() else "not trained yet"
            seeds.setdefault((plan.arms[run.arm].label, reason), []).append(run.seed)
    return [
        (f"{label}, seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}", reason)
        for (label, reason), numbers in seeds.items()
    ]


def _answer(plan: Plan, results: Results) -> list[Answer]:
    differences: list[tuple[list[int], Inference | None]] = []
    for question in plan.questions:
        seeds = sorted(results.get(question.arm, {}).keys() & results.get(question.other, {}).keys())
        if not seeds:
            differences.append((seeds, None))
            continue
        first, second = (
            ([results[arm][seed] for seed in seeds], reading)
            for arm, reading in zip((question.arm, question.other), question.readings, strict=True)
        )
        differences.append((seeds, _compare(first, second, delong_covariance)))
    p_values = [
        1.0
        if difference is None
        else difference.p_difference()
        if question.margin is None
        else difference.p_equivalence(question.margin)
        for question, (_, difference) in zip(plan.questions, differences, strict=True)
    ]
    adjusted = holm(np.array(p_values)).tolist()
    rows = zip(plan.questions, differences, p_values, adjusted, strict=True)
    return [Answer(question, seeds, difference, p, holm_p) for question, (seeds, difference), p, holm_p in rows]


def _compare(first: Side, second: Side, measure: Measure, bounds: tuple[float, float] = (-1.0, 1.0)) -> Inference:
    """Compare two arms, or two readings of one, at the same seeds."""
    logits = np.stack([run.logits(reading) for runs, reading in (first, second) for run in runs])
    merits, covariance = measure(first[0][0].labels, logits, first[0][0].units)
    shape = (2, len(first[0]))
    return compare_arms(merits.reshape(shape), covariance.reshape(*shape, *shape), bounds)


def _losses(labels: Labels, logits: Logits, units: Sequence[str]) -> Merits:
    return mean_covariance(np.stack([cross_entropy(labels, row) for row in logits]), units)


def _accuracies(labels: Labels, logits: Logits, units: Sequence[str]) -> Merits:
    return mean_covariance(((logits > 0) == labels).astype(np.float64), units)


def _mean(runs: Sequence[RunResult], reading: Reading) -> Inference:
    logits = np.stack([run.logits(reading) for run in runs])
    return infer_arm(*delong_covariance(runs[0].labels, logits, runs[0].units))


def _sentence(plan: Plan, answer: Answer) -> str:
    question, difference = answer.question, answer.difference
    one, other = (f"{label} ({reading})" if reading else label for label, reading in _named(plan, question))
    if difference is None:
        return f"Not answered: no seed of both {one} and {other} is done."
    by = abs(difference.estimate)
    numbers = f"difference {difference.estimate:+.4f}, 95 % interval {_signed(difference.interval())}"
    seeds = f"{len(answer.seeds)} seed{'s' if len(answer.seeds) > 1 else ''}"
    p_words = f"{_p_words(answer.p)}, after Holm {_p_words(answer.adjusted)}; {seeds}"
    only = "" if len(answer.seeds) > 1 else " One seed: the interval counts the patches only, not the seed."
    found = answer.adjusted < SIGNIFICANCE
    if question.margin is None:
        if found:
            more = "higher" if difference.estimate > 0 else "lower"
            return f"They differ: {one} has a {more} AUROC than {other}, by {by:.4f} ({numbers}; {p_words}).{only}"
        return (
            f"Not shown: {one} and {other} may differ or not ({numbers}; {p_words}). Asked alone, a difference of "
            f"about {difference.detectable():.4f} would have been found four times out of five.{only}"
        )
    ninety = f"90 % interval {_signed(difference.interval(2 * LEVEL - 1))}"
    if found:
        return (
            f"Yes: {one} and {other} are as good as each other within {question.margin} of AUROC ({numbers}, {ninety}; "
            f"{p_words}).{only}"
        )
    low, high = difference.interval()
    if low > question.margin or high < -question.margin:
        better = one if difference.estimate > 0 else other
        return f"No: {better} is better by more than {question.margin}, by its interval ({numbers}; {seeds}).{only}"
    return (
        f"Not shown: whether {one} and {other} are as good as each other within {question.margin} of AUROC is open "
        f"({numbers}, {ninety}; {p_words}).{only}"
    )


def _claims(plan: Plan, results: Results) -> list[str]:
    """What each published arm with batch norm shows of its cause, in a sentence."""
    claims = []
    for arm, runs in results.items():
        if arm in plan.published and plan.arms[arm].batch_norm_readings:
            means = {
                reading: {name: np.mean([run.metrics(reading)[name] for run in runs.values()]) for name in METRICS}
                for reading in (PUBLISHED_READING, MAIN_READING, FIRST_READING)
            }
            lagging, true = means[PUBLISHED_READING], means[MAIN_READING]
            steps = next(iter(runs.values())).record["step"]
            lag = f"a loss of {lagging['loss']:.3f} (ln 2 is {log(2):.3f}) and an AUROC of {lagging['auroc']:.3f}"
            claims.append(
                f"{plan.arms[arm].label}: with the statistics of momentum 0.001, the weights after {steps:,} steps "
                f"validate at {lag}; the same weights with re-estimated statistics at {true['loss']:.3f} and "
                f"{true['auroc']:.3f}, with those of momentum 0.1 at {means[FIRST_READING]['loss']:.3f} and "
                f"{means[FIRST_READING]['auroc']:.3f}."
            )
    return claims


def _lags(plan: Plan, results: Results) -> Lags:
    """What evaluation with the published study's statistics adds to each metric of the same weights.

    Returns:
        Name, number of seeds, and each metric's difference, of every arm whose batch norm is read in all ways.
    """
    measures: dict[str, tuple[Measure, tuple[float, float]]] = {
        "loss": (_losses, (-inf, inf)),
        "accuracy": (_accuracies, (-1.0, 1.0)),
        "auroc": (delong_covariance, (-1.0, 1.0)),
    }
    lags = []
    for arm, seeds in results.items():
        if plan.arms[arm].batch_norm_readings:
            runs = list(seeds.values())
            lagging, current = (runs, PUBLISHED_READING), (runs, MAIN_READING)
            found = {name: _compare(lagging, current, measure, bounds) for name, (measure, bounds) in measures.items()}
            lags.append((arm, len(runs), found))
    return lags


def _lag_sheet(plan: Plan, lags: Lags) -> Sheet:
    rows = [
        [plan.arms[arm].label, str(seeds)]
        + [f"{lag.estimate:+.4f} ({_signed(lag.interval())})" for lag in found.values()]
        for arm, seeds, found in lags
    ]
    return Sheet(
        f"What the lag does at the last checkpoint, the weights the same: {READING_NAMES[PUBLISHED_READING]} less "
        f"{READING_NAMES[MAIN_READING]}. Means over seeds, with 95 % intervals that count patches and seeds; with one "
        f"seed, patches only. Beside the questions, and not corrected with them.",
        ["arm", "seeds", "loss", "accuracy", "AUROC"],
        rows,
    )


def _arms_sheet(plan: Plan, results: Results) -> Sheet:
    rows = []
    for arm, seeds in results.items():
        runs = list(seeds.values())
        for reading, name in runs[0].reading_names.items():
            mean = _mean(runs, reading)
            spread = [_spread([run.metrics(reading)[metric] for run in runs]) for metric in METRICS]
            words = [plan.arms[arm].label, name, str(len(runs)), spread[0], interval_words(mean.interval())]
            rows.append(words + spread[1:])
    return Sheet(
        f"Every arm on {plan.split}, at its last checkpoint: mean and standard deviation over seeds. The interval of "
        f"the mean AUROC counts patches and seeds; with one seed, patches only.",
        ["arm", "read", "seeds", "AUROC", "95 % interval", "average precision", "accuracy", "loss"],
        rows,
    )


def _questions_sheet(plan: Plan, answers: Sequence[Answer]) -> Sheet:
    rows = []
    for answer in answers:
        difference, question = answer.difference, answer.question
        test = "difference" if question.margin is None else f"equivalence within {question.margin}"
        if difference is None:
            rows.append([question.text, test, "0", *["not run"] * 5])
        else:
            numbers = [f"{difference.estimate:+.4f}", _signed(difference.interval())]
            p_values = [_p_words(answer.p), _p_words(answer.adjusted)]
            seeds = str(len(answer.seeds))
            detectable = f"{difference.detectable():.4f}" if question.margin is None else "-"
            rows.append([question.text, test, seeds, *numbers, *p_values, detectable])
    return Sheet(
        "The questions, fixed before anything ran. Detectable: about the true difference that a test of this question "
        "alone, at 5 %, finds four times out of five.",
        ["question", "test", "seeds", "difference of AUROC", "95 % interval", "p", "p after Holm", "detectable"],
        rows,
    )


def _published_sheet(plan: Plan, results: Results) -> Sheet:
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
        words = [_spread([choice[name] for choice in chosen], 3) for name in ("auroc", "loss", "accuracy")]
        steps = ", ".join(f"{choice['step']:,.0f}" for choice in chosen)
        readings = plan.arms[arm].batch_norm_readings
        how = f", {READING_NAMES[PUBLISHED_READING]}" if readings else ""
        rows.append([label, f"ours, lowest validation loss{how}", *words, steps])
        words = [
            _spread([run.metrics(MAIN_READING)[name] for run in runs], 3) for name in ("auroc", "loss", "accuracy")
        ]
        how = f", {READING_NAMES[MAIN_READING]}" if readings else ""
        last = ", ".join(sorted({f"{run.record['step']:,}" for run in runs}))
        rows.append([label, f"ours, last checkpoint{how}", *words, last])
    return Sheet(
        "The published results and ours. The published study chose the checkpoint with the lowest validation loss "
        "('published selection'), with the statistics of momentum 0.001.",
        ["arm", "what", "AUROC", "loss", "accuracy", "at step"],
        rows,
    )


def _changes_sheet(plan: Plan, results: Results) -> Sheet:
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
        words = [_spread([a[name] - b[name] for a, b in chosen], 4, sign=True) for name in ("loss", "accuracy")]
        rows.append([title, f"ours, published selection, {READING_NAMES[PUBLISHED_READING]}", *words])
        last = [tuple(run.metrics(MAIN_READING) for run in pair) for pair in pairs]
        words = [_spread([a[name] - b[name] for a, b in last], 4, sign=True) for name in ("loss", "accuracy")]
        rows.append([title, f"ours, last checkpoint, {READING_NAMES[MAIN_READING]}", *words])
    notes = " ".join(table.note for table in plan.published_tables if table.note)
    return Sheet(
        f"The published tables and ours: what the change does to validation loss and accuracy. {notes}".strip(),
        ["table", "what", "loss", "accuracy"],
        rows,
    )


def _conditions_sheet(plan: Plan, results: Results) -> Sheet:
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
    return Sheet(
        "The runs. A pass is once over all training patches; seconds are those of training with its validations.",
        ["arm", "seed", "steps", "passes", "seconds", "device", "threads", "versions", "commit"],
        rows,
    )


def _facts(results: Results) -> dict[str, str | bool]:
    run = next(iter(next(iter(results.values())).values()))
    return {
        "patches": f"{len(run.labels):,}",
        "tumour": f"{run.labels.mean():.1%}",
        "units": f"{len(set(run.units)):,} {'slides' if run.slides_known else 'groups of identical patches'}",
        "train_patches": f"{run.record['train_patches']:,}",
        "fingerprint": run.record["data_fingerprint"],
        "slides_known": run.slides_known,
    }


def _pictures(plan: Plan, results: Results, answers: Sequence[Answer]) -> list[Picture]:
    arms = {plan.arms[arm].label: list(seeds.values()) for arm, seeds in results.items()}
    means = {label: (runs, _mean(runs, MAIN_READING)) for label, runs in arms.items()}
    batch_norm_read = any(arm.batch_norm_readings for arm in plan.arms.values())
    how = f", batch norm {READING_NAMES[MAIN_READING]}" if batch_norm_read else ""
    runs = next(iter(arms.values()))
    aurocs = "; ".join(f"{label} {mean.estimate:.4f}" for label, (_, mean) in means.items())
    pictures = [
        Picture(
            "roc_arms",
            roc_of_arms_figure(means, MAIN_READING),
            f"ROC of all arms at their last checkpoints{how}: means over seeds, with 95 % bands from resampling "
            f"{'slides' if runs[0].slides_known else 'groups of identical patches'} and seeds.",
            f"ROC curves. AUROC: {aurocs}.",
        )
    ]
    answered = [
        (
            answer.question,
            answer.difference,
            "\nminus ".join(", ".join(filter(None, side)) for side in _named(plan, answer.question)),
        )
        for answer in answers
        if answer.difference is not None
    ]
    if answered:
        numbers = "; ".join(
            f"{label.replace(chr(10), ' ')} {difference.estimate:+.4f} ({_signed(difference.interval())})"
            for _, difference, label in answered
        )
        pictures.append(
            Picture("forest", forest_figure(answered), "The difference that each question is about.", f"{numbers}.")
        )
    for arm, seeds in results.items():
        published, label, runs = plan.published.get(arm), plan.arms[arm].label, list(seeds.values())
        if published is not None and published.roc_figure is not None:
            caption = f"Published figure {published.roc_figure} again, at the last checkpoint: {label}."
            figure = published_roc_figure(label, runs, published)
            pictures.append(Picture(f"roc_{arm}", figure, caption, f"ROC curves of {label}; {_reading_words(runs)}."))
        again = f"Published figure {published.loss_figure} again: " if published and published.loss_figure else ""
        caption = f"{again}losses of {label}. Thin: each seed; thick: their mean."
        alt = f"Losses over steps. At the last step: {_reading_words(runs, 'loss')}."
        pictures.append(Picture(f"loss_{arm}", loss_figure(label, runs, published), caption, alt))
    return pictures


def _named(plan: Plan, question: Question) -> list[tuple[str, str]]:
    """Label and reading of both sides of a question; no reading where it goes without saying."""
    return [
        (plan.arms[arm].label, READING_NAMES[reading] if question.other_reading or reading == "stain_shifted" else "")
        for arm, reading in zip((question.arm, question.other), question.readings, strict=True)
    ]


def _reading_words(runs: Sequence[RunResult], name: str = "auroc") -> str:
    names = runs[0].reading_names
    values = {reading: np.mean([run.metrics(reading)[name] for run in runs]) for reading in names}
    return ", ".join(f"{name} {value:.3f} {names[reading]}" for reading, value in values.items())


def _tables(plan: Plan, results: Results, answers: Sequence[Answer], lags: Lags) -> dict[str, pd.DataFrame]:
    """Every number at full precision; no table that would be empty."""
    runs = [
        {"arm": arm, "seed": seed, "reading": reading, "step": run.record["step"], "seconds": run.record["seconds"]}
        | run.metrics(reading)
        | {f"published_selection_{name}": value for name, value in run.published_selection(reading).items()}
        for arm, seeds in results.items()
        for seed, run in seeds.items()
        for reading in run.reading_names
    ]
    arms = []
    for arm, seeds in results.items():
        members = list(seeds.values())
        for reading in members[0].record["readings"]:
            mean = _mean(members, reading)
            low, high = mean.interval()
            arms.append({"arm": arm, "reading": reading, "seeds": len(members), "auroc_low": low, "auroc_high": high})
            for name in METRICS:
                values = np.array([run.metrics(reading)[name] for run in members])
                arms[-1] |= {f"{name}_mean": values.mean(), f"{name}_sd": _deviation(values)}
    questions = [
        asdict(answer.question)
        | {"seeds": len(answer.seeds), "p": answer.p, "p_holm": answer.adjusted}
        | (_inference_row(answer.difference) if answer.difference is not None else {})
        | {"answer": _sentence(plan, answer)}
        for answer in answers
    ]
    curves = [
        run.curves.assign(arm=arm, seed=seed)[["arm", "seed", *run.curves.columns]]
        for arm, seeds in results.items()
        for seed, run in seeds.items()
    ]
    lag_rows = [
        {"arm": arm, "metric": name, "seeds": seeds} | _inference_row(lag)
        for arm, seeds, found in lags
        for name, lag in found.items()
    ]
    tables: dict[str, list[dict[str, Any]]] = {"runs": runs, "arms": arms, "questions": questions, "lag": lag_rows}
    return {name: pd.DataFrame(rows) for name, rows in tables.items() if rows} | {"curves": pd.concat(curves)}


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


def _save(picture: Picture, folder: Path) -> str:
    """Write a figure as SVG and PNG; return it as a data URI."""
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
    with atomic_path(folder / f"{picture.name}.svg") as temporary:
        temporary.write_bytes(buffer.getvalue())
    with atomic_path(folder / f"{picture.name}.png") as temporary:
        picture.figure.savefig(temporary, format="png", dpi=150)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _spread(values: Sequence[float], digits: int = 4, sign: bool = False) -> str:
    mean = f"{np.mean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {_deviation(np.array(values)):.{digits}f}"


def _deviation(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _signed(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _p_words(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")
