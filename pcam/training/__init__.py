"""From batches and a network to a run folder."""

from pcam.training.batch_norm_readings import BatchNormReadings
from pcam.training.classifier import PatchClassifier
from pcam.training.enlarged_statistics import EnlargedStatistics

__all__ = ["BatchNormReadings", "EnlargedStatistics", "PatchClassifier"]
