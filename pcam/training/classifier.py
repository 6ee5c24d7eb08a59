"""`PatchClassifier`: the LightningModule round a network."""

from collections.abc import Callable
from typing import TypedDict

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision

from pcam.errors import UserError
from pcam.models.inference import InferenceNetwork
from pcam.patches import Logits, PatchBatch, Patches
from pcam.training.mean_loss import MeanLoss


class StepOutput(TypedDict):
    """What a step returns, for callbacks.

    Attributes:
        loss: Binary cross-entropy, the mean over the batch, in nats.
        logits: Shape (batch,).
    """

    loss: Tensor
    logits: Tensor


class PredictOutput(TypedDict):
    """What a prediction step returns.

    Attributes:
        logits: Shape (batch,).
        indices: Shape (batch,), the rows that the logits belong to.
    """

    logits: Tensor
    indices: Tensor


class PatchClassifier(LightningModule):
    """Train and validate a network on patches.

    Logs `val/loss`, `val/accuracy`, `val/auroc` and `val/average_precision`, exact and over the whole split, at each
    validation. The metrics see scores (probabilities), never logits.

    Args:
        network: Patches in (shape (batch, 3, 96, 96), values 0..255), logits out (shape (batch,)).
        optimizer: Gets the parameters that train.
        scheduler: Gets the optimizer and steps after each batch; null keeps the learning rate constant.
    """

    def __init__(
        self, network: nn.Module, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._learn: Callable[[Patches], Logits] = self.forward
        self.evaluate: Callable[[Patches], Logits] = self.forward
        """What validation and prediction compute logits with; fast once `prepare_evaluation` has been called."""
        self.val_loss = MeanLoss()
        # Unchecked: a check of labels and scores waits for the device, at each batch.
        self.val_metrics = MetricCollection(
            {
                "accuracy": BinaryAccuracy(validate_args=False),
                "auroc": BinaryAUROC(validate_args=False),
                "average_precision": BinaryAveragePrecision(validate_args=False),
            },
            prefix="val/",
        )

    def forward(self, patches: Patches) -> Logits:
        """Compute logits, shape (batch,), of patches, shape (batch, 3, 96, 96), values 0..255."""
        logits: Tensor = self.network(patches)
        return logits

    def compile_training(self) -> None:
        """Let `torch.compile` make the training step; what evaluates is left as it is, and so are the weights."""
        self._learn = torch.compile(self.network.forward)

    def prepare_evaluation(self, precision: str) -> None:
        """Make what evaluates from the weights and statistics of now; Lightning's loops call it before they start.

        Args:
            precision: As a trainer has it: convolutions compute in bfloat16 if it begins with "bf16".
        """
        dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
        # Its method alone: as an attribute the copy itself would be a part of this module, and of checkpoints.
        self.evaluate = InferenceNetwork(self.network, dtype).forward

    def on_validation_start(self) -> None:
        """Make what evaluates."""
        self.prepare_evaluation(self.trainer.precision)

    def on_predict_start(self) -> None:
        """Make what evaluates."""
        self.prepare_evaluation(self.trainer.precision)

    @staticmethod
    def _loss(logits: Logits, batch: PatchBatch) -> StepOutput:
        return {"loss": binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype)), "logits": logits}

    def training_step(self, batch: PatchBatch, batch_idx: int) -> StepOutput:
        """Compute the loss of a batch to learn from."""
        return self._loss(self._learn(batch.patches), batch)

    def validation_step(self, batch: PatchBatch, batch_idx: int) -> StepOutput:
        """Gather loss and scores of a batch."""
        output = self._loss(self.evaluate(batch.patches), batch)
        self.val_loss.update(output["loss"], len(batch.labels))
        self.val_metrics.update(output["logits"].sigmoid(), batch.labels)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log what was measured over the whole split."""
        # Lightning numbers steps from 0; a reader expects the number of optimizer steps done.
        step, epoch = float(self.global_step), float(self.current_epoch)
        self.log_dict({**self.compute_validation_metrics(), "step": step, "epoch": epoch})

    def compute_validation_metrics(self) -> dict[str, Tensor]:
        """Finish what `validation_step` gathered, and start anew."""
        values = {"val/loss": self.val_loss.compute(), **self.val_metrics.compute()}
        self.val_loss.reset()
        self.val_metrics.reset()
        return values

    def predict_step(self, batch: PatchBatch, batch_idx: int) -> PredictOutput:
        """Compute logits."""
        return {"logits": self.evaluate(batch.patches), "indices": batch.indices}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Set up what the config names, over the parameters that train.

        Raises:
            UserError: If PyTorch refuses one of their options.
        """
        try:
            optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except ValueError as error:
            raise UserError(
                f"Expected options that the optimizer and the scheduler take, but found one that they refuse "
                f"({error}); correct model.optimizer or model.scheduler."
            ) from error
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
