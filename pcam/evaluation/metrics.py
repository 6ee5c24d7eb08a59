"""Metrics of a split's predictions."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_average_precision

from pcam.evaluation.predictions import Predictions


def measure(predictions: Predictions) -> dict[str, float]:
    """Measure predictions, exactly and over all of them at once.

    Args:
        predictions: Of one split, both classes present.

    Returns:
        `auroc`; `average_precision`; `accuracy`, scores above 0.5 being called tumour; `loss`, the binary cross-entropy in nats (the
        mean negative log-likelihood). All but the loss lie in 0..1.
    """
    labels = torch.from_numpy(predictions.labels.astype("int64"))
    scores = torch.from_numpy(predictions.scores)
    logits = torch.from_numpy(predictions.logits).double()
    return {
        "auroc": binary_auroc(scores, labels).item(),
        "average_precision": binary_average_precision(scores, labels).item(),
        "accuracy": binary_accuracy(scores, labels).item(),
        "loss": binary_cross_entropy_with_logits(logits, labels.double()).item(),
    }
