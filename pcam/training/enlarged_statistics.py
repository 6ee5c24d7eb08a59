"""Batch-norm statistics for the enlarged patches that only evaluation sees."""

from lightning import Callback, LightningModule, Trainer
from torch import nn

from pcam.data import PCamDataModule
from pcam.models.batch_norm import (
    has_learning_layers,
    learning_layers,
    read_statistics,
    reestimate_batch_norm,
    write_statistics,
)
from pcam.models.enlarged import EnlargingNetwork, enlarged_part


class EnlargedStatistics(Callback):
    """Before each validation, estimate the statistics that a network's batch norm has for enlarged patches.

    Training neither sees these sizes nor depends on the statistics. A checkpoint that is written between two
    validations holds those of the earlier one. `PatchClassifier` brings this callback to any Trainer, where its network
    needs it.

    Args:
        patches: Number of training patches, without augmentation, that the statistics are estimated on.
    """

    def __init__(self, patches: int = 2048) -> None:
        self.patches = patches

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the statistics; over several processes, take the mean of what each process finds."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        part = enlarged_part(network)
        if trainer.sanity_checking or part is None or not has_learning_layers(network, part):
            return
        assert isinstance(network, EnlargingNetwork)
        data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        batches = data.training_patches(self.patches, pl_module.device)
        reestimate_batch_norm(part, map(network.normalization, batches))
        layers = learning_layers(part)
        write_statistics(layers, trainer.strategy.reduce(read_statistics(layers), reduce_op="mean"))
