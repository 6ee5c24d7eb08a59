"""The scores of patches without labels, written to a CSV file a batch at a time."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import IO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from scipy.special import expit

from pcam.atomic import atomic_path, is_stream
from pcam.data.inputs import count_inputs, read_inputs
from pcam.errors import UserError
from pcam.outputs import ERRORS_CSV, SCORES_CSV, check_output
from pcam.patches import PatchArray

Classify = Callable[[PatchArray], NDArray[np.float32]]
"""A function from patches to their logits."""


def write_scores(
    load: Callable[[], Classify], paths: Iterable[Path], output: Path, submission: bool, batch_size: int
) -> int:
    """Score patches and write the scores to a CSV file.

    Args:
        load: Makes the function that classifies; called once it is clear that there are patches.
        paths: The patches, as `read_inputs` takes them.
        output: The CSV file. The patches that cannot be read are listed beside it, in `<name>.errors.csv`; or on
            standard error, if the output is a stream such as /dev/stdout.
        submission: Whether to write the columns id and label that Kaggle takes, instead of id, logit and score.
        batch_size: The number of patches that are classified at once.

    Returns:
        The number of patches.

    Raises:
        UserError: If some patches cannot be read (the others are scored nevertheless), or if two patches of a
            submission have the same name.
    """
    errors = output.parent / f"{output.stem}.errors.csv"
    check_output(output, SCORES_CSV, paths)
    streamed = is_stream(output)
    if not streamed:
        check_output(errors, ERRORS_CSV, paths)
    count = count_inputs(paths)
    classify = load()
    failed, first = 0, ""
    with (
        atomic_path(output) as scores_path,
        nullcontext(None) if streamed else atomic_path(errors) as errors_path,
        _open_csv(scores_path) as scores_file,
        nullcontext(sys.stderr) if errors_path is None else _open_csv(errors_path) as errors_file,
        progress_bar(to_standard_error=streamed) as progress,
    ):
        scores, unreadable = csv.writer(scores_file), csv.writer(errors_file)
        scores.writerow(["id", "label"] if submission else ["id", "logit", "score"])
        if not streamed:
            unreadable.writerow(["id", "reason"])
        task = progress.add_task("Scoring", total=count)
        names: set[str] = set()
        for batch in read_inputs(paths, batch_size):
            if submission:
                _check_names(batch.ids, names)
            scores.writerows(_rows(batch.ids, classify(batch.patches), submission))
            for name, reason in batch.unreadable:
                unreadable.writerow([_cell(name), reason])
                failed += 1
                first = first or reason
            progress.advance(task, len(batch.ids) + len(batch.unreadable))
    if failed:
        where = "the lines before say" if streamed else f"{errors} says"
        raise UserError(
            f"Expected to score every patch, but {failed:,} of {count:,} cannot be read (the first: "
            f"{first.rstrip('.')}); {where} why of each, {output} has the scores of the others."
        )
    if not streamed:
        errors.unlink(missing_ok=True)
    return count


def progress_bar(*, to_standard_error: bool = False) -> Progress:
    """Make a progress bar that also shows how many are done."""
    console = Console(stderr=True) if to_standard_error else None
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)


def _rows(ids: Sequence[str], logits: NDArray[np.float32], submission: bool) -> Iterator[tuple[str | float, ...]]:
    logits = logits.astype(np.float64)  # in float32 logits above 17 would all have the score 1
    for name, logit, score in zip(ids, logits.tolist(), expit(logits).tolist(), strict=True):
        yield (_cell(PurePath(name).stem), score) if submission else (_cell(name), logit, score)


def _check_names(ids: Sequence[str], names: set[str]) -> None:
    """Add the names of patches in a submission; refuse a name that is there already."""
    for patch_id in ids:
        name = PurePath(patch_id).stem
        if name in names:
            raise UserError(
                f"Expected files whose names differ for --submission, but found a second '{name}', {patch_id}; leave "
                f"out one of them."
            )
        names.add(name)


def _open_csv(path: Path) -> IO[str]:
    # A file name need not be valid text.
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _cell(text: str) -> str:
    """Keep a spreadsheet from running a file's name as a formula.

    Source: OWASP, "CSV injection".
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
