"""Readings: the ways in which one set of weights is evaluated.

In training, batch norm normalises by the statistics of the batch; in evaluation, by running statistics, which follow
those of the batches at the speed of its momentum. The momentum never changes the weights, so one training can be
evaluated with the statistics of several momenta, and with statistics that are estimated again from training patches.
A further reading is of patches whose staining is shifted, where the arm's config asks for such.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from pcam.errors import UserError
from pcam.options import SplitName

if TYPE_CHECKING:
    from pcam.evaluation.predictions import Predictions
    from pcam.run_folder import RunFolder
    from pcam.study.plan import Plan, Run
    from pcam.trained import TrainedRun

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


def measure_run(plan: "Plan", root: Path, run: "Run", folder: "RunFolder") -> None:
    """Predict a split with a run's last checkpoint, once for each reading, and write the result into its folder.

    Args:
        plan: The study.
        root: The folder with the patches.
        run: The run of the study.
        folder: The folder of the run, which is trained.

    Raises:
        UserError: If a reading's statistics or a finite logit are missing, or the checkpoint does not fit.
    """
    # These import PyTorch, which takes seconds, and which a plan does without.
    from pcam.study.backbones import measure_backbone
    from pcam.study.results import write_result
    from pcam.trained import TrainedRun

    trained = TrainedRun.load(folder.path, "last", root=root)
    # First: the readings of batch norm leave their statistics in the network.
    shifted = trained.predict(plan.split, shifted=True) if trained.data.stain_shifts else None
    if plan.arms[run.arm].batch_norm_readings:
        readings = _read_batch_norm(trained, plan.split)
    else:
        readings = {TRAINED_READING: trained.predict(plan.split)}
    if shifted is not None:
        readings["stain_shifted"] = shifted
    train_patches = len(trained.data.packed("train"))
    facts = {
        "step": trained.step,
        "batch_size": trained.data.batch_size,
        "train_patches": train_patches,
        "passes": trained.step * trained.data.batch_size / train_patches,
        "data_fingerprint": trained.data.packed(plan.split).fingerprint,
        **measure_backbone(trained, plan.split),
    }
    write_result(run, folder, plan.split, readings, facts)


def _read_batch_norm(trained: "TrainedRun", split: SplitName) -> "dict[Reading, Predictions]":
    """Predict with the statistics of each momentum, then with statistics that are estimated again."""
    from pcam.models.batch_norm import REESTIMATION_PATCHES, learning_layers, reestimate_batch_norm, write_statistics
    from pcam.training import BatchNormReadings
    from pcam.training.checkpoints import load_checkpoint

    checkpoint = trained.folder.checkpoint("last")
    saved = BatchNormReadings.saved(load_checkpoint(checkpoint))
    layers = learning_layers(trained.network)
    readings: dict[Reading, Predictions] = {}
    for reading, momentum in READING_MOMENTA.items():
        if momentum not in saved:
            raise UserError(
                f"Expected {checkpoint} to have batch-norm statistics of momentum {momentum}, but found those of "
                f"{', '.join(map(str, saved)) or 'none'}; move {trained.folder.path} away, and the study trains the "
                f"run again."
            )
        write_statistics(layers, saved[momentum].to(trained.device))
        readings[reading] = trained.predict(split)
    reestimate_batch_norm(trained.network, trained.data.training_patches(REESTIMATION_PATCHES, trained.device))
    readings["reestimated"] = trained.predict(split)
    return readings
