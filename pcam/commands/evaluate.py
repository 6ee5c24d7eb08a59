"""Measure trained classifiers on a split, and compare them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from pcam.commands.options import warn_of_bfloat16
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import (
    ADAPTED_LAYERS,
    Adaptation,
    AdaptationMethod,
    AdaptationUnit,
    CheckpointName,
    Precision,
    SplitName,
)
from pcam.run_folder import RunFolder, run_names

if TYPE_CHECKING:
    from pcam.evaluation.comparison import System
    from pcam.evaluation.measurement import Measurement
    from pcam.trained import TrainedRun


def evaluate(
    runs: list[Path],
    split: SplitName = "valid",
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    reestimate_bn: bool = False,
    ensemble: bool = False,
    precision: Precision = "32-true",
    enlarged_sizes: list[int] | None = None,
    adapt: AdaptationUnit | None = None,
    adapt_by: AdaptationMethod = "stains",
    adapt_layers: PositiveInt = ADAPTED_LAYERS,
    root: Path | None = None,
) -> list[Path]:
    """Measure trained classifiers on the valid split, and on another split if asked for, and compare them.

    The thresholds and the temperature are always chosen on the valid split. The command writes `metrics.json`,
    `predictions.csv` and figures to `RUN/evaluation/<split>/`, with TensorBoard events unless the run itself shows the
    same (the valid split, without options), and prints tables. If there are several runs, or several variants of one,
    the comparison of them goes to `<split>_comparison/` in the first run.

    Args:
        runs: The run folders, or published runs: those that come with the package by their names, such as best, folders
            that `pcam export --format hub` wrote, or hf://owner/name.
        split: The split to measure on. The test split is read only if you ask for it.
        checkpoint: The checkpoint to measure: "best" by the experiment's `monitor`, "last", or "previous", the one
            before the last.
        tta: Score each patch by the mean over the eight symmetries of the square (test-time augmentation), at eight
            times the cost. Results go to `<split>_tta/`.
        reestimate_bn: Measure, beside each run, the same run with batch norm's running statistics estimated again on
            10,000 un-augmented training patches. Results go to `<split>_bn/`.
        ensemble: Also measure the mean of the scores of all runs. Results go to `<split>_ensemble/` in the first run.
        precision: "32-true", or "bf16-mixed" to compute convolutions in bfloat16, which is meant for GPUs and changes
            scores in their third digit. Results go to `<split>_bf16/`.
        enlarged_sizes: The sizes in pixels, besides 96, that patches are evaluated at: some of those that the network
            was trained with, such as "[128]", or "[]" for 96 pixels only; null is all of them. Results go to
            `<split>_at_96_128/` and so on.
        adapt: Adapt the network to the patches that are scored, without their labels: to "all" of the split together,
            or to those of each "slide" or "hospital" where the data tell them, if it has 256 or more. Results go to
            `<split>_adapted_hospital_stains/` and so on, as they answer another question than those without.
            docs/shift.md says when it helps and when it may harm.
        adapt_by: How: "stains" brings the patches to the staining of the training patches, "batch_norm" gives the first
            layers of batch norm the statistics of the patches, "both" does one after the other.
        adapt_layers: How many layers of batch norm are adapted, counted from the first.
        root: The folder with the data; null is the folder that each run was trained on.

    Returns:
        The folders of the results, one for each system and split.

    Raises:
        UserError: If a run or its data cannot be used, or the runs are not on the same patches.
    """
    if ensemble and len(runs) < 2:
        raise UserError("Expected at least two runs for --ensemble, but found 1; name another, or leave it out.")
    folders = [RunFolder.find(Path(run)) for run in runs]
    from pcam.evaluation.comparison import ensemble_of
    from pcam.evaluation.measurement import Choices, measure
    from pcam.evaluation.results import write_results
    from pcam.evaluation.tables import print_details, print_origins
    from pcam.trained import TrainedRun, check_same_patches

    splits: list[SplitName] = ["valid"] if split == "valid" else ["valid", split]

    def load(reestimate_bn: bool) -> list[TrainedRun]:
        return [
            TrainedRun.load(
                folder,
                checkpoint,
                root=root,
                tta=tta,
                precision=precision,
                reestimate_bn=reestimate_bn,
                enlarged_sizes=enlarged_sizes,
                adaptation=None if adapt is None else Adaptation(adapt, adapt_by, adapt_layers),
            )
            for folder in folders
        ]

    as_trained = load(reestimate_bn=False)
    check_same_patches(as_trained, splits)
    warn_of_bfloat16(as_trained[0])
    systems: list[System] = []
    for trained in [as_trained, load(reestimate_bn=True)] if reestimate_bn else [as_trained]:
        members = [_system(name, run, splits) for name, run in zip(run_names(folders), trained, strict=True)]
        systems += members
        if ensemble:
            systems.append(ensemble_of(members))
    results = []
    for system in systems:
        choices = Choices.on(system.predictions["valid"])
        measurements = {name: measure(system.predictions[name], choices) for name in splits}
        for name, measurement in measurements.items():
            origins = write_results(system, name, checkpoint, choices, measurement)
        results.append((system, measurements[split]))
    if len(systems) == 1:
        print_details(systems[0], choices, measurements)
        print_origins(origins)
    else:
        _compare(results, split)
    outputs = [system.output(name) for system in systems for name in splits]
    print("Predictions and figures:", *outputs, sep="\n  ")
    return outputs


def _system(name: str, run: "TrainedRun", splits: Sequence[SplitName]) -> "System":
    """Classify the patches of the splits."""
    from pcam.evaluation.comparison import System

    return System(
        name=", ".join([name, *run.settings.words]),
        run=run.folder,
        settings=run.settings,
        step=run.step,
        data_root=run.data.root,
        stores={split: run.data.packed(split) for split in splits},
        predictions={split: run.predict(split, progress=True) for split in splits},
        engine=run.engine,
    )


def _compare(results: "Sequence[tuple[System, Measurement]]", split: SplitName) -> None:
    """Write and print how systems differ on the same patches, and the mean of those that are seeds."""
    from pcam.evaluation.comparison import compare_resampled, mean_over_seeds
    from pcam.evaluation.results import write_comparison
    from pcam.evaluation.tables import print_comparison

    pairs = [
        (
            first.name,
            second.name,
            compare_resampled(
                first.predictions[split], second.predictions[split], one.resampled_auroc, other.resampled_auroc
            ),
        )
        for (first, one), (second, other) in itertools.combinations(results, 2)
    ]
    mean = mean_over_seeds(results, split)
    first = results[0][0]
    output = first.run.evaluation(split, f"_comparison{first.settings.suffix}")
    write_comparison(output, split, results, pairs, mean)
    print_comparison(split, results, pairs, mean)
    print(f"Comparison: {output}")


@front_door
def main(args: Arguments = None) -> None:
    """Measure trained classifiers on a split.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(evaluate, args, {"runs": "RUN", "root": "--data.root"})
