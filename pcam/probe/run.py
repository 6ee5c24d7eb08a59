"""A probe as a run folder like any other."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from pcam.atomic import atomic_path, link_path
from pcam.errors import UserError
from pcam.models.embedding import embedding_network
from pcam.probe.linear import Fit
from pcam.probe.store import EmbeddedSplit
from pcam.run_folder import RunFolder
from pcam.training.recording import run_loggers

FACTS_FILE: Final = "probe.json"
"""What a probe chose and measured, in its run folder."""


def check_both_classes(train: EmbeddedSplit, valid: EmbeddedSplit) -> None:
    """Refuse to learn from, or to choose on, patches of one class.

    Args:
        train: What is learned from.
        valid: What is chosen on.

    Raises:
        UserError: If a split has one class only.
    """
    for name, split in {"train": train, "valid": valid}.items():
        if len(set(split.labels.tolist())) < 2:
            raise UserError(
                f"Expected patches of both classes in {name}, but all {len(split.labels):,} have the label "
                f"{split.labels[0] if len(split.labels) else 'of none'}; a probe needs both."
            )


def record_probe(
    run: RunFolder, config: str, network: nn.Module, train: EmbeddedSplit, learn: Callable[[], Fit]
) -> Fit:
    """Learn a linear unit, and write the network with it into a run folder.

    Args:
        run: The run folder, new and empty; it is removed again if learning fails.
        config: The contents of its config.yaml.
        network: Its head gets the linear unit; changed in place.
        train: The training embeddings, whose speed is noted.
        learn: Finds the linear unit.

    Returns:
        What was found.
    """
    with _removed_if_it_fails(run):
        loggers = run_loggers(run)
        for logger in loggers:  # TensorBoard's file tells when the run began
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        fit = learn()
        for row in fit.rows:
            step = int(row["step"])
            for logger in loggers:
                logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step)
        for logger in loggers:
            logger.finalize("success")
        _, linear = embedding_network(network)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(fit.weight))
            linear.bias.fill_(fit.bias)
        with atomic_path(run.config) as temporary:
            temporary.write_text(config, encoding="utf-8")
        # The names that a PatchClassifier's weights have.
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        best = run.checkpoints / "best.ckpt"
        with atomic_path(best) as temporary:
            torch.save({"state_dict": state, "global_step": fit.step, "epoch": int(fit.passes)}, temporary)
        link_path(best, run.checkpoints / "last.ckpt")  # a probe's result is what it has chosen
        facts = {
            **fit.facts,
            "passes": fit.passes,
            "features": len(fit.weight),
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "embedding_seconds_per_patch": train.seconds / train.computed if train.computed else None,
        }
        with atomic_path(run.path / FACTS_FILE) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return fit


@contextmanager
def _removed_if_it_fails(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(Path(run.path), ignore_errors=True)
        raise
