#!/usr/bin/env python
"""Run a study: train every arm with every seed, measure, and write the report.

python scripts/study.py --config configs/studies/demo.yaml --data.root data/synthetic
python scripts/study.py --config configs/studies/report.yaml --data.root DIR --weights mobilenet_v2.pth
python scripts/study.py --config configs/studies/report.yaml --report-only
"""

import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Final

from pcam.cli import Arguments, Parser, PCamCLI, front_door, load_run
from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions, check_finite
from pcam.models.batch_norm import REESTIMATION_PATCHES, learning_layers, reestimate_batch_norm, write_statistics
from pcam.run_folder import RunFolder
from pcam.study.plan import FIRST_READING, READING_NAMES, Plan, Reading, Run
from pcam.study.report import write_report
from pcam.study.results import write_result
from pcam.study.runner import Conditions, StudyFolder, execute
from pcam.training import BatchNormReadings
from pcam.training.checkpoints import load_checkpoint

READING_MOMENTA: Final[dict[Reading, float]] = {"momentum_0.1": 0.1, "momentum_0.001": 0.001}


def study(
    plan: Plan, data_root: Path | None, output: Path | None = None, weights: Path | None = None, shard: str = "1/1"
) -> None:
    """Train what is missing, measure it, and write the report.

    Args:
        plan: The study.
        data_root: Folder with the patches.
        output: Folder of the study; null is `lightning_logs/studies/<name>`. Runs lie in `runs`, the report in
            `report`.
        weights: File with ImageNet weights of MobileNetV2, for the arms that start from them; null takes those that
            their configs name, which torchvision downloads.
        shard: Which part of the runs to do here, as 2/4 for the second of four machines. Their `runs` folders, copied
            into one, make the report; `checkpoints` need not be copied.
    """
    if data_root is None:
        raise UserError("Expected the folder with the patches for the runs of a study; give it with --data.root.")
    folder = _folder(plan, output)
    runs = _shard(plan.runs(), shard)
    failures = execute(plan, runs, folder, Conditions(data_root, weights), partial(measure, plan, data_root))
    if any(folder.result(run) for run in plan.runs()):
        _report(plan, folder)
    if failures:
        named = "; ".join(f"{run.name}: {reason}" for run, reason in failures.items())
        raise UserError(
            f"Expected {len(runs)} runs, but {len(failures)} could not be done ({named.rstrip('.')}); the same command "
            f"tries them again."
        )


def measure(plan: Plan, data_root: Path, run: Run, trained: RunFolder) -> None:
    """Predict with the last checkpoint, once for each reading, and write the result.

    Args:
        plan: The study.
        data_root: Folder with the patches.
        run: The run.
        trained: Its folder.
    """
    cli = load_run(trained, "last", data_root)
    # First: the readings of batch norm leave their statistics in the network.
    shifted = cli.predict(plan.split, shifted=True) if cli.datamodule.stain_shifts else None
    if plan.arms[run.arm].batch_norm_readings:
        readings = _read_batch_norm(cli, trained, plan)
    else:
        readings = {FIRST_READING: cli.predict(plan.split)}
    if shifted is not None:
        readings["stain_shifted"] = shifted
    for reading, predictions in readings.items():
        check_finite(predictions.logits, f"{trained.path} on {plan.split} ({READING_NAMES[reading]})")
    train = cli.datamodule.packed("train")
    facts = {
        "step": cli.checkpoint_step,
        "batch_size": cli.datamodule.batch_size,
        "train_patches": len(train),
        "passes": cli.checkpoint_step * cli.datamodule.batch_size / len(train),
        "data_fingerprint": cli.datamodule.packed(plan.split).fingerprint,
    }
    write_result(run, trained, plan.split, readings, facts)


def _read_batch_norm(cli: PCamCLI, trained: RunFolder, plan: Plan) -> dict[Reading, Predictions]:
    device = cli.trainer.strategy.root_device
    network = cli.model.network.to(device)
    saved = BatchNormReadings.saved(load_checkpoint(trained.checkpoint("last")))
    layers = learning_layers(network)
    readings: dict[Reading, Predictions] = {}
    for reading, momentum in READING_MOMENTA.items():
        if momentum not in saved:
            raise UserError(
                f"Expected {trained.checkpoint('last')} to have batch-norm statistics of momentum {momentum}, but "
                f"found those of {', '.join(map(str, saved)) or 'none'}; move {trained.path} away, and the study "
                f"trains the run anew."
            )
        write_statistics(layers, saved[momentum].to(device))
        readings[reading] = cli.predict(plan.split)
    reestimate_batch_norm(network.to(device), cli.datamodule.training_patches(REESTIMATION_PATCHES, device))
    readings["reestimated"] = cli.predict(plan.split)
    return readings


def _shard(runs: list[Run], shard: str) -> list[Run]:
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"Expected --shard as PART/PARTS, such as 2/4, but found '{shard}'.")
    return runs[int(found[1]) - 1 :: int(found[2])]


def _folder(plan: Plan, output: Path | None) -> StudyFolder:
    return StudyFolder(output or Path("lightning_logs", "studies", plan.name))


def _report(plan: Plan, folder: StudyFolder) -> None:
    pages = write_report(plan, folder)
    print("Report:", *pages, sep="\n  ")


@front_door
def main(args: Arguments = None) -> None:
    """Run a study.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Run a study: train every arm with every seed, measure, and write the report.")
    parser.add_argument("--config", action="config", help="The study's YAML.")
    parser.add_argument(
        "--report-only",
        "--report_only",
        action="store_true",
        help="Write the report from the runs that are there, and train nothing.",
    )
    parser.add_argument("--data.root", type=Path | None, default=None, help="Folder with the patches, in any form.")
    parser.add_function_arguments(study, skip={"plan", "data_root"})
    parser.add_function_arguments(Plan)
    options = parser.instantiate(parser.parse_args(args))
    plan = Plan(**{name.name: options[name.name] for name in fields(Plan)})
    if options.report_only:
        _report(plan, _folder(plan, options.output))
    else:
        study(plan, options.data.root, options.output, options.weights, options.shard)


if __name__ == "__main__":
    main()
