#!/usr/bin/env python
"""Score patches without labels, or a larger image on a grid of windows.

python scripts/predict.py lightning_logs/imagenet_dropout/version_0 --input DIR --output scores.csv
python scripts/predict.py lightning_logs/imagenet_dropout/version_0 --input DIR --submission
find DIR -name '*.tif' | python scripts/predict.py lightning_logs/imagenet_dropout/version_0 --input --
python scripts/predict.py lightning_logs/imagenet_dropout/version_0 --input section.tif --tile
"""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePath
from typing import IO, Final

import numpy as np
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from numpy.typing import NDArray
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress
from scipy.special import expit

from pcam.atomic import atomic_path
from pcam.cli import Arguments, Parser, front_door, load_run
from pcam.data.inputs import count_inputs, listed_paths, read_inputs
from pcam.errors import UserError
from pcam.evaluation.predictions import check_finite
from pcam.evaluation.tiles import CELL_SIZE, Classify, open_image, overlay_figure, score_map
from pcam.options import CheckpointName, Precision
from pcam.patches import MICROMETRES_PER_PIXEL, PatchArray
from pcam.run_folder import RunFolder

STANDARD_INPUT: Final = Path("-")
"""What --input is if standard input lists the files."""


def predict(
    run: Path,
    inputs: list[Path],
    output: Path | None = None,
    submission: bool = False,
    tile: bool = False,
    mpp: PositiveFloat | None = None,
    batch_size: PositiveInt = 64,
    checkpoint: CheckpointName = "best",
    precision: Precision = "32-true",
) -> None:
    """Score patches, or with --tile a larger image.

    Args:
        run: The run folder.
        inputs: A folder with its subfolders, image files, or HDF5 files with the key x; `STANDARD_INPUT` alone for a
            list of these, one a line; with --tile one image.
        output: CSV file with the columns id, logit and score, in the order of the names of files. What cannot be read
            is listed beside it in `<name>.errors.csv` (id, reason), and makes the exit code 1. Ids that begin with
            = + - @, which a spreadsheet would run as formulas, get an apostrophe before them. With --tile the score
            map, a float TIFF (.tif or .tiff) beside which lies a picture of it, `<name>.png`. Null is scores.csv or
            scores.tif.
        submission: Whether to write what Kaggle takes: columns id (the file's name without its ending) and label (the
            score).
        tile: Whether to score a larger image on a grid of 96x96 windows, 32 pixels apart, at 0.972 um per pixel. Each
            pixel of the map is the score of the window round it: of one 32x32 square of the image. NaN is background,
            and the border of one square that no window has in its centre.
        mpp: Micrometres per pixel of the image, instead of those that its file says.
        batch_size: Patches that are classified at once.
        checkpoint: Which weights: the best by the experiment's `monitor`, or the last.
        precision: "32-true", or "bf16-mixed": convolutions in bfloat16, faster where the processor computes in it;
            moves scores in their third digit.
    """
    if submission and tile:
        raise UserError("Expected --submission or --tile, but found both; Kaggle takes scores of patches.")
    if mpp is not None and not tile:
        raise UserError("Expected --mpp with --tile only, but found it without; patches have 0.972 um per pixel.")
    if tile and len(inputs) != 1:
        raise UserError(f"Expected one image with --tile, but found {len(inputs)} paths; score them one by one.")
    load = partial(load_classifier, RunFolder.find(run), checkpoint, precision)
    if tile:
        score_image(load, inputs[0], output or Path("scores.tif"), mpp, batch_size)
        return
    with listed_paths(sys.stdin.buffer) if inputs == [STANDARD_INPUT] else nullcontext(inputs) as paths:
        score_patches(load, paths, output or Path("scores.csv"), submission, batch_size)


def score_patches(
    load: Callable[[], Classify], paths: Iterable[Path], output: Path, submission: bool, batch_size: int
) -> None:
    """Write the scores of patches, a batch at a time."""
    count = count_inputs(paths)
    classify = load()
    errors = output.parent / f"{output.stem}.errors.csv"
    failed, first = 0, ""
    with (
        atomic_path(output) as scores_path,
        atomic_path(errors) as errors_path,
        _open_csv(scores_path) as scores_file,
        _open_csv(errors_path) as errors_file,
        _progress() as progress,
    ):
        scores, unreadable = csv.writer(scores_file), csv.writer(errors_file)
        scores.writerow(["id", "label"] if submission else ["id", "logit", "score"])
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
        raise UserError(
            f"Expected to score every patch, but {failed:,} of {count:,} cannot be read (the first: "
            f"{first.rstrip('.')}); {errors} says why of each, {output} has the scores of the others."
        )
    errors.unlink()
    print(f"Scores of {count:,} patches: {output}")


def score_image(load: Callable[[], Classify], path: Path, output: Path, mpp: float | None, batch_size: int) -> None:
    """Write the score map of a larger image, and a picture of it."""
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(
            f"Expected --output to be a TIFF file (.tif or .tiff) with --tile, but found {output}; rename it."
        )
    picture = output.with_suffix(".png")
    if path.resolve() in (output.resolve(), picture.resolve()):
        raise UserError(
            f"Expected --output to leave the image alone, but {output} and its picture {picture} would replace {path}; "
            f"rename it."
        )
    image = open_image(path, mpp)
    classify = load()
    with atomic_path(output) as map_path, atomic_path(picture) as picture_path:
        with _progress() as progress:
            scores = score_map(progress.track(image.strips(), image.rows, description="Scoring"), classify, batch_size)
        per_centimetre = 1e4 / (CELL_SIZE * MICROMETRES_PER_PIXEL)
        Image.fromarray(scores).save(
            map_path, format="TIFF", resolution_unit=3, x_resolution=per_centimetre, y_resolution=per_centimetre
        )
        overlay_figure(image, scores).savefig(picture_path, format="png", dpi=150, bbox_inches="tight")
    print(f"{np.count_nonzero(~np.isnan(scores)):,} windows of {path} scored: {output}, {picture}")


def load_classifier(run: RunFolder, checkpoint: CheckpointName, precision: Precision) -> Classify:
    """Make a function from patches, shape (batch, 96, 96, 3), to logits, on the device that the trainer chooses."""
    cli = load_run(run, checkpoint, precision=precision)
    device = cli.trainer.strategy.root_device
    cli.model.to(device).prepare_evaluation(precision)

    @torch.inference_mode()
    def classify(patches: PatchArray) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = (
            cli.model.evaluate(torch.from_numpy(patches).to(device).permute(0, 3, 1, 2)).cpu().numpy()
        )
        check_finite(logits, str(run.path))
        return logits

    return classify


def _rows(ids: Sequence[str], logits: NDArray[np.float32], submission: bool) -> Iterator[tuple[str | float, ...]]:
    logits = logits.astype(np.float64)  # in float32 logits above 17 would all have the score 1
    for name, logit, score in zip(ids, logits.tolist(), expit(logits).tolist(), strict=True):
        yield (_cell(PurePath(name).stem), score) if submission else (_cell(name), logit, score)


def _check_names(ids: Sequence[str], names: set[str]) -> None:
    """Add what a submission calls patches; no two may have one name."""
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


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn())


@front_door
def main(args: Arguments = None) -> None:
    """Score patches, or a larger image.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Score patches without labels, or a larger image on a grid of windows.")
    parser.add_argument("run", type=Path, metavar="RUN", help="The run folder.")
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        help="What to score: a folder with its subfolders, image files, HDF5 files with the key x, or -- (or -) for a "
        "list of these on standard input, one a line. With --tile one image.",
    )
    parser.add_function(predict, skip={"run", "inputs"})
    words = sys.argv[1:] if args is None else args
    # Before argparse, to which "--" is no value.
    words = [str(STANDARD_INPUT) if pair == ("--input", "--") else pair[1] for pair in pairwise(["", *words])]
    options = parser.instantiate(parser.parse_args(words))
    predict(inputs=options.pop("input"), **options)


if __name__ == "__main__":
    main()
