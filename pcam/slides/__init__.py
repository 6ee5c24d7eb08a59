"""Slides: from a whole-slide image to a map of scores, and the files that others open."""

from pcam.slides.scores import SlideScores
from pcam.slides.scoring import score_slide

__all__ = ["SlideScores", "score_slide"]
