"""The baseline CNN of the study."""

import torch
from torch import Tensor, nn

from pcam.models.normalization import Normalization, NormalizationName, check_dropout
from pcam.patches import Logits, Patches


class BaselineCNN(nn.Module):
    """Two convolutions, two poolings and a dense layer; 166,977 parameters.

    Weights start as Keras starts them (Glorot uniform, biases 0), as in the study.

    Args:
        dense: Whether the last two layers are dense, as published, or the same computation written as convolutions
            (6x6 without padding, then 1x1), the other variant that the assignment asks for.
        dropout: Probability, 0 to below 1, with which each of the 64 features before the last layer is dropped in
            training. 0, the published network, is none.
        normalization: How pixel values enter: "unit", scaled to the range [0, 1], as published; or "imagenet", with the
            mean and standard deviation of ImageNet's photos.

    Examples:
        >>> import torch
        >>> import pcam
        >>> pcam.BaselineCNN()(torch.zeros(2, 3, 96, 96, dtype=torch.uint8)).shape
        torch.Size([2])

    Source: TU/e course 8P361, assignment 3; the initialisation Glorot and Bengio 2010.
    """

    def __init__(self, dense: bool = True, dropout: float = 0.0, normalization: NormalizationName = "unit") -> None:
        super().__init__()
        check_dropout(dropout)
        self.dense = dense
        self.normalization = Normalization(normalization)
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Conv2d(32, 64, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(4),
        )
        self.head = (
            nn.Sequential(nn.Flatten(), nn.Linear(2304, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 1))
            if dense
            else nn.Sequential(nn.Conv2d(64, 64, 6), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(64, 1, 1))
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch,).
        """
        normalized = self.normalization(patches.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(self.features(normalized)).flatten()
        return logits
