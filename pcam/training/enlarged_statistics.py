"""Batch norm for the sizes that only evaluation sees."""

from lightning import Callback, LightningModule, Trainer

from pcam.data import PCamDataModule
from pcam.models import MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm, write_statistics
from pcam.training.classifier import PatchClassifier


class EnlargedStatistics(Callback):
    """Before each validation, estimate the statistics that a network's batch norm has for enlarged patches.

    Training neither sees these sizes nor depends on the statistics. A checkpoint between validations holds those of
    the last one.

    Args:
        patches: Training patches, un-augmented, that they are estimated on.
    """

    def __init__(self, patches: int = 2048) -> None:
        self.patches = patches

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate; over several processes, the mean of what each finds."""
        assert isinstance(pl_module, PatchClassifier)
        network = pl_module.network
        if (
            trainer.sanity_checking
            or not isinstance(network, MobileNetV2)
            or network.enlarged is None
            or network.freeze
        ):
            return
        data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        batches = data.training_patches(self.patches, pl_module.device)
        reestimate_batch_norm(network.enlarged, map(network.normalization, batches))
        layers = learning_layers(network.enlarged)
        write_statistics(layers, trainer.strategy.reduce(read_statistics(layers), reduce_op="mean"))
