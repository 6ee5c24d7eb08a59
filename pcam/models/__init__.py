"""The networks: patches in, one logit a patch out."""

from pcam.models.networks import BaselineCNN, MobileNetV2, TorchvisionNetwork

__all__ = ["BaselineCNN", "MobileNetV2", "TorchvisionNetwork"]
