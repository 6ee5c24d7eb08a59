"""Run a study: train every arm with every seed, measure the runs, and write the report."""

import re
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from pcam.door import Arguments, Parser, front_door, long_description, program, with_config_paths
from pcam.errors import UserError
from pcam.study.plan import Plan, Run
from pcam.study.readings import measure_run


def study(
    plan: Plan,
    root: Path | None = None,
    output: Path | None = None,
    weights: Path | None = None,
    shard: str = "1/1",
    report_only: bool = False,
) -> list[Path]:
    """Run a study: train the runs that are missing, measure them, and write the report.

    Runs that are done are not done again, and a run that was interrupted goes on from its last checkpoint. If a run
    fails, the others go on, and the report says why it is missing.

    Args:
        plan: The study: its arms, seeds and questions.
        root: The folder with the patches, in any form. Needed unless only the report is written.
        output: The folder of the study; null is `lightning_logs/studies/<name>`. It holds the runs in `runs`, and the
            report in `report`.
        weights: A file with ImageNet weights of MobileNetV2, for the arms that start from such; null takes those that
            their configs name, which torchvision downloads.
        shard: The part of the runs to do here, such as "2/4" on the second of four machines. The `runs` folders of all
            machines, copied into one, make the report; their `checkpoints` need not be copied.
        report_only: Whether to write the report from the runs that are there, and to train nothing.

    Returns:
        The pages of the report; none if no run is done.

    Raises:
        StoppedError: After Ctrl-C or SIGTERM; the same command then goes on.
        UserError: If an option is wrong, or a run failed.
    """
    from pcam.study.report import write_report
    from pcam.study.runner import Conditions, StudyFolder, execute

    folder = StudyFolder(output or Path("lightning_logs", "studies", plan.name))
    runs, failures = _shard(plan.runs(), shard), {}
    if not report_only:
        if root is None:
            raise UserError(
                "Expected the folder with the patches for the runs of a study, but found none; give it as `root` (on "
                "the command line --data.root)."
            )
        failures = execute(plan, runs, folder, Conditions(root, weights), partial(measure_run, plan, root))
    pages: list[Path] = []
    if report_only or any(folder.result(run) for run in plan.runs()):
        pages = write_report(plan, folder)
        print("Report:", *pages, sep="\n  ")
    if failures:
        named = "; ".join(f"{run.name}: {reason}" for run, reason in failures.items())
        raise UserError(
            f"Expected {len(runs)} runs, but {len(failures)} could not be done ({named.rstrip('.')}); the same command "
            f"tries them again."
        )
    return pages


def _shard(runs: list[Run], shard: str) -> list[Run]:
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"Expected shard as PART/PARTS, such as 2/4, but found '{shard}'.")
    return runs[int(found[1]) - 1 :: int(found[2])]


@front_door
def main(args: Arguments = None) -> None:
    """Run a study: train every arm with every seed, measure the runs, and write the report.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(prog=program(), description=long_description(study))
    parser.add_argument(
        "--config", action="config", help="The study: a YAML file, or the name of a shipped one, such as demo."
    )
    parser.add_argument("--data.root", type=Path | None, default=None, help="The folder with the patches, in any form.")
    parser.add_function(study, skip={"plan", "root"})
    names = [field.name for field in fields(Plan)]
    parser.add_class_arguments(Plan)
    parser.supplied_by_config = frozenset(names)
    words = sys.argv[1:] if args is None else list(args)
    options = parser.instantiate(parser.parse_args(with_config_paths(words, "studies")))
    plan = Plan(**{name: options[name] for name in names})
    study(plan, options.data.root, options.output, options.weights, options.shard, options.report_only)
