"""Where in a patch a network looks: HiResCAM, how much of it lies in the centre, and a sheet of overlays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pcam.errors import UserError
from pcam.evaluation.statistics import Interval, interval, resample_units
from pcam.extras import import_extra
from pcam.patches import CENTRE_START, CENTRE_STOP, PATCH_SIZE, Logits, PatchArray, Patches

CHANCE: Final = ((CENTRE_STOP - CENTRE_START) / PATCH_SIZE) ** 2
"""The centre's share of the area: 1/9."""

Attributions = Float32[Tensor, "batch rows columns"]
"""Evidence for tumour, or below 0 against it, in each square of a grid that is laid over a patch."""


def explain(network: nn.Module, patches: Patches) -> tuple[Attributions, Logits]:
    """Compute HiResCAM of the last convolutional features for the logit: features times gradients, over all channels.

    With both signs: a network may know tumour by the want of what is normal, and then all its evidence in the centre is
    evidence against.

    Where a network also sees patches enlarged, the map is of the features of the patches as they are.

    Grad-CAM averages the gradients over places first. Before a global average pool, as in MobileNetV2, they are the
    same at all places, and so are both maps; before dense layers, as in the baseline CNN, the average says nothing of
    any place.

    Args:
        network: In evaluation mode, with a part named `features`.
        patches: Shape (batch, 3, 96, 96), values 0..255.

    Returns:
        The attributions, on the grid of the features (3x3 for MobileNetV2, 6x6 for the baseline CNN), and the logits.

    Raises:
        UserError: If the network has no such part, as transformers.

    Source: Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", section 3; Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", section 3.
    """
    attr = import_extra("captum.attr", "explain")
    features = getattr(network, "features", None)
    if features is None:
        raise UserError(
            f"Expected a network with a part that computes convolutional features, but {type(network).__name__} has "
            f"none that is known; explain one of another architecture."
        )
    logits: list[Tensor] = []

    def forward(patches: Tensor) -> Tensor:
        logits.append(network(patches))
        return logits[-1]

    products: Tensor = attr.LayerGradientXActivation(forward, features).attribute(patches.float())
    return products.detach().sum(dim=1), logits[-1].detach()


def centre_share(attributions: Attributions) -> Float32[Tensor, " batch"]:
    """How much of the attribution lies in the centre 32x32, which is all that the label is about.

    Evidence for and against counts alike; each square's is spread evenly over its pixels.

    Args:
        attributions: Of patches.

    Returns:
        Shape (batch,), 0..1; NaN where there is no evidence anywhere.
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
        patches: Of this class.
        without_evidence: How many of them have no evidence anywhere, and so no share.
        mean: Mean share of the others, 0..1; NaN if there are none.
        interval: Its 95 % interval, from resampling slides, or groups of identical patches.
    """

    patches: int
    without_evidence: int
    mean: float
    interval: Interval

    @classmethod
    def measure(cls, shares: NDArray[np.float64], units: Sequence[str]) -> "CentreShare":
        """Average.

        Args:
            shares: Of each patch of one class; NaN without evidence.
            units: The unit of each patch, as `independent_units` names it.

        Returns:
            The mean and how sure it is.
        """
        defined = ~np.isnan(shares)
        if not defined.any():
            return cls(len(shares), len(shares), np.nan, (np.nan, np.nan))
        values = shares[defined]
        resampled = [
            weights @ values / weights.sum(axis=1) for weights in resample_units(np.asarray(units)[defined].tolist())
        ]
        return cls(len(shares), len(shares) - len(values), float(values.mean()), interval(np.concatenate(resampled)))


def overlay_sheet(
    patches: PatchArray,
    attributions: Attributions,
    scores: NDArray[np.float64],
    labels: Sequence[int | None],
    columns: int = 4,
) -> Figure:
    """Draw patches, each beside itself in grey under its attribution; the square is the centre.

    Args:
        patches: Shape (count, 96, 96, 3).
        attributions: Of the patches. Red is for tumour, blue against; each map has its own scale.
        scores: Of the patches.
        labels: Of the patches; None if not known.
        columns: Patches a row.

    Returns:
        A page; the text above patches that a threshold of 0.5 gets wrong is red.
    """
    rows, gap, heading = -(-len(patches) // columns), 8, 14  # of pixels between patches, and above each for its text
    height, width = PATCH_SIZE + heading, 2 * PATCH_SIZE + gap
    page = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(2.8 * columns, 2.8 * columns * page.shape[0] / page.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    smooth = interpolate(attributions.cpu().unsqueeze(1), size=(PATCH_SIZE, PATCH_SIZE), mode="bilinear").squeeze(1)
    peaks = smooth.abs().amax(dim=(1, 2), keepdim=True)
    heat = 255 * colormaps["RdBu_r"]((0.5 + 0.5 * smooth / peaks.clamp(min=1e-12)).numpy())[..., :3]
    # Grey: the stain's purple and pink would mix with the map's colours. Grey alone where nothing is to be shown.
    opacity = 0.5 * (peaks > 0).numpy()[..., None]
    blended = ((1 - opacity) * patches.mean(axis=3, keepdims=True) + opacity * heat).astype(np.uint8)
    shares = centre_share(attributions).tolist()
    for index, (score, label, share) in enumerate(zip(scores.tolist(), labels, shares, strict=True)):
        top, left = index // columns * height + heading, index % columns * width + gap // 2
        page[top : top + PATCH_SIZE, left : left + 2 * PATCH_SIZE] = np.hstack([patches[index], blended[index]])
        words = [] if label is None else [f"label {label}"]
        words += [f"score {score:.2f}", "no evidence" if np.isnan(share) else f"{share:.0%} in centre"]
        color = "black" if label is None or (score > 0.5) == bool(label) else "red"
        axes.text(left + PATCH_SIZE, top - 3, ", ".join(words), ha="center", fontsize=8, color=color)
        for start in (left, left + PATCH_SIZE):
            corner = (start + CENTRE_START - 0.5, top + CENTRE_START - 0.5)  # the edge of a pixel, not its middle
            size = CENTRE_STOP - CENTRE_START
            for edge, line_width in (("white", 2), ("black", 0.8)):  # can be seen on any stain
                axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=edge, linewidth=line_width))
    axes.imshow(page)
    return figure
