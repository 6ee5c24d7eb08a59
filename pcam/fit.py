"""Train what a command line has built."""

import os
import shutil

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pcam.cli import PCamCLI
from pcam.errors import UserError
from pcam.messages import inform
from pcam.models.inference import bfloat16_warning
from pcam.rebuilding import load_weights
from pcam.training.whole_checkpoint import check_whole


def fit(cli: PCamCLI) -> None:
    """Train, or resume training, what a command line has built.

    Args:
        cli: The parts, built.
    """
    try:
        checkpoint = cli.resume_checkpoint
        if checkpoint is not None:
            assert cli.record is not None
            load_weights(cli.model.network, checkpoint, "the network of this command line")
            check_whole(checkpoint, cli.model, cli.trainer, cli.record.callbacks)
        trained = sum(weight.numel() for weight in cli.model.parameters() if weight.requires_grad)
        frozen = sum(weight.numel() for weight in cli.model.parameters()) - trained
        inform(
            f"{type(cli.model.network).__name__}: {trained:,} parameters learn, {frozen:,} are frozen; on "
            f"{cli.trainer.strategy.root_device}, precision {cli.trainer.precision}."
        )
        _warn_of_precision(cli)
        if cli.config.compile:
            _compile(cli)
        try:
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:  # what Lightning sees only when it has the data
            raise UserError(
                f"Expected options that Lightning can train with, but it refuses one "
                f"({' '.join(str(error).split()).rstrip('.')}); correct it."
            ) from error
        if cli.trainer.global_step == 0:
            raise UserError(
                "Expected training to take at least one step, but its options end it before the first; raise "
                "trainer.limit_train_batches, trainer.max_time or what else ends it."
            )
    except BaseException:
        if cli.trainer.global_step == 0:
            cli.remove_untrained_run()
        raise


def _warn_of_precision(cli: PCamCLI) -> None:
    if "16" in str(cli.trainer.precision):  # on a CPU, Lightning takes bfloat16 for 16-mixed too
        warning = bfloat16_warning(cli.trainer.strategy.root_device)
        if warning is not None:
            inform(warning)


def _compile(cli: PCamCLI) -> None:
    compiler = os.environ.get("CXX", "g++")
    if cli.trainer.strategy.root_device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"Expected a C++ compiler for --compile, but found no {compiler}; install one, name it in CXX, or "
            f"leave out --compile."
        )
    cli.model.compile_training()
