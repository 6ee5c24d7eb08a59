"""The threshold of a run: its own choice on the valid split, by name."""

from typing import Final, Literal, get_args

from scipy.special import expit

from pcam.errors import UserError
from pcam.evaluation.measurement import Choices
from pcam.options import ThresholdName
from pcam.trained import TrainedRun

HALF: Final[Literal["0.5"]] = "0.5"
"""The threshold that is not chosen on any split."""


def chosen_threshold(run: TrainedRun, name: ThresholdName, tta: bool | None = None) -> float:
    """Find the score above which a patch is called tumour, as evaluating the run on valid chose it.

    If the run was not evaluated with these settings, the valid split is classified now.

    Args:
        run: The classifier.
        name: The name of the threshold.
        tta: Whether scores are averaged over the eight symmetries of the square; None does as the run was loaded.

    Returns:
        The threshold, a score, 0..1.

    Raises:
        UserError: If it is not recorded, and the valid split cannot be read; or if it is not defined on it.
    """
    if name == HALF:
        return 0.5
    if name not in get_args(ThresholdName):
        raise UserError(
            f"Expected a threshold from 0 to 1, or one of {', '.join(get_args(ThresholdName))}, but found {name!r}."
        )
    record = run.recorded_choices(tta)
    if record is not None:
        thresholds = record["thresholds"]
    else:
        try:
            predictions = run.predict("valid", tta=tta, progress=True)
        except UserError as error:
            raise UserError(
                f"Expected the threshold {name} of {run.folder.path}, but it has not been evaluated on valid with "
                f"these settings, and its valid split cannot be read now ({str(error).rstrip('.')}); run pcam evaluate "
                f"where its data are, or take --threshold 0.5."
            ) from error
        thresholds = {key: float(expit(logit)) for key, logit in Choices.on(predictions).thresholds.items()}
    if name not in thresholds:
        raise UserError(
            f"Expected the threshold {name} of {run.folder.path}, but its valid split has only one class; take "
            f"--threshold 0.5."
        )
    return float(thresholds[name])
