"""Measure a trained run of a study: the process that follows its training.

`python -m pcam.study.measure RUN_FOLDER ARM SEED SPLIT ROOT RESULTS [costs]`: a process of its own, so that it computes
with the threads and the device of the training, and so that many runs of a study can be measured at once.
"""

import json
import sys
from pathlib import Path
from typing import Any, cast, get_args

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pcam.checkpoint_file import load_checkpoint
from pcam.door import Arguments, front_door
from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions
from pcam.models.batch_norm import REESTIMATION_PATCHES, learning_layers, reestimate_batch_norm, write_statistics
from pcam.options import SplitName
from pcam.run_folder import RunFolder
from pcam.study.backbones import measure_backbone
from pcam.study.plan import Run
from pcam.study.readings import READING_MOMENTA, TRAINED_READING, Reading
from pcam.study.results import ENVIRONMENT_KEYS, ResultsFolder, check_keys
from pcam.trained import TrainedRun
from pcam.training import BatchNormReadings


def measure_run(
    run: Run, folder: RunFolder, split: SplitName, root: Path, results: ResultsFolder, *, with_costs: bool
) -> None:
    """Predict a split with a run's last checkpoint, once for each reading, and write the result.

    Args:
        run: The run of the study.
        folder: The folder of the run, which is trained; beside it lies the `arm.json` of the study.
        split: The split that is predicted.
        root: The folder with the patches.
        results: Where the result is written.
        with_costs: Whether to measure also what the network costs, as a study with probes shows it.

    Raises:
        UserError: If a reading's statistics or a finite logit are missing, or the checkpoint does not fit.
    """
    environment = _read_environment(folder.path / "environment.json")
    arm = json.loads((folder.path.parent / "arm.json").read_text(encoding="utf-8"))
    trained = TrainedRun.load(folder.path, "last", root=root)
    # First: the readings of batch norm leave their statistics in the network.
    shifted = trained.predict(split, shifted=True) if trained.data.stain_shifts else None
    if arm["options"].get("batch_norm_readings", False):  # a probe has none
        readings = _read_batch_norm(trained, split)
    else:
        readings = {TRAINED_READING: trained.predict(split)}
    if shifted is not None:
        readings["stain_shifted"] = shifted
    train_patches = len(trained.data.rows("train"))
    facts = {
        **arm,
        "split": split,
        "step": trained.step,
        "batch_size": trained.data.batch_size,
        "train_patches": train_patches,
        "passes": trained.step * trained.data.batch_size / train_patches,
        "data_fingerprint": trained.data.packed(split).fingerprint,
        "seconds": _training_seconds(folder.path),
        **(measure_backbone(trained, split) if with_costs else {}),
        "environment": environment,
    }
    results.write(run, readings, folder.metrics.read_bytes(), facts)


def _read_batch_norm(trained: TrainedRun, split: SplitName) -> dict[Reading, Predictions]:
    """Predict with the statistics of each momentum, then with statistics that are estimated again."""
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


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        environment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_keys(environment, ENVIRONMENT_KEYS, "")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"Expected what a run was trained on in {path}, but it cannot be read ({error}); move {path.parent} away, "
            f"and the study trains the run again."
        ) from error
    return environment


def _training_seconds(folder: Path) -> float:
    """Sum the time from the first to the last event of each TensorBoard file: training with its validations."""
    total = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
        total += max(times) - min(times)
    return total


@front_door
def main(args: Arguments = None) -> None:
    """Measure the run that the command line names; `runner.measure_command` writes it."""
    folder, arm, seed, split, root, results, *also = sys.argv[1:] if args is None else args
    assert split in get_args(SplitName)
    split = cast(SplitName, split)
    measure_run(
        Run(arm, int(seed)),
        RunFolder(Path(folder)),
        split,
        Path(root),
        ResultsFolder(Path(results)),
        with_costs=also == ["costs"],
    )


if __name__ == "__main__":
    main()
