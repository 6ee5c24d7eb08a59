"""Train a classifier of PatchCamelyon's patches."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pcam.atomic import expanded
from pcam.commands.train_help import check_options, print_help
from pcam.data.files import require_root
from pcam.door import Arguments, front_door, leave, program
from pcam.options import MONITORS
from pcam.run_folder import RunFolder

if TYPE_CHECKING:
    from pcam.cli import PCamCLI


def train(args: Sequence[str]) -> RunFolder | None:
    """Train a classifier, or resume the training of one, and record it in a run folder.

    Args:
        args: The words of a command line, as in `["--config", "demo", "--data.root", "data/synthetic"]`.

    Returns:
        The run folder; None after a `fast_dev_run`, which records nothing.

    Raises:
        UserError: If the data, the config or the checkpoint cannot be used.
    """
    from pcam.cli import PCamCLI
    from pcam.fit import fit
    from pcam.training.quiet import quieten

    quieten()
    cli = PCamCLI(args)
    fit(cli)
    report(cli)
    return cli.run


def report(cli: "PCamCLI") -> None:
    """Print what training reached, and the commands that come next.

    Args:
        cli: The parts, trained.
    """
    if not cli.trainer.is_global_zero:
        return
    if cli.run is None or cli.record is None:
        print("A fast_dev_run went through; it records nothing.")
        return
    best = cli.record.hyperparameters.best
    has_best = (cli.run.checkpoints / "best.ckpt").is_file()
    if best and has_best:
        print(f"Best {cli.config.monitor} at step {best['step']:,}: {cli.run.checkpoint('best')}")
        print(", ".join(f"{name} {best[name]:.4f}" for name in MONITORS))
    command = "pcam evaluate" if program().startswith("pcam") else "python scripts/evaluate.py"
    print(f"Watch:    tensorboard --logdir {cli.config.runs_dir}")
    print(f"Evaluate: {command} {cli.run.path}{'' if has_best else ' --checkpoint last'}")


def _check_root(words: Sequence[str]) -> None:
    """Refuse a root that is not there, before anything that takes time is imported."""
    given = [pair for pair in pairwise([*words, ""]) if pair[0].partition("=")[0] == "--data.root"]
    for word, following in given[-1:]:
        require_root(expanded(word.partition("=")[2] or following, "root"))


@front_door
def main(args: Arguments = None) -> None:
    """Train a classifier of PatchCamelyon's patches.

    Args:
        args: The command line; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else [str(word) for word in args]
    if {"-h", "--help"} & set(words):
        print_help()
        return
    check_options(words)
    enough = ("--config", "--resume", "--experiment", "--print_config", "--help_all")
    if not any(word.startswith(enough) or word.endswith(".help") for word in words):
        leave("Expected --config NAME (pcam configs lists them) or --resume RUN, but found neither.", 2)
    if not any(word.startswith("--print_config") or word.endswith(("help", "help_all")) for word in words):
        _check_root(words)
    train(["--help" if word == "--help_all" else word for word in words])
