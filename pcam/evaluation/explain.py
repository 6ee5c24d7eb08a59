"""Where in a patch a network finds evidence: HiResCAM, and how much of it lies in the centre."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pcam.data.packed import PackedSplit
from pcam.errors import UserError
from pcam.evaluation.statistics import Interval, independent_units, interval, resample_units
from pcam.extras import import_extra
from pcam.models.symmetry import logits_of_mean_score
from pcam.patches import CENTRE_START, CENTRE_STOP, CLASS_NAMES, PATCH_SIZE, Logits, PatchArray, Patches

CHANCE: Final = ((CENTRE_STOP - CENTRE_START) / PATCH_SIZE) ** 2
"""The chance level of the centre share: the centre is 1/9 of the area."""

BATCH_SIZE: Final = 128
"""The number of patches that are explained at once."""

Attributions = Float32[Tensor, "batch rows columns"]
"""The evidence for tumour (above 0) or against it (below 0) in each square of a grid over a patch."""

Explain = Callable[[PatchArray], tuple[Attributions, NDArray[np.float32]]]
"""A function from patches to their attributions, on the CPU, and logits."""


@runtime_checkable
class ConvolutionalNetwork(Protocol):
    """A network that can be explained. Any network with this attribute is one.

    Attributes:
        features: The part that computes the convolutional features, shape (batch, channels, rows, columns). It is
            called once when the network classifies, with patches that it has not seen before.
    """

    features: nn.Module


def explain(network: nn.Module, patches: Patches) -> tuple[Attributions, Logits]:
    """Compute HiResCAM of the convolutional features for the logit: features times gradients, summed over channels.

    The map keeps both signs. A network may recognise tumour by the absence of normal tissue, and then all its evidence
    in the centre is evidence against tumour.

    If a network also evaluates patches enlarged, the map is of the features of the patches in their own size.

    Grad-CAM averages the gradients over all places first. Before a global average pool, as in MobileNetV2, they are
    the same at all places, so that both methods give the same map. Before dense layers, as in the baseline CNN, an
    average of gradients says nothing about any place.

    Args:
        network: In evaluation mode; a `ConvolutionalNetwork`.
        patches: Shape (batch, 3, 96, 96), values 0..255.

    Returns:
        The attributions, on the grid of the features (3x3 for MobileNetV2, 6x6 for the baseline CNN), and the logits.

    Raises:
        UserError: If the network has no part with convolutional features, as transformers.

    Source: Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", section 3; Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", section 3.
    """
    attr = import_extra("captum.attr", "explain")
    if not isinstance(network, ConvolutionalNetwork) or not isinstance(network.features, nn.Module):
        raise UserError(
            f"Expected a network whose attribute features is the part that computes its convolutional features, but "
            f"{type(network).__name__} has none; explain another network, or name that part of yours features."
        )
    logits: list[Tensor] = []
    shapes: list[tuple[int, ...]] = []

    def forward(patches: Tensor) -> Tensor:
        logits.append(network(patches))
        return logits[-1]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())

    with network.features.register_forward_hook(note), torch.no_grad():
        network(patches[:1].float())
    if len(shapes) != 1 or len(shapes[0]) != 4:
        found = f"a result of shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} calls of it"
        raise UserError(
            f"Expected the part features of {type(network).__name__} to give features of shape (batch, channels, rows, "
            f"columns), once for each patch, but found {found}; name the last convolutional part of the network "
            f"features."
        )
    products: Tensor = attr.LayerGradientXActivation(forward, network.features).attribute(patches.float())
    return products.detach().sum(dim=1).float(), logits[-1].detach()


def explain_mean_score(network: nn.Module, patches: Patches) -> tuple[Attributions, Logits]:
    """Compute HiResCAM for the logit of the mean score over the eight symmetries (test-time augmentation).

    The features of each view are multiplied by the gradient of that logit, as in `explain`. The map of each view is
    then turned back to how the patch lies, and the maps are summed.

    Args:
        network: As for `explain`.
        patches: As for `explain`.

    Returns:
        The attributions, as those of `explain`, and the logits of the mean scores.

    Raises:
        UserError: As `explain`.
    """
    maps, logits = [], []
    for transposed in (False, True):
        for turns in range(4):
            view = patches.transpose(2, 3) if transposed else patches
            turned, of_view = explain(network, torch.rot90(view, turns, (2, 3)))
            upright = torch.rot90(turned, -turns, (1, 2))
            maps.append(upright.transpose(1, 2) if transposed else upright)
            logits.append(of_view.float())
    views = torch.stack(logits).requires_grad_()
    with torch.enable_grad():
        mean = logits_of_mean_score(views)
        (slopes,) = torch.autograd.grad(mean.sum(), views)  # how the mean's logit depends on the logit of each view
    return (slopes[:, :, None, None] * torch.stack(maps)).sum(dim=0), mean.detach()


def centre_share(attributions: Attributions) -> Float32[Tensor, " batch"]:
    """Compute the share of the attribution that lies in the centre 32x32 pixels, which alone decide the label.

    Evidence for and against tumour counts alike, and that of each square of the grid is spread evenly over its pixels.

    Args:
        attributions: The attribution of each patch.

    Returns:
        Shape (batch,), 0..1; NaN for a patch without evidence anywhere.
    """
    pixels = interpolate(attributions.abs().unsqueeze(1), size=(PATCH_SIZE, PATCH_SIZE), mode="nearest-exact").squeeze(
        1
    )
    centre = pixels[:, CENTRE_START:CENTRE_STOP, CENTRE_START:CENTRE_STOP]
    return centre.sum(dim=(1, 2)) / pixels.sum(dim=(1, 2))


@dataclass(frozen=True)
class CentreShare:
    """The centre's share of the attribution, over patches of one class.

    Args:
        patches: The number of patches of this class.
        without_evidence: The number of patches without evidence anywhere, which have no share.
        mean: The mean share of the others, 0..1; NaN if there are none.
        interval: Its 95 % interval, from resampling slides or groups of identical patches.
    """

    patches: int
    without_evidence: int
    mean: float
    interval: Interval

    @classmethod
    def of(cls, shares: NDArray[np.float64], units: Sequence[str]) -> "CentreShare":
        """Average the shares of patches, with an interval.

        Args:
            shares: The share of each patch of one class; NaN for a patch without evidence.
            units: The unit of each patch, as `independent_units` names it.

        Returns:
            The mean and its interval.
        """
        defined = ~np.isnan(shares)
        if not defined.any():
            return cls(len(shares), len(shares), np.nan, (np.nan, np.nan))
        values = shares[defined]
        resampled = [
            weights @ values / weights.sum(axis=1) for weights in resample_units(np.asarray(units)[defined].tolist())
        ]
        return cls(len(shares), len(shares) - len(values), float(values.mean()), interval(np.concatenate(resampled)))


def centre_shares(store: PackedSplit, explain_patches: Explain, description: str) -> dict[str, CentreShare]:
    """Compute the centre share over all patches of a split.

    Args:
        store: The packed store of the split.
        explain_patches: The function that explains patches.
        description: What the progress bar says.

    Returns:
        The centre share of each class, by its name.
    """
    rows = np.arange(len(store))
    batches = track(np.split(rows, rows[BATCH_SIZE::BATCH_SIZE]), description)
    shares = np.concatenate(
        [centre_share(explain_patches(store.patches[batch])[0]).double().numpy() for batch in batches]
    )
    units = np.array(independent_units(store.pixel_hashes(), store.slides()))
    return {
        name: CentreShare.of(shares[store.labels == label], units[store.labels == label].tolist())
        for label, name in enumerate(CLASS_NAMES)
    }
