"""One training, validated with the batch-norm statistics of several momenta."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from pcam.data import PCamDataModule
from pcam.errors import UserError
from pcam.models.batch_norm import (
    Statistics,
    learning_layers,
    read_statistics,
    reestimate_batch_norm,
    write_statistics,
)
from pcam.models.enlarged import enlarged_part
from pcam.training.classifier import PatchClassifier

REESTIMATED = "reestimated"
"""Name of the reading with statistics estimated anew."""


class BatchNormReadings(Callback):
    """Validate a network also as it would be with batch norm of other momenta, and with re-estimated statistics.

    In training, batch norm normalises by the batch: its momentum decides what evaluation sees, and never touches the
    weights. So the statistics that any momentum gives can be kept beside one training. At each validation, logs loss,
    accuracy, AUROC and average precision of each reading, as `val/loss_momentum_0.001` and `val/loss_reestimated`.
    Training goes on bit for bit as without it. For one process, and a network without enlarged sizes.

    Args:
        momenta: In PyTorch's convention, above 0, at most 1: Keras's default 0.99 is 0.01, and its MobileNetV2's 0.999
            is 0.001.
        patches: Training patches that statistics are estimated anew on at each validation.
    """

    def __init__(self, momenta: Sequence[float] = (0.1, 0.001), patches: int = 2048) -> None:
        for momentum in momenta:
            if not 0 < momentum <= 1:
                raise UserError(
                    f"Expected momenta of batch norm above 0 and at most 1, but found {momentum}; Keras's momentum "
                    f"0.999 is 0.001 here."
                )
        self.patches = patches
        self._shadows: dict[float, Statistics | None] = dict.fromkeys(momenta)
        self._own_momentum = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The statistics of each momentum."""
        return {str(momentum): shadow for momentum, shadow in self._shadows.items()}

    @classmethod
    def saved(cls, checkpoint: Mapping[str, Any]) -> dict[float, Statistics]:
        """Find the statistics of each momentum in a checkpoint; none if the run was trained without this callback."""
        state: Mapping[str, Statistics] = checkpoint.get("callbacks", {}).get(cls.__qualname__, {})
        return {float(momentum): statistics for momentum, statistics in state.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._shadows = {float(momentum): shadow for momentum, shadow in state_dict.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the network's own statistics, unless training is resumed."""
        if trainer.world_size > 1:
            raise UserError(
                f"Expected one process with BatchNormReadings, but found {trainer.world_size}; set trainer.devices "
                f"to 1 or leave the callback out."
            )
        assert isinstance(pl_module, PatchClassifier)
        enlarged = enlarged_part(pl_module.network)
        if enlarged is not None:
            raise UserError(
                "Expected patches in their own size alone with BatchNormReadings, but found enlarged_sizes "
                f"{list(enlarged.sizes)}; make them [] or leave the callback out."
            )
        layers = self._layers(pl_module)
        momenta = {layer.momentum for layer in layers}
        if len(momenta) != 1 or None in momenta:
            raise UserError(
                f"Expected one momentum in all layers of batch norm with BatchNormReadings, but found {momenta}; leave "
                f"the callback out."
            )
        (self._own_momentum,) = momenta
        self._before = read_statistics(layers)
        for momentum, shadow in self._shadows.items():
            self._shadows[momentum] = self._before.clone() if shadow is None else shadow.to(self._before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Follow the step."""
        after = read_statistics(self._layers(pl_module))
        # What the network's own momentum m made of the batch's statistics b: after = (1 - m) before + m b.
        of_batch = (after - (1 - self._own_momentum) * self._before) / self._own_momentum
        for momentum, shadow in self._shadows.items():
            assert shadow is not None
            shadow.lerp_(of_batch, momentum)
        self._before = after

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure each reading over the valid split."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, PatchClassifier)
        data: PCamDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        layers = self._layers(pl_module)
        values: dict[str, float] = {}
        for momentum, shadow in self._shadows.items():
            assert shadow is not None
            if momentum == self._own_momentum:
                measured: Mapping[str, Tensor] = {
                    name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")
                }
            else:
                write_statistics(layers, shadow)
                measured = _validate(trainer, pl_module, data)
            values |= {f"{name}_momentum_{momentum}": value.item() for name, value in measured.items()}
        reestimate_batch_norm(pl_module.network, data.training_patches(self.patches, pl_module.device))
        values |= {f"{name}_{REESTIMATED}": value.item() for name, value in _validate(trainer, pl_module, data).items()}
        write_statistics(layers, self._before)
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)

    def _layers(self, pl_module: LightningModule) -> list[Any]:
        assert isinstance(pl_module, PatchClassifier)
        return learning_layers(pl_module.network)


def _validate(trainer: Trainer, classifier: PatchClassifier, data: PCamDataModule) -> dict[str, Tensor]:
    loader = data.loader("valid")
    with classifier.evaluating(trainer.precision, len(loader)):
        for index, batch in enumerate(loader):
            with trainer.precision_plugin.val_step_context():
                classifier.validation_step(classifier.transfer_batch_to_device(batch, classifier.device, 0), index)
    return classifier.compute_validation_metrics()
