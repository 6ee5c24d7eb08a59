"""A study of backbones: what each costs, and how it learns from few patches, in facts and in figures."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pcam.evaluation.seeds import Inference
from pcam.options import SplitName
from pcam.probe.few_shot import few_shot_figure
from pcam.probe.run import FACTS_FILE
from pcam.run_folder import read_json
from pcam.study.analysis import Results
from pcam.study.plan import Plan
from pcam.study.results import RunResult
from pcam.trained import TrainedRun

TIMED_PATCHES: Final = 256
"""Patches that a network is timed on, after some that do not count."""

Pictured = tuple[str, Figure, str, str]
"""The name of a figure's files, the figure, its caption, and the same in words."""


def measure_backbone(trained: TrainedRun, split: SplitName) -> dict[str, Any]:
    """Measure what a network costs, and read what its probe has found out beside its linear unit.

    Args:
        trained: A run that is done.
        split: The split whose patches it is timed on.

    Returns:
        Facts for the record of the run: the number of parameters, seconds a patch, and for a probe how often it has
        seen the training patches, and its few-shot curve if there is one.
    """
    patches = trained.data.packed(split).patches[:TIMED_PATCHES]
    trained.logits(patches[:64])
    started = time.monotonic()
    trained.logits(patches)
    facts: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in trained.network.parameters()),
        "seconds_per_patch": (time.monotonic() - started) / len(patches),
    }
    probe = trained.folder.path / FACTS_FILE
    if probe.exists():
        facts["passes"] = read_json(probe, "probe")["passes"]
    folder = trained.folder.evaluation(split)
    curve = folder.with_name(f"{folder.name}_embeddings") / "few_shot.csv"
    if curve.exists():
        facts["few_shot"] = pd.read_csv(curve).to_dict("records")
    return facts


def backbone_pictures(
    plan: Plan, results: Results, means: Mapping[str, tuple[Sequence[RunResult], Inference]]
) -> list[Pictured]:
    """Draw what the arms of a study with probes reach and cost.

    Args:
        plan: The study.
        results: The runs that are done.
        means: The runs and the mean AUROC of each arm, by its label.

    Returns:
        AUROC against parameters and against seconds a patch, and few-shot curves if there are any; nothing for a study
        without probes.
    """
    if not any(plan.arms[arm].command == "probe" for arm in results):
        return []
    costs = {"parameters": "parameters", "seconds_per_patch": "seconds a patch"}
    known = {
        label: (mean, {cost: float(np.mean([run.record[cost] for run in runs])) for cost in costs})
        for label, (runs, mean) in means.items()
        if all(cost in run.record for run in runs for cost in costs)
    }
    pictures: list[Pictured] = []
    for cost, words in costs.items() if known else ():
        numbers = "; ".join(
            f"{label} {mean.estimate:.4f} at {values[cost]:.3g}" for label, (mean, values) in known.items()
        )
        pictures.append(
            (
                f"auroc_by_{cost}",
                _cost_figure({label: (mean, values[cost]) for label, (mean, values) in known.items()}, words),
                f"Mean AUROC on {plan.split} with 95 % intervals, against {words} of the whole network.",
                f"AUROC against {words}: {numbers}.",
            )
        )
    curves = [
        (label, pd.DataFrame(found)) for label, (runs, _) in means.items() if (found := runs[0].record.get("few_shot"))
    ]
    if curves:
        last = "; ".join(
            f"{label} {table['auroc'].iloc[0]:.3f} to {table['auroc'].iloc[-1]:.3f}" for label, table in curves
        )
        caption = (
            "Probes of a few training patches of each class: mean AUROC over draws, and bands from the 2.5th to the "
            "97.5th percentile of draws. They do not count that other patches would have been measured on."
        )
        figure = few_shot_figure(curves, plan.split)
        pictures.append(("few_shot", figure, caption, f"AUROC from the fewest to the most patches: {last}."))
    return pictures


def _cost_figure(points: Mapping[str, tuple[Inference, float]], words: str) -> Figure:
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (label, (mean, cost)) in enumerate(points.items()):
        low, high = mean.interval()
        letter = chr(ord("A") + number % 26)
        axes.plot([cost, cost], [low, high], color="#0072B2", linewidth=1.2)
        axes.plot(cost, mean.estimate, "o", color="#0072B2", label=f"{letter}: {label.replace('$', '')}")
        axes.annotate(letter, (cost, mean.estimate), xytext=(5, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set(xlabel=words, ylabel="AUROC (95 % interval)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2, handlelength=0, markerscale=0)
    return figure
