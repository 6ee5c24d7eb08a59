#!/usr/bin/env python
"""Measure trained classifiers on a split, and compare them.

python scripts/evaluate.py lightning_logs/imagenet_dropout/version_0 --split test
python scripts/evaluate.py lightning_logs/imagenet_*/version_0 --split test --ensemble
"""

from collections.abc import Sequence
from pathlib import Path

from pcam.cli import (
    AS_TRAINED,
    Arguments,
    DataPlace,
    Parser,
    PCamCLI,
    check_same_patches,
    front_door,
    load_run,
)
from pcam.errors import UserError
from pcam.evaluation.metrics import Choices, measure
from pcam.evaluation.predictions import SymmetryAverage, average_scores, check_finite
from pcam.evaluation.report import System, compare, print_details, write_results
from pcam.models.batch_norm import REESTIMATION_PATCHES, reestimate_batch_norm
from pcam.options import CheckpointName, Precision, SplitName
from pcam.run_folder import RunFolder, run_names


def evaluate(
    runs: list[Path],
    split: SplitName = "valid",
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    reestimate_bn: bool = False,
    ensemble: bool = False,
    precision: Precision = "32-true",
    data: DataPlace = AS_TRAINED,
) -> None:
    """Measure trained classifiers on the valid split, and on another if asked for.

    Thresholds and the temperature are always chosen on the valid split. Writes `metrics.json`, `predictions.csv`, the
    figures and TensorBoard events to `RUN/evaluation/<split>/`, and prints tables. With several runs (or variants of
    one), the comparison goes to `<split>_comparison/` in the first.

    Args:
        runs: The run folders.
        split: Which split to measure on. The test split is read only when asked for.
        checkpoint: Which checkpoint to measure: the best by the experiment's `monitor`, or the last.
        tta: Whether each score is the mean over the eight symmetries of the square (`<split>_tta/`).
        reestimate_bn: Whether to measure, beside each run, what it is with batch norm's running statistics estimated
            anew on un-augmented training patches (`<split>_bn/`).
        ensemble: Whether to measure the mean of the runs' scores as well (`<split>_ensemble/` in the first).
        precision: "32-true", or "bf16-mixed" (`<split>_bf16/`): convolutions in bfloat16, faster where the processor
            computes in it; moves scores in their third digit.
        data: Where the patches are.
    """
    if ensemble and len(runs) < 2:
        raise UserError("Expected at least two runs for --ensemble, but found 1; name another, or leave it out.")
    splits: list[SplitName] = ["valid"] if split == "valid" else ["valid", split]
    folders = [RunFolder.find(run) for run in runs]
    suffix = ("_tta" if tta else "") + ("_bf16" if precision == "bf16-mixed" else "")
    loaded = {
        bn: [load_run(folder, checkpoint, data.root, precision) for folder in folders]
        for bn in (["", "_bn"] if reestimate_bn else [""])
    }
    check_same_patches(folders, loaded[""], splits)
    for cli in loaded.get("_bn", []):
        device = cli.trainer.strategy.root_device
        network = cli.model.network.to(device)
        reestimate_batch_norm(network, cli.datamodule.training_patches(REESTIMATION_PATCHES, device))
    systems: list[System] = []
    for bn, clis in loaded.items():
        members = [
            _predict(name, folder, bn + suffix, cli, splits)
            for name, folder, cli in zip(run_names(folders), folders, clis, strict=True)
        ]
        systems += members
        if ensemble:
            systems.append(_ensemble(members, "_ensemble" + bn + suffix))
    results = []
    for system in systems:
        choices = Choices.on(system.predictions["valid"])
        measurements = {name: measure(system.predictions[name], choices) for name in splits}
        for name, measurement in measurements.items():
            write_results(system, name, checkpoint, choices, measurement)
        results.append((system, measurements[split]))
    if len(systems) == 1:
        print_details(systems[0], choices, measurements)
    else:
        compare(results, split, folders[0].evaluation(split).with_name(f"{split}_comparison{suffix}"))
    print("Predictions and figures:", *(system.output(name) for system in systems for name in splits), sep="\n  ")


def _predict(name: str, folder: RunFolder, variant: str, cli: PCamCLI, splits: Sequence[SplitName]) -> System:
    if "_tta" in variant:
        cli.model.network = SymmetryAverage(cli.model.network)
    predictions = {split: cli.predict(split) for split in splits}
    for split, predicted in predictions.items():
        check_finite(predicted.logits, f"{folder.path} on {split}")
    labels = {"_bn": "re-estimated bn", "_tta": "tta", "_bf16": "bf16"}
    return System(
        name=", ".join([name, *(label for key, label in labels.items() if key in variant)]),
        run=folder,
        variant=variant,
        step=cli.checkpoint_step,
        data_root=cli.datamodule.root,
        stores={split: cli.datamodule.packed(split) for split in splits},
        predictions=predictions,
    )


def _ensemble(members: Sequence[System], variant: str) -> System:
    first = members[0]
    predictions = {split: average_scores([member.predictions[split] for member in members]) for split in first.stores}
    name = ", ".join([f"ensemble of {len(members)}", *first.name.split(", ")[1:]])
    return System(name, first.run, variant, 0, first.data_root, first.stores, predictions)


@front_door
def main(args: Arguments = None) -> None:
    """Measure trained classifiers on a split.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Measure trained classifiers on a split, and compare them.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Run folders.")
    parser.add_function(evaluate, skip={"runs"})
    evaluate(**parser.instantiate(parser.parse_args(args)))


if __name__ == "__main__":
    main()
