"""`PatchClassifier`: the LightningModule round a network."""

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision

from pcam.errors import UserError
from pcam.messages import inform
from pcam.models.enlarged import enlarged_part
from pcam.models.inference import InferenceNetwork
from pcam.models.timm_network import LayeredNetwork
from pcam.options import Precision
from pcam.patches import PATCH_SIZE, Labels, Logits, PatchBatch, Patches
from pcam.training.enlarged_statistics import EnlargedStatistics
from pcam.training.mean_loss import MeanLoss

ENGINE_BATCHES: Final = 64
"""Batches from which on validation lets OpenVINO compute: 2,048 patches of the usual 32 take a second less with it than
without, and so long it takes to make it ready."""


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


class Validation(nn.Module):
    """What is measured over a whole split: loss, accuracy, AUROC and average precision.

    Args:
        prefix: What their names begin with.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.loss = MeanLoss()
        # Unchecked: a check of labels and scores waits for the device, at each batch.
        self.metrics = MetricCollection(
            {
                "accuracy": BinaryAccuracy(validate_args=False),
                "auroc": BinaryAUROC(validate_args=False),
                "average_precision": BinaryAveragePrecision(validate_args=False),
            },
            prefix=prefix,
        )

    def update(self, output: StepOutput, labels: Labels) -> None:
        """Add a batch. The metrics see scores (probabilities), never logits."""
        self.loss.update(output["loss"], len(labels))
        self.metrics.update(output["logits"].sigmoid(), labels)

    def compute(self) -> dict[str, Tensor]:
        """Compute all metrics and reset them; an empty dictionary if there was no batch."""
        if not self.loss.update_called:
            return {}
        values = {f"{self.prefix}loss": self.loss.compute(), **self.metrics.compute()}
        self.loss.reset()
        self.metrics.reset()
        return values


class PatchClassifier(LightningModule):
    """Train and validate a network on patches.

    Logs `val/loss`, `val/accuracy`, `val/auroc` and `val/average_precision`, exact and over the whole split, at each
    validation, and the same as `val_shifted/loss` and so on if the data have stain shifts.

    Args:
        network: Patches in (shape (batch, 3, 96, 96), values 0..255), logits out (shape (batch,)).
        optimizer: Makes the optimizer of the parameters that train.
        scheduler: Makes the learning-rate scheduler of the optimizer; it steps after each batch. Null keeps the
            learning rate constant.

    Examples:
        >>> import torch
        >>> import pcam
        >>> classifier = pcam.PatchClassifier(
        ...     pcam.BaselineCNN(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
        ... )
        >>> classifier.evaluate(torch.zeros(2, 3, 96, 96, dtype=torch.uint8)).shape
        torch.Size([2])
    """

    def __init__(
        self, network: nn.Module, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._learn: Callable[[Patches], Logits] = self.forward
        self._evaluate: InferenceNetwork | None = None
        self.validation = Validation("val/")
        self.shifted_validation = Validation("val_shifted/")

    def forward(self, patches: Patches) -> Logits:
        """Compute logits, shape (batch,), of patches, shape (batch, 3, 96, 96), values 0..255."""
        logits: Tensor = self.network(patches)
        return logits

    def compile_training(self) -> None:
        """Let `torch.compile` make the training step; what evaluates is left as it is, and so are the weights."""
        self._learn = torch.compile(self.network.forward)

    def configure_callbacks(self) -> list[Callback]:
        """Bring what the network needs beside its training, whichever Trainer trains it, unless the Trainer has it."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        there = any(isinstance(callback, EnlargedStatistics) for callback in callbacks)
        return [] if there or enlarged_part(self.network) is None else [EnlargedStatistics()]

    def on_fit_start(self) -> None:
        """Try the network on two patches, before anything is trained.

        Raises:
            UserError: If it does not take patches or does not give a logit for each.
        """
        patches = torch.zeros(2, 3, PATCH_SIZE, PATCH_SIZE, dtype=torch.uint8, device=self.device)
        contract = "takes patches (uint8, shape (batch, 3, 96, 96), values 0..255) and gives logits (shape (batch,))"
        try:
            found = InferenceNetwork(self.network, engine=False).network(patches)
            shape = tuple(found.shape)
        except Exception as error:  # whatever a network of the user's own raises
            raise UserError(
                f"Expected a network that {contract}, but {type(self.network).__name__} fails on them "
                f"({' '.join(str(error).split())[:200]}); wrap it in one that does, as docs/extending.md shows."
            ) from error
        if shape != (2,) or not found.is_floating_point():
            raise UserError(
                f"Expected a network that {contract}, but of two patches {type(self.network).__name__} gives "
                f"{found.dtype} of shape {shape}; wrap it in one that does, as docs/extending.md shows."
            )

    @contextmanager
    def evaluating(self, precision: str = "32-true", batches: int | float = math.inf) -> Iterator[None]:
        """Have `evaluate` compute with a copy of the network as it is now, until the block ends.

        Validation and prediction do so by themselves. The copy does not follow the weights: do not train within.

        Args:
            precision: As a trainer has it: convolutions compute in bfloat16 if it begins with "bf16".
            batches: How many batches there will be: from 64 on, OpenVINO computes where it can.
        """
        self._start_evaluating(precision, batches)
        try:
            yield
        finally:
            self._evaluate = None

    def _start_evaluating(self, precision: str, batches: int | float) -> None:
        evaluated: Precision = "bf16-mixed" if precision.startswith("bf16") else "32-true"
        self._evaluate = InferenceNetwork(self.network, evaluated, engine=batches >= ENGINE_BATCHES)

    def evaluate(self, patches: Patches) -> Logits:
        """Compute logits as validation does: without dropout, gradients or changes to batch norm's statistics.

        Always with the weights of now; for many batches, `evaluating` makes it faster.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch,), float32.
        """
        return (self._evaluate or InferenceNetwork(self.network, engine=False))(patches)

    def on_validation_start(self) -> None:
        """Make the copy that validates."""
        self._start_evaluating(self.trainer.precision, sum(self.trainer.num_val_batches))

    def on_validation_end(self) -> None:
        """Drop the copy, which training makes stale."""
        self._evaluate = None

    def on_predict_start(self) -> None:
        """Make the copy that predicts."""
        self._start_evaluating(self.trainer.precision, sum(self.trainer.num_predict_batches))

    def on_predict_end(self) -> None:
        """Drop the copy."""
        self._evaluate = None

    @staticmethod
    def _loss(logits: Logits, batch: PatchBatch) -> StepOutput:
        return {"loss": binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype)), "logits": logits}

    def training_step(self, batch: PatchBatch, batch_idx: int) -> StepOutput:
        """Compute the loss of a batch to learn from."""
        return self._loss(self._learn(batch.patches), batch)

    def validation_step(self, batch: PatchBatch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        """Gather loss and scores of a batch of the split as it is, or with shifted stains (`dataloader_idx` 1)."""
        output = self._loss(self.evaluate(batch.patches), batch)
        validation = self.shifted_validation if dataloader_idx else self.validation
        validation.update(output, batch.labels)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log what was measured over the whole split."""
        # Lightning numbers steps from 0; a reader expects the number of optimizer steps done.
        step, epoch = float(self.global_step), float(self.current_epoch)
        self.log_dict({**self.compute_validation_metrics(), "step": step, "epoch": epoch})

    def compute_validation_metrics(self) -> dict[str, Tensor]:
        """Compute the metrics of what `validation_step` gathered, and reset them for the next validation."""
        return {**self.validation.compute(), **self.shifted_validation.compute()}

    def predict_step(self, batch: PatchBatch, batch_idx: int) -> PredictOutput:
        """Compute logits."""
        return {"logits": self.evaluate(batch.patches), "indices": batch.indices}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step; an optimizer that cannot train this network is answered with a sentence.

        Raises:
            UserError: If the optimizer refuses what any network gives it, as one for sparse gradients does.
        """
        try:
            super().optimizer_step(*args, **kwargs)
        except RuntimeError as error:
            if "optim" not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
                raise
            raise UserError(
                f"Expected an optimizer that takes steps with the gradients of this network, but "
                f"{type(self.optimizers()).__name__.removeprefix('Lightning')} refuses them "
                f"({' '.join(str(error).split())}); choose another with --model.optimizer, such as torch.optim.AdamW."
            ) from error

    def make_optimizer(self) -> tuple[Optimizer, LRScheduler | ReduceLROnPlateau | None]:
        """Make the optimizer and the scheduler that the config names, for the parameters that train.

        Raises:
            UserError: If PyTorch refuses one of their options, or nothing in the network can learn.
        """
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not learning:
            raise UserError(
                f"Expected a network with parameters that learn, but {type(self.network).__name__} has none; choose "
                f"another with --model.network, or freeze less of it."
            )
        try:
            optimizer = self.optimizer(self._groups(learning))
            for group in optimizer.param_groups:
                group["lr"] *= group.get("rate_scale", 1.0)
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except ValueError as error:
            raise UserError(
                f"Expected options that the optimizer and the scheduler take, but found one that they refuse "
                f"({error}); correct model.optimizer or model.scheduler."
            ) from error
        if isinstance(scheduler, OneCycleLR):  # it has set the same rates for all groups
            for group in optimizer.param_groups:
                for rate in ("lr", "initial_lr", "max_lr", "min_lr"):
                    group[rate] *= group.get("rate_scale", 1.0)
        return optimizer, scheduler

    def _groups(self, learning: list[nn.Parameter]) -> Any:
        """Group the parameters by what their learning rate is multiplied by, where the network has such layers."""
        scales = self.network.rate_scales() if isinstance(self.network, LayeredNetwork) else {}
        if not scales:
            return learning
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in learning:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        return [{"params": found, "rate_scale": scale} for scale, found in by_scale.items()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give Lightning the optimizer and the scheduler.

        Raises:
            UserError: If PyTorch refuses one of their options, or the scheduler ends before training does.
        """
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        total_steps = getattr(scheduler, "total_steps", None)  # OneCycleLR's
        if total_steps is not None and (steps := self.trainer.estimated_stepping_batches) > total_steps:
            raise UserError(
                f"Expected a scheduler for all {steps:,} steps of training, but found {type(scheduler).__name__} with "
                f"total_steps {total_steps:,}; give model.scheduler.init_args.total_steps the number of "
                f"trainer.max_steps."
            )
        if total_steps is not None and self.trainer.estimated_stepping_batches < total_steps:
            inform(
                f"{type(scheduler).__name__} is made for {total_steps:,} steps, but training ends after "
                f"{self.trainer.estimated_stepping_batches:,}: the learning rate will not come to its end; "
                f"model.scheduler.init_args.total_steps sets it."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
