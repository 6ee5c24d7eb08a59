"""From batches and a network to a run folder."""

from pcam.training.classifier import PatchClassifier

__all__ = ["PatchClassifier"]
