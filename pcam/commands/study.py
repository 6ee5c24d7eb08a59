"""Run a study: train every arm with every seed, measure the runs, and write the report."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pcam.door import Arguments, Parser, front_door, long_description, program, with_config_paths
from pcam.errors import UserError
from pcam.outputs import MARKDOWN, check_output
from pcam.study.plan import Plan, Run

if TYPE_CHECKING:
    from pcam.study.runner import StudyFolder

LauncherName = Literal["local", "ray"]


def study(
    plan: Plan,
    root: Path | None = None,
    output: Path | None = None,
    results: Path | None = None,
    weights: Path | None = None,
    shard: str = "1/1",
    jobs: int = 1,
    launcher: LauncherName = "local",
    report_only: bool = False,
    page: Path | None = None,
) -> list[Path]:
    """Run a study: train the runs that are missing, measure them, and write the report.

    Runs whose results are there are not done again, wherever the results are from, and a run that was interrupted goes
    on from its last checkpoint. If a run fails, the others go on, and the report says why it is missing.

    Args:
        plan: The study: its arms, seeds and questions.
        root: The folder with the patches, in any form. Needed unless only the report is written.
        output: The folder of the study; null is `lightning_logs/studies/<name>`. It holds the runs in `runs`, their
            results in `results`, and the report in `report`.
        results: The folder of the results, if they are not in `output`. Results hold everything that the report needs,
            a few dozen kilobytes a run, and no patches; those of several machines, copied into one folder, make the
            report.
        weights: A file with ImageNet weights of MobileNetV2, for the arms that start from such; null takes those that
            their configs name, which torchvision downloads.
        shard: The part of the runs to do here, such as "2/4" on the second of four machines.
        jobs: How many runs to do at a time on this machine; they share its CPU threads.
        launcher: What does the runs: "local", this machine, or "ray", the machines of a Ray cluster, as many runs at a
            time as these have room for, each with `OMP_NUM_THREADS` CPU threads (1 if that is not set).
        report_only: Whether to write the report from the results that are there, and to train nothing.
        page: Where to write the Markdown page of the report once more, to be published; its figures go into the folder
            `images` beside it.

    Returns:
        The pages of the report; none if no run is done.

    Raises:
        StoppedError: After Ctrl-C or SIGTERM; the same command then goes on.
        UserError: If an option is wrong, or a run failed.
    """
    from pcam.study.report import write_report
    from pcam.study.runner import StudyFolder

    if page is not None:
        check_output(page, MARKDOWN)
    folder = StudyFolder(output or Path("lightning_logs", "studies", plan.name), results)
    runs, failures = _shard(plan.runs(), shard), {}
    if not report_only:
        failures = _do(plan, runs, folder, root, weights, jobs, launcher)
    pages: list[Path] = []
    if report_only or any(folder.results.is_done(run) for run in plan.runs()):
        pages = write_report(plan, folder, page)
        print("Report:", *pages, sep="\n  ")
    if failures:
        named = "; ".join(f"{run.name}: {reason}" for run, reason in failures.items())
        raise UserError(
            f"Expected {len(runs)} runs, but {len(failures)} could not be done ({named.rstrip('.')}); the same command "
            f"tries them again."
        )
    return pages


def _do(
    plan: Plan,
    runs: list[Run],
    folder: "StudyFolder",
    root: Path | None,
    weights: Path | None,
    jobs: int,
    launcher: LauncherName,
) -> dict[Run, str]:
    from pcam.study.launch import LocalLauncher, asked_threads, execute, threads_of_each
    from pcam.study.runner import Conditions

    if root is None:
        raise UserError(
            "Expected the folder with the patches for the runs of a study, but found none; give it as `root` (on the "
            "command line --data.root)."
        )
    if jobs < 1:
        raise UserError(f"Expected jobs to be at least 1, but found {jobs}.")
    if launcher == "ray":
        from pcam.study.cluster import RayLauncher

        return execute(plan, runs, folder, Conditions(root, weights, asked_threads() or 1), RayLauncher())
    return execute(plan, runs, folder, Conditions(root, weights, threads_of_each(jobs)), LocalLauncher(jobs))


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
    study(
        plan, options.data.root, options.output, options.results, options.weights, options.shard, options.jobs,
        options.launcher, options.report_only, options.page,
    )  # fmt: skip
