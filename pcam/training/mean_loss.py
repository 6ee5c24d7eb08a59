"""The mean loss over batches of unequal size."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over patches of the mean losses of batches; NaN as soon as one of them is.

    Never waits for the device before `compute`. torchmetrics' MeanMetric (1.9) looks for NaN at each update, which
    waits; told not to look, it also ignores how many patches a batch has.
    """

    total: Tensor
    patches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("patches", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, patches: int) -> None:
        """Add a batch.

        Args:
            loss: Shape (), the mean over the batch.
            patches: How many patches the batch has.
        """
        self.total += loss.detach() * patches
        self.patches += patches

    def compute(self) -> Tensor:
        """Divide; shape ()."""
        return self.total / self.patches
