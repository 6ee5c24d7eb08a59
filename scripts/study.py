#!/usr/bin/env python
"""Run a study: train every arm with every seed, measure the runs, and write the report.

python scripts/study.py --config configs/studies/demo.yaml --data.root data/synthetic
python scripts/study.py --config configs/studies/report.yaml --data.root DIR --weights mobilenet_v2.pth
python scripts/study.py --config configs/studies/report.yaml --report-only
"""

from dataclasses import fields
from pathlib import Path

from pcam.cli import Arguments, Parser, front_door
from pcam.commands.study import study
from pcam.study.plan import Plan


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
    parser.add_argument("--data.root", type=Path | None, default=None, help="The folder with the patches, in any form.")
    parser.add_function_arguments(study, skip={"plan", "root", "report_only"})
    parser.add_function_arguments(Plan)
    options = parser.instantiate(parser.parse_args(args))
    plan = Plan(**{name.name: options[name.name] for name in fields(Plan)})
    study(plan, options.data.root, options.output, options.weights, options.shard, options.report_only)


if __name__ == "__main__":
    main()
