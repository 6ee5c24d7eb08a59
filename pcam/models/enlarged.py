"""Evaluation of enlarged patches: what a network needs for it, and how a network is found to have it."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.functional import interpolate

from pcam.errors import UserError
from pcam.patches import PATCH_SIZE, Patches


class EnlargedFeatures(nn.Module):
    """The convolutional part of a network at larger sizes: the same weights, with batch-norm statistics for each size.

    A network that learned from patches in their own size sees each nucleus larger here, and at other positions of its
    grid of strides, so it makes different errors; the mean over the sizes is better than either. Batch norm needs the
    statistics of the size (`reestimate_batch_norm` on this module): with those of another size, more is lost than won.

    Args:
        features: Shares its weights with this module; its statistics are what those here start from.
        sizes: Sides, in pixels, that patches of 96x96 are enlarged to.

    Source: Touvron et al. 2019, "Fixing the train-test resolution discrepancy", for the size and the statistics.
    """

    def __init__(self, features: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        shared = {id(parameter): parameter for parameter in features.parameters()}
        self.features = nn.ModuleList(deepcopy(features, dict(shared)) for _ in sizes)

    def forward(self, patches: Patches) -> list[Tensor]:
        """Compute features.

        Args:
            patches: Shape (batch, 3, height, width), normalised.

        Returns:
            For each size, shape (batch, channels, rows, columns).
        """
        height, width = patches.shape[2:]
        return [
            features(interpolate(patches, (height * size // PATCH_SIZE, width * size // PATCH_SIZE), mode="bilinear"))
            for size, features in zip(self.sizes, self.features, strict=True)
        ]


@runtime_checkable
class EnlargingNetwork(Protocol):
    """A network that may evaluate patches enlarged as well. Any network with these two attributes is one.

    Attributes:
        normalization: What patches go through before they are enlarged.
        enlarged: The part that sees them enlarged; None if the network sees patches in their own size only.
    """

    normalization: nn.Module
    enlarged: EnlargedFeatures | None


def enlarged_part(network: nn.Module) -> EnlargedFeatures | None:
    """Find the part of a network that sees patches enlarged; None if it has none, as most networks."""
    return network.enlarged if isinstance(network, EnlargingNetwork) else None


def at_sizes(network: nn.Module, sizes: Sequence[int]) -> nn.Module:
    """Copy a network that evaluates patches enlarged, so that the copy does so at some of its sizes only.

    Args:
        network: Left as it is.
        sizes: Sides in pixels, of those that the network was trained to be evaluated at; none for the patches' own
            size only.

    Returns:
        The copy, or the network itself if it evaluates at just these sizes.

    Raises:
        UserError: If the network has no batch-norm statistics for one of the sizes.
    """
    part = enlarged_part(network)
    known = () if part is None else part.sizes
    unknown = sorted(set(sizes) - set(known))
    if unknown:
        raise UserError(
            f"Expected enlarged_sizes that the run has batch-norm statistics for ({list(known)}), but found {unknown}; "
            f"leave it out, or train a run with model.network.enlarged_sizes {list(sizes)}."
        )
    if part is None or set(sizes) == set(known):
        return network
    copy = deepcopy(network)
    assert isinstance(copy, EnlargingNetwork)
    assert copy.enlarged is not None
    kept = [index for index, size in enumerate(known) if size in sizes]
    copy.enlarged.features = nn.ModuleList(copy.enlarged.features[index] for index in kept)
    copy.enlarged.sizes = tuple(known[index] for index in kept)
    if not kept:
        copy.enlarged = None
    return copy
