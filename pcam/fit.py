"""Train what a command line has built."""

import os
import shutil

from lightning.pytorch.utilities import rank_zero_info

from pcam.cli import PCamCLI
from pcam.errors import UserError
from pcam.models.inference import bfloat16_warning
from pcam.trained import load_weights


def fit(cli: PCamCLI) -> None:
    """Train, or resume training, what a command line has built.

    Args:
        cli: The parts, built.
    """
    checkpoint = cli.resume_checkpoint
    if checkpoint is not None:
        load_weights(cli.model.network, checkpoint, "the network of this command line")
    trained = sum(weight.numel() for weight in cli.model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in cli.model.parameters()) - trained
    rank_zero_info(f"{type(cli.model.network).__name__}: {trained:,} parameters learn, {frozen:,} are frozen.")
    _warn_of_precision(cli)
    if cli.config.compile:
        _compile(cli)
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except BaseException:
        _remove_if_nothing_was_trained(cli)
        raise


def _remove_if_nothing_was_trained(cli: PCamCLI) -> None:
    """Remove the folder of a run that was refused before its first step: it would be in the way of the next."""
    if cli.run is not None and cli.is_new and cli.trainer.global_step == 0 and not cli.run.checkpoints.exists():
        shutil.rmtree(cli.run.path, ignore_errors=True)


def _warn_of_precision(cli: PCamCLI) -> None:
    if "16" in str(cli.trainer.precision):  # on a CPU, Lightning takes bfloat16 for 16-mixed too
        warning = bfloat16_warning(cli.trainer.strategy.root_device)
        if warning is not None:
            rank_zero_info(warning)


def _compile(cli: PCamCLI) -> None:
    compiler = os.environ.get("CXX", "g++")
    if cli.trainer.strategy.root_device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"Expected a C++ compiler for --compile, but found no {compiler}; install one, name it in CXX, or "
            f"leave out --compile."
        )
    cli.model.compile_training()
