"""How pixel values enter a network, and the check that all networks make of their dropout."""

from collections.abc import Sequence
from typing import Final, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.optical_density import optical_densities, pixels_of
from pcam.patches import Patches

NormalizationName = Literal["imagenet", "unit"]

MEAN_AND_STD: Final[dict[NormalizationName, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    # Source: torchvision's weights, `MobileNet_V2_Weights.IMAGENET1K_V1.transforms()`.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of red, green and blue, for pixel values from 0 to 1."""


class Normalization(nn.Module):
    """Map pixel values to what a network was trained on: (patches / 255 - mean) / std, channel by channel.

    Args:
        name: "imagenet", with the mean and standard deviation that torchvision's weights were trained with; "unit", to
            the range [0, 1]; or a mean and a standard deviation of red, green and blue, for pixel values from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: NormalizationName | tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        mean, std = MEAN_AND_STD[name] if isinstance(name, str) else name
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, patches: Patches) -> Patches:
        """Normalise.

        Args:
            patches: Shape (batch, 3, height, width), values 0..255, any dtype.

        Returns:
            The same shape, in the network's floating-point type.
        """
        return torch.sub(patches, self.mean).div_(self.std).to(self.mean.dtype)


class StainNormalization(Normalization):
    """Bring patches to the staining that a network was trained on, and normalise them.

    Args:
        normalization: What the network had instead.
        matrix: What the optical densities of each pixel are multiplied by.
    """

    matrix: Tensor

    def __init__(self, normalization: Normalization, matrix: Float32[Tensor, "3 3"]) -> None:
        super().__init__("unit")
        self.register_buffer("mean", normalization.mean.clone())
        self.register_buffer("std", normalization.std.clone())
        self.register_buffer("matrix", matrix.to(self.mean.device))

    def forward(self, patches: Patches) -> Patches:
        """Change the staining, then normalise; as `Normalization.forward`."""
        return super().forward(pixels_of(self.matrix @ optical_densities(patches)).view(patches.shape))


@runtime_checkable
class NormalizingNetwork(Protocol):
    """A network that tells how it normalises pixel values. Any network with this attribute is one.

    Attributes:
        normalization: Its first layer.
    """

    normalization: Normalization


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability that no layer can have.

    Args:
        dropout: The probability.

    Raises:
        UserError: If it is below 0, or 1 or more.
    """
    if not 0 <= dropout < 1:
        raise UserError(f"Expected dropout to be at least 0 and below 1, but found {dropout}.")
