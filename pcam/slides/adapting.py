"""The classifier of each slide, where it is adapted, without labels, to the staining of the slides that it scores."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcam.errors import UserError
from pcam.evaluation.adaptation import MAX_PATCHES, MIN_PATCHES, SEED
from pcam.options import Adaptation
from pcam.patches import PatchArray
from pcam.slides.cutting import sample_windows
from pcam.slides.slide import Slide, open_slide, stamp
from pcam.terminal import printable
from pcam.trained import TrainedRun


class SlideClassifiers:
    """The classifier of each slide: the run as it was trained, or adapted to one slide, or to all.

    Args:
        run: The run as it was trained.
        adaptation: How it is adapted, to each "slide" or to "all"; None if it is not.
        slides: All slides.
        mpp: Their micrometres per pixel; None takes those that their files say.

    Attributes:
        key: What scores depend on besides the run and the slide.
    """

    def __init__(
        self, run: TrainedRun, adaptation: Adaptation | None, slides: Iterable[Path], mpp: float | None
    ) -> None:
        self._run = run
        self._adaptation = adaptation
        self._to_all: TrainedRun | None = None
        self.key: dict[str, Any] = {} if adaptation is None else {"adaptation": str(adaptation)}
        if adaptation is not None and adaptation.unit == "all":
            paths = list(slides)
            self.key["adapted to"] = [stamp(path) if path.exists() else None for path in paths]
            windows = [window for path in paths for window in _windows(path, mpp, len(paths))]
            self._to_all = self._adapted(np.array(windows))

    def of(self, slide: Slide, say: Callable[[str], None]) -> TrainedRun:
        """Find the classifier of a slide.

        Args:
            slide: The slide.
            say: Is told if there is too little tissue to adapt to, so that the slide is scored as trained.
        """
        if self._adaptation is None:
            return self._run
        found = self._to_all or self._adapted(sample_windows(slide, MAX_PATCHES, SEED))
        if found is self._run:
            say(
                f"{printable(str(slide.path))}: fewer than {MIN_PATCHES} windows of tissue side by side to adapt to, "
                f"so it is scored as trained"
            )
        return found

    def _adapted(self, windows: PatchArray) -> TrainedRun:
        assert self._adaptation is not None
        return self._run if len(windows) < MIN_PATCHES else self._run.adapted_to(windows, self._adaptation)


def _windows(path: Path, mpp: float | None, slides: int) -> Iterable[NDArray[np.uint8]]:
    """Draw one slide's part of the windows; none of a slide that cannot be read, which is said when it is scored."""
    try:
        return sample_windows(open_slide(path, mpp), -(-MAX_PATCHES // slides), SEED)
    except UserError:
        return []
