"""Many slides, one after the other: which there are, what is done already, and which cannot be read."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcam.errors import UserError
from pcam.options import IMAGE_SUFFIXES, Adaptation, ThresholdName
from pcam.outputs import JSON, PNG, SLIDES_CSV, check_output
from pcam.slides.adapting import SlideClassifiers
from pcam.slides.marked import find_marked, read_marked
from pcam.slides.scoring import Report, score
from pcam.slides.slide import open_slide, stamp
from pcam.slides.thresholds import chosen_threshold
from pcam.slides.truth import SlideTruth, evaluate, write_evaluation
from pcam.slides.writing import check_files, read_map, write_slide, write_table, written_row
from pcam.terminal import printable
from pcam.trained import TrainedRun

SLIDE_SUFFIXES: Final = IMAGE_SUFFIXES | {
    ".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu",
}  # fmt: skip
"""Endings of files that a folder is searched for. DICOM, of which one slide is many files, is named by one of them."""


def find_slides(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """List slides, and the folder that each is given.

    Args:
        paths: Files and folders of files.
        output: The folder of all.

    Returns:
        The folder of each slide, named as the slide.

    Raises:
        UserError: If there are none, or two have the same name.
    """
    found: list[Path] = []
    for path in paths:
        inside = (
            [one for one in sorted(path.iterdir()) if one.suffix.lower() in SLIDE_SUFFIXES] if path.is_dir() else []
        )
        if path.is_dir() and not inside:
            raise UserError(
                f"Expected slides ({', '.join(sorted(SLIDE_SUFFIXES))}) in the folder {path}, but found none; correct "
                f"the path."
            )
        found += inside if path.is_dir() else [path]
    folders: dict[Path, Path] = {}
    for slide in found:
        folder = output / slide.stem
        if folder in folders.values() and slide not in folders:
            raise UserError(
                f"Expected slides whose names differ, as each is given a folder of its own, but found a second "
                f"'{slide.stem}', {slide}; score it apart, with another --output."
            )
        folders[slide] = folder
    return folders


def score_slides(
    run: TrainedRun,
    slides: Mapping[Path, Path],
    output: Path,
    *,
    mpp: float | None = None,
    tissue: Path | None = None,
    truth: Path | None = None,
    threshold: ThresholdName = "specificity_95",
    adaptation: Adaptation | None = None,
    batch_size: int,
) -> None:
    """Score slides, write what there is of each, and evaluate them if the truth is known.

    Args:
        run: The classifier.
        slides: The folder for each slide.
        output: The folder of all.
        mpp: The micrometres per pixel of the slides; None takes those that their files say.
        tissue: What is tissue, as a file or a folder; None finds it.
        truth: What is tumour, as a file or a folder; None if it is not known.
        threshold: The name of the threshold; it is that of the network as it was trained.
        adaptation: How the network is adapted: to each "slide", or to "all" of them; None leaves it as it was trained.
        batch_size: The number of windows that are classified at once.

    Raises:
        UserError: If a slide cannot be read (the others are scored nevertheless).
    """
    table = output / "slides.csv"
    outputs = {table: SLIDES_CSV}
    if truth is not None:
        outputs |= {output / "metrics.json": JSON, output / "froc.png": PNG, output / "roc.png": PNG}
    for path, kind in outputs.items():
        check_output(path, kind, slides)
    if tissue is not None:
        _check_place(tissue, list(slides))
    marked = {} if truth is None else find_truths(truth, slides)
    limit = chosen_threshold(run, threshold)
    rows: list[Mapping[str, Any]] = []
    truths: list[SlideTruth] = []
    failures: list[str] = []
    classifiers = SlideClassifiers(run, adaptation, slides, mpp)
    with _Bar() as bar:
        for path, folder in slides.items():
            try:
                check_files(folder, path)
                areas = None if tissue is None else _find_tissue(tissue, path)
                slide = open_slide(path, mpp)
                key = _key(run, path, areas, mpp, threshold, limit) | classifiers.key
                row = written_row(folder, key)
                if row is None:
                    unfinished = folder / "unfinished.npz"
                    within = None if areas is None else read_marked(areas, slide, tumour=False)
                    classify = partial(classifiers.of(slide, bar.say).logits, batch_size=batch_size)
                    scores = score(slide, classify, limit, within, batch_size, unfinished=unfinished, key=key,
                                   report=bar.begin(path))  # fmt: skip
                    write_slide(scores, slide, folder, key)
                    unfinished.unlink(missing_ok=True)
                    row = written_row(folder, key)
                    assert row is not None
                    bar.say(f"{printable(str(path))}: {scores.windows:,} windows in {scores.seconds:.0f} s, {folder}")
                else:
                    bar.say(f"{printable(str(path))}: done before, {folder}")
                if truth is not None:
                    annotated = marked[path]
                    tumour = None if annotated is None else read_marked(annotated, slide)
                    truths.append(SlideTruth.of(path.name, read_map(folder), slide, tumour))
                rows.append(row)
            except UserError as error:
                failures.append(str(error))
                bar.say(printable(str(error)))
    if rows:
        write_table(rows, table)
        print(f"Scores of {len(rows):,} slides: {table}")
    if truths:
        write_evaluation(evaluate(truths), output)
    if failures:
        raise UserError(
            failures[0]
            if len(slides) == 1
            else f"Expected to score every slide, but {len(failures)} of {len(slides)} failed (the first: "
            f"{failures[0].rstrip('.')}); the others are in {output}."
        )


def find_truths(truth: Path, slides: Iterable[Path]) -> dict[Path, Path | None]:
    """Find the file that marks the tumour of each slide; say which are normal because the folder has none for them.

    Args:
        truth: The folder, or the file for a single slide.
        slides: The slides.

    Returns:
        The file for each; None for those that are taken as normal.

    Raises:
        UserError: If it is for none of the slides, or one file for several.
    """
    slides = list(slides)
    _check_place(truth, slides)
    found = {path: find_marked(truth, path) for path in slides}
    normal = [path.name for path, file in found.items() if file is None]
    if len(normal) == len(found):
        raise UserError(
            f"Expected the truth of slides in {truth}, named as they are (such as {normal[0].rpartition('.')[0]}.xml), "
            f"but found none; correct --truth."
        )
    if normal:
        print(f"Taken as normal, because {truth} has no file for them: {', '.join(map(printable, normal))}")
    return found


def _find_tissue(tissue: Path, slide: Path) -> Path:
    found = find_marked(tissue, slide)
    if found is None:
        raise UserError(f"Expected a file that marks the tissue of {slide} in {tissue}, but found none; add it.")
    return found


def _check_place(place: Path, slides: Sequence[Path]) -> None:
    """Refuse one file that would mark areas of several slides."""
    if place.is_file() and len(slides) > 1:
        raise UserError(
            f"Expected a folder with a file for each of {len(slides)} slides, but found the file {place}; name the "
            f"folder, or one slide."
        )


def _key(
    run: TrainedRun, slide: Path, tissue: Path | None, mpp: float | None, threshold: str, limit: float
) -> dict[str, Any]:
    """What the scores of a slide depend on."""
    key = {
        "slide": stamp(slide),
        "checkpoint": stamp(run.folder.checkpoint(run.checkpoint)),
        "settings": run.settings.suffix,
        "tissue": None if tissue is None else stamp(tissue),
        "mpp": mpp,
        "threshold": [threshold, limit],
    }
    found: dict[str, Any] = json.loads(json.dumps(key))
    return found


class _Bar(Progress):
    """A progress bar that shows the windows per second, and the time that is left for a slide."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("blocks, {task.fields[speed]}"),
            TimeRemainingColumn(),
        )

    def begin(self, path: Path) -> Report:
        """Begin with a slide; what is returned is told of its progress."""
        for task in self.task_ids:
            self.remove_task(task)
        task = self.add_task(printable(path.name).replace("[", r"\["), total=None, speed="")
        start, before = time.monotonic(), -1

        def report(done: int, blocks: int, windows: int) -> None:
            nonlocal before
            before = windows if before < 0 else before  # of a run that was stopped, or of the first batch
            speed = (windows - before) / max(time.monotonic() - start, 1e-9)
            self.update(task, completed=done, total=blocks, speed=f"{speed:,.0f} windows/s")

        return report

    def say(self, words: str) -> None:
        """Print a line above the bar."""
        self.console.print(words, markup=False, highlight=False)
