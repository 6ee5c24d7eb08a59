"""Readings: the ways in which one set of weights is evaluated.

In training, batch norm normalises by the statistics of the batch; in evaluation, by running statistics, which follow
those of the batches at the speed of its momentum. The momentum never changes the weights, so one training can be
evaluated with the statistics of several momenta, and with statistics that are estimated again from training patches.
A further reading is of patches whose staining is shifted, where the arm's config asks for such.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

Reading = Literal["momentum_0.1", "momentum_0.001", "reestimated", "stain_shifted"]
READINGS: Final[tuple[Reading, ...]] = get_args(Reading)

TRAINED_READING: Final[Reading] = "momentum_0.1"
"""The reading with the statistics of the training itself, whose momentum is 0.1 in every config."""

PUBLISHED_READING: Final[Reading] = "momentum_0.001"
"""The reading of the published study, whose momentum is 0.999 in Keras's convention."""

MAIN_READING: Final[Reading] = "reestimated"
"""What the weights can do whatever the momentum was: the reading of those figures that show only one."""

READING_MOMENTA: Final[Mapping[Reading, float]] = {"momentum_0.1": 0.1, "momentum_0.001": 0.001}
"""The momentum of the readings that have one, in PyTorch's convention: the weight of the newest batch."""

READING_NAMES: Final[Mapping[Reading, str]] = {
    "momentum_0.1": "momentum 0.1 (PyTorch's)",
    "momentum_0.001": "momentum 0.001 (Keras's 0.999)",
    "reestimated": "re-estimated",
    "stain_shifted": "stains shifted",
}
"""What tables and figures call the readings."""

ONLY_READING_NAME: Final = "as trained"
"""What they call the reading of a network that has no batch norm, or whose batch norm is read in one way."""


def reading_names(readings: Mapping[Reading, object]) -> dict[Reading, str]:
    """Name the readings of a run.

    Args:
        readings: What there is of each reading, by reading.

    Returns:
        The name of each, in the order of `READINGS`.
    """
    names = {reading: READING_NAMES[reading] for reading in READINGS if reading in readings}
    return names if MAIN_READING in names else {**names, TRAINED_READING: ONLY_READING_NAME}


def share_of_start(steps: int) -> float:
    """Compute how much of the statistics before training is left in those of the published reading.

    Args:
        steps: Training steps, at least 0.

    Returns:
        The weight of the initial statistics, 1 before the first step and towards 0 after many.
    """
    share: float = (1 - READING_MOMENTA[PUBLISHED_READING]) ** steps
    return share
