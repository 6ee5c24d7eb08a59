"""What the page answers: the scores of files that a visitor dropped, with decisions, pictures and complaints."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from scipy.special import expit

from pcam.data.inputs import read_inputs
from pcam.errors import UserError
from pcam.evaluation.sheets import overlay_sheet
from pcam.patches import PATCH_SIZE
from pcam.run_folder import run_names
from pcam.slides.pictures import map_figure
from pcam.slides.scores import SlideScores
from pcam.slides.scoring import score_slide
from pcam.trained import TrainedRun

MOST_PATCHES: Final = 64
"""The number of patches, at most, that are answered at once: more are a matter for `pcam predict`."""

MOST_SHOWN: Final = 24
"""The number of patches, at most, that are drawn."""


@dataclass
class Answer:
    """What the page shows.

    Args:
        table: One row for each patch and run: scores, probabilities and decisions.
        sheets: For each run, the patches with what speaks for and against tumour in them.
        slides: The scores of each larger image by the first run.
        complaints: What could not be done, each in a sentence.
    """

    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    sheets: list[Figure] = field(default_factory=list)
    slides: list[SlideScores] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def answer(runs: Sequence[TrainedRun], files: Sequence[Path], mpp: float | None = None) -> Answer:
    """Score files.

    Args:
        runs: The classifiers, at least one.
        files: Patches of 96x96 pixels, and larger images or slides.
        mpp: The micrometres per pixel of larger images, instead of those that their files say.

    Returns:
        The answer; what is wrong with a file is one of its complaints.
    """
    found = Answer()
    patches = [path for path in files if _is_patch(path)]
    if len(patches) > MOST_PATCHES:
        found.complaints.append(
            f"Expected at most {MOST_PATCHES} patches at once, but found {len(patches)}; the first {MOST_PATCHES} were "
            f"scored: drop the others after them, or use pcam predict."
        )
    if patches:
        _answer_patches(found, runs, patches[:MOST_PATCHES])
    for path in files:
        if path not in patches:
            try:
                found.slides.append(score_slide(runs[0], path, mpp=mpp, threshold=_middle_threshold(runs[0])))
            except UserError as error:
                found.complaints.append(str(error).replace(str(path), path.name).replace("--mpp", "the field for it"))
    return found


def with_threshold(scores: SlideScores, threshold: float) -> tuple[Figure, str]:
    """Draw the map of a larger image at a threshold, and say how much lies above it.

    Args:
        scores: The scores of the image.
        threshold: The score above which a square is called tumour, 0..1.

    Returns:
        The figure and the sentence.
    """
    changed = replace(scores, threshold=threshold)
    numbers = changed.summary()
    highest = "undefined, as nothing is tissue" if numbers["maximum"] is None else f"{numbers['maximum']:.3f}"
    sentence = (
        f"**{scores.slide.name}**: {numbers['area_above_threshold_mm2']:.3f} mm² of "
        f"{numbers['tissue_area_mm2']:.3f} mm² of tissue have a score above {threshold:.2f}, in {numbers['regions']} "
        f"regions; the longest is {numbers['largest_region_length_mm']:.2f} mm. The highest score is {highest}."
    )
    return map_figure(changed), sentence


def _is_patch(path: Path) -> bool:
    """Whether a file is a picture of the size of a patch; what it is else, the reader of slides will say."""
    try:
        with Image.open(path) as image:
            return image.size == (PATCH_SIZE, PATCH_SIZE)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return False


def _answer_patches(found: Answer, runs: Sequence[TrainedRun], paths: Sequence[Path]) -> None:
    batch = next(read_inputs(paths, len(paths)))
    found.complaints += [reason.replace(str(Path(name).parent) + "/", "") for name, reason in batch.unreadable]
    if not batch.ids:
        return
    names = [Path(name).name for name in batch.ids]
    rows = []
    for run, of_run in zip(runs, run_names([run.folder for run in runs]), strict=True):
        logits = run.logits(batch.patches).astype(np.float64)
        chosen = run.recorded_choices()
        temperature = chosen.get("temperature") if chosen else None
        thresholds = chosen["thresholds"] if chosen else {"0.5": 0.5}
        for name, logit in zip(names, logits, strict=True):
            score = float(expit(logit))
            rows.append(
                {
                    "patch": name,
                    "run": of_run,
                    "score": round(score, 4),
                    "calibrated probability": None
                    if temperature is None
                    else round(float(expit(logit / temperature)), 4),
                }
                | {f"at {point} ({value:.3f})": _decision(score, value) for point, value in thresholds.items()}
            )
        shown = slice(MOST_SHOWN)
        attributions, _ = run.attributions(batch.patches[shown])
        title = f"Evidence for and against tumour: {of_run}"
        scores = expit(logits[shown])
        found.sheets.append(
            overlay_sheet(batch.patches[shown], attributions, scores, [None] * len(names[shown]), names[shown], title)
        )
    found.table = pd.DataFrame(rows)


def _middle_threshold(run: TrainedRun) -> float:
    """Youden's threshold, or .5 where it is not known."""
    chosen = run.recorded_choices()
    return float(chosen["thresholds"].get("youden", 0.5)) if chosen else 0.5


def _decision(score: float, threshold: float) -> str:
    return "tumour" if score > threshold else "normal"
