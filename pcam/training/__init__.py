"""From batches and a network to a run folder."""

from pcam.training.batch_norm_readings import BatchNormReadings
from pcam.training.classifier import PatchClassifier

__all__ = ["BatchNormReadings", "PatchClassifier"]
