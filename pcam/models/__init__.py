"""The networks: patches in, one logit a patch out.

All take patches with values 0..255 (uint8, or float after augmentation) and normalise them in their first layer, so
whatever feeds them needs to know nothing about it.
"""

from pcam.models.baseline_cnn import BaselineCNN
from pcam.models.mobilenet import MobileNetV2
from pcam.models.timm_network import TimmNetwork

__all__ = ["BaselineCNN", "MobileNetV2", "TimmNetwork"]
