#!/usr/bin/env python
"""Measure a trained classifier on a split.

python scripts/evaluate.py lightning_logs/imagenet_dropout/version_0 --split test
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pcam.atomic import atomic_path
from pcam.cli import Arguments, Parser, front_door, load_run
from pcam.evaluation.figures import patch_grid, precision_recall_figure, roc_figure
from pcam.evaluation.metrics import measure
from pcam.patches import SplitName
from pcam.training.run_folder import CheckpointName, RunFolder

WORST_PATCHES = 24
"""Patches in the figure of the worst mistakes."""


@dataclass(frozen=True)
class DataPlace:
    """Where the patches are, if not where the run's config says.

    Args:
        root: Folder with the data; null is the folder that the run was trained on.
    """

    root: Path | None = None


def evaluate(
    run: Path, split: SplitName = "valid", checkpoint: CheckpointName = "best", data: DataPlace = DataPlace()
) -> None:
    """Measure a trained classifier on a split.

    Writes `metrics.json`, `predictions.csv` and the figures to `RUN/evaluation/<split>/`, and prints a table.

    Args:
        run: The run folder.
        split: Which split to measure on. The test split is read only when asked for.
        checkpoint: Which checkpoint to measure: the best by the experiment's `monitor`, or the last.
        data: Where the patches are.
    """
    folder = RunFolder.find(run)
    cli = load_run(folder, checkpoint, data.root)
    predictions = cli.predict(split)
    metrics = measure(predictions)
    output = folder.evaluation(split)
    store = cli.datamodule.packed(split)
    record = {
        "split": split,
        "checkpoint": checkpoint,
        "step": cli.checkpoint_step,
        "patches": len(predictions.ids),
        "positives": int(predictions.labels.sum()),
        "data_root": str(cli.datamodule.root),
        "data_fingerprint": store.fingerprint,
        "metrics": metrics,
    }
    predictions.write(output / "predictions.csv")
    labels, scores = torch.from_numpy(predictions.labels).long(), torch.from_numpy(predictions.scores)
    worst = (labels - scores).abs().argsort(descending=True, stable=True)[:WORST_PATCHES]
    figures = {
        "roc": roc_figure(scores, labels),
        "precision_recall": precision_recall_figure(scores, labels),
        "worst_patches": patch_grid(store[worst.numpy()].patches, scores[worst], labels[worst]),
    }
    for name, figure in figures.items():
        with atomic_path(output / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    # Last: its presence says that all the rest is there.
    with atomic_path(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    table = Table(title=f"{folder.path}, {checkpoint}.ckpt (step {cli.checkpoint_step:,})")
    table.add_column("metric")
    table.add_column(f"{split}, {len(predictions.ids):,} patches", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
    print(f"Predictions and figures: {output}")


@front_door
def main(args: Arguments = None) -> None:
    """Measure a trained classifier on a split.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Measure a trained classifier on a split.")
    parser.add_function_arguments(evaluate, as_positional=True)
    evaluate(**parser.instantiate_classes(parser.parse_args(args)))


if __name__ == "__main__":
    main()
