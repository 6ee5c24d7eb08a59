"""Score patches without labels."""

import sys
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from jsonargparse.typing import PositiveInt

from pcam.atomic import is_stream
from pcam.commands.options import BatchSize, warn_of_bfloat16
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import ADAPTED_LAYERS, Adaptation, AdaptationMethod, CheckpointName, Precision
from pcam.run_folder import RunFolder

if TYPE_CHECKING:
    from pcam.evaluation.patch_scores import Classify

STANDARD_INPUT: Final = Path("-")
"""The value of --input if standard input lists the files."""


def predict(
    run: Path,
    inputs: list[Path],
    output: Path | None = None,
    submission: bool = False,
    batch_size: BatchSize = 64,
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    precision: Precision = "32-true",
    reestimate_bn: bool = False,
    enlarged_sizes: list[int] | None = None,
    adapt: Literal["all"] | None = None,
    adapt_by: AdaptationMethod = "stains",
    adapt_layers: PositiveInt = ADAPTED_LAYERS,
    root: Path | None = None,
) -> Path:
    """Score patches without labels. Larger images are what the command slide scores.

    The scores of a patch are those that evaluating with the same options gives it.

    Args:
        run: The run folder, or a published run: one that comes with the package by its name, such as best, a folder
            that `pcam export --format hub` wrote, or hf://owner/name.
        inputs: What to score: a folder with its subfolders, image files, HDF5 files with the key x, or -- (or -) for a
            list of these on standard input, one a line.
        output: The CSV file for the scores, with the columns id, logit and score, in the order of the names of files.
            Patches that cannot be read are listed beside it in `<name>.errors.csv` (id, reason), and the exit code is
            then 1. Ids that begin with = + - @, which a spreadsheet would run as formulas, get an apostrophe before
            them. Null is scores.csv.
        submission: Write what Kaggle takes: the columns id (the file's name without its ending) and label (the score).
        batch_size: The number of patches that are classified at once, 1 to 65,536.
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Score each patch by the mean over the eight symmetries of the square (test-time augmentation), at eight
            times the cost.
        precision: "32-true", or "bf16-mixed" to compute convolutions in bfloat16, which is meant for GPUs and changes
            scores in their third digit.
        reestimate_bn: Estimate batch norm's running statistics again before scoring, on 10,000 un-augmented training
            patches.
        enlarged_sizes: The sizes in pixels, besides 96, that patches are evaluated at: some of those that the network
            was trained with, such as "[128]", or "[]" for 96 pixels only; null is all of them.
        adapt: "all" to adapt the network to the inputs before scoring, without labels: for 256 patches or more that are
            from one hospital, such as those of one slide. docs/shift.md says when it helps and when it may harm.
        adapt_by: How: "stains" brings the patches to the staining of the training patches, "batch_norm" gives the first
            layers of batch norm the statistics of the patches, "both" does one after the other.
        adapt_layers: How many layers of batch norm are adapted, counted from the first.
        root: The folder with the training data, which only --reestimate_bn and --adapt read; null is the folder that
            the run was trained on.

    Returns:
        The file with the scores.

    Raises:
        UserError: If the run cannot be used, or some patches cannot be read.
    """
    if STANDARD_INPUT in inputs and len(inputs) > 1:
        raise UserError(
            f"Expected a list on standard input (--input --) or other inputs, but found both in {len(inputs)} inputs; "
            f"score them one after the other."
        )
    folder = RunFolder.find(Path(run))

    def load() -> "Classify":
        from pcam.trained import TrainedRun

        trained = TrainedRun.load(
            folder,
            checkpoint,
            root=root,
            tta=tta,
            precision=precision,
            reestimate_bn=reestimate_bn,
            enlarged_sizes=enlarged_sizes,
        )
        if adapt is not None:
            from pcam.data.inputs import sample_inputs
            from pcam.evaluation.adaptation import MAX_PATCHES

            some = sample_inputs(paths, MAX_PATCHES)
            trained = trained.adapted_to(some, Adaptation(adapt, adapt_by, adapt_layers))
        warn_of_bfloat16(trained)
        return partial(trained.logits, batch_size=batch_size)

    from pcam.data.inputs import listed_paths
    from pcam.evaluation.patch_scores import write_scores

    output = output or Path("scores.csv")
    with listed_paths(sys.stdin.buffer) if inputs == [STANDARD_INPUT] else nullcontext(inputs) as paths:
        count = write_scores(load, paths, output, submission, batch_size)
    # What is said must not get into scores that go to standard output.
    print(f"Scores of {count:,} patches: {output}", file=sys.stderr if is_stream(output) else sys.stdout)
    return output


@front_door
def main(args: Arguments = None) -> None:
    """Score patches.

    Args:
        args: The command line; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else args
    # Before argparse, to which "--" is no value.
    words = [str(STANDARD_INPUT) if pair == ("--input", "--") else pair[1] for pair in pairwise(["", *words])]
    run_function(predict, words, {"run": "RUN", "inputs": "--input", "root": "--data.root"})
