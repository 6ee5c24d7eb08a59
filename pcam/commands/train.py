"""Train a classifier of PatchCamelyon's patches."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pcam.commands.train_help import check_options, print_help
from pcam.door import Arguments, front_door, program
from pcam.errors import UserError
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
    from pcam.training.quiet import quieten

    quieten()
    cli = PCamCLI(args)
    fit(cli)
    report(cli)
    return cli.run


def fit(cli: "PCamCLI") -> None:
    """Train, or resume training, what a command line has built.

    Args:
        cli: The parts, built.
    """
    from lightning.pytorch.utilities import rank_zero_info

    from pcam.trained import load_weights
    from pcam.training.whole_checkpoint import check_whole

    try:
        checkpoint = cli.resume_checkpoint
        if checkpoint is not None:
            assert cli.record is not None
            load_weights(cli.model.network, checkpoint, "the network of this command line")
            check_whole(checkpoint, cli.model, cli.trainer, cli.record.callbacks)
        trained = sum(weight.numel() for weight in cli.model.parameters() if weight.requires_grad)
        frozen = sum(weight.numel() for weight in cli.model.parameters()) - trained
        rank_zero_info(
            f"{type(cli.model.network).__name__}: {trained:,} parameters learn, {frozen:,} are frozen; on "
            f"{cli.trainer.strategy.root_device}, precision {cli.trainer.precision}."
        )
        _warn_of_precision(cli)
        if cli.config.compile:
            _compile(cli)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        if cli.trainer.global_step == 0:
            raise UserError(
                "Expected training to take at least one step, but its options end it before the first; raise "
                "trainer.limit_train_batches, trainer.max_time or what else ends it."
            )
    except BaseException:
        if cli.trainer.global_step == 0:
            cli.remove_untrained_run()
        raise


def _warn_of_precision(cli: "PCamCLI") -> None:
    from lightning.pytorch.utilities import rank_zero_info

    from pcam.models.inference import bfloat16_warning

    if "16" in str(cli.trainer.precision):  # on a CPU, Lightning takes bfloat16 for 16-mixed too
        warning = bfloat16_warning(cli.trainer.strategy.root_device)
        if warning is not None:
            rank_zero_info(warning)


def _compile(cli: "PCamCLI") -> None:
    compiler = os.environ.get("CXX", "g++")
    if cli.trainer.strategy.root_device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"Expected a C++ compiler for --compile, but found no {compiler}; install one, name it in CXX, or "
            f"leave out --compile."
        )
    cli.model.compile_training()


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
    train(["--help" if word == "--help_all" else word for word in words])
