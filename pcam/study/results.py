"""The result of a run: the files that measuring it writes, and that the report reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.metrics import Cuts, cross_entropy
from pcam.evaluation.predictions import Predictions
from pcam.options import SplitName
from pcam.run_folder import RunFolder
from pcam.study.plan import Metric, Run
from pcam.study.readings import READINGS, TRAINED_READING, Reading, reading_names

METRICS: Final[Sequence[Metric]] = ("auroc", "average_precision", "accuracy", "loss")
"""What is computed of each reading: accuracy is at a score of 0.5, and loss is in nats."""

_RECORD_KEYS: Final = (
    "split", "patches", "step", "batch_size", "train_patches", "passes", "data_fingerprint", "seconds", "environment",
    "readings",
)  # fmt: skip
_ENVIRONMENT_KEYS: Final = ("python", "packages", "device", "threads", "git_commit", "data_fingerprints")

PREDICTIONS_FOLDER: Final = "study"
"""The folder below a run's folder with the predictions of each reading."""


def compute_metrics(predictions: Predictions) -> dict[Metric, float]:
    """Compute `METRICS` over all patches.

    Args:
        predictions: Predictions of patches of both classes.

    Returns:
        The value of each metric, by name.
    """
    labels, logits = predictions.labels.astype(np.float64), predictions.logits.astype(np.float64)
    cuts = Cuts.count(labels, logits, np.ones((1, len(labels))))
    return {
        "auroc": float(cuts.auroc()[0]),
        "average_precision": float(cuts.average_precision()[0]),
        "accuracy": float(cuts.decisions(0.0)["accuracy"][0]),
        "loss": float(cross_entropy(labels, logits).mean()),
    }


def write_result(
    run: Run, trained: RunFolder, split: SplitName, readings: Mapping[Reading, Predictions], facts: Mapping[str, Any]
) -> None:
    """Write the predictions of each reading, then `study.json`, whose presence says that the run is done.

    The files are small enough to be kept for years: no patches, compressed, without what follows from the rest. The
    patches stay in the order of the packed store, which depends on their pixels and not on what they are called.

    Args:
        run: The run.
        trained: The folder of the run.
        split: The split that was predicted.
        readings: The predictions of each reading, all of the same patches.
        facts: What else the report says of the run, by name.
    """
    for reading, predictions in readings.items():
        _number_groups(predictions).write(_predictions_path(trained.path, split, reading), compact=True)
    record = {
        "arm": run.arm,
        "seed": run.seed,
        "split": split,
        "patches": len(next(iter(readings.values())).ids),
        **facts,
        "seconds": _training_seconds(trained.path),
        "environment": _read_environment(trained.path / "environment.json"),
        "readings": {reading: compute_metrics(predictions) for reading, predictions in readings.items()},
    }
    with atomic_path(trained.path / "study.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        environment: dict[str, Any] = json.loads(path.read_text())
        _check_keys(environment, _ENVIRONMENT_KEYS, "")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"Expected what a run was trained on in {path}, but it cannot be read ({error}); move {path.parent} away, "
            f"and the study trains the run again."
        ) from error
    return environment


def _check_record(record: Mapping[str, Any]) -> None:
    """Refuse, with a ValueError or a TypeError, a record that lacks what a report needs."""
    _check_keys(record, _RECORD_KEYS, "")
    _check_keys(record["environment"], _ENVIRONMENT_KEYS, "environment.")
    _check_keys(record["environment"]["packages"], ("torch", "lightning"), "environment.packages.")
    _check_keys(record["environment"]["data_fingerprints"], ("train",), "environment.data_fingerprints.")
    unknown = sorted(set(record["readings"]) - set(READINGS))
    if unknown or TRAINED_READING not in record["readings"]:
        raise ValueError(f"its readings are {', '.join(record['readings']) or 'none'}")
    for reading, metrics in record["readings"].items():
        _check_keys(metrics, METRICS, f"readings.{reading}.")


def _check_keys(found: Mapping[str, Any], keys: Sequence[str], prefix: str) -> None:
    missing = [f"{prefix}{key}" for key in keys if key not in found]
    if missing or not isinstance(found, dict):
        raise ValueError(f"it has no {', '.join(missing) or 'keys'}")


def _predictions_path(folder: Path, split: SplitName, reading: Reading) -> Path:
    return folder / PREDICTIONS_FOLDER / f"{split}_{reading}.csv.gz"


def _number_groups(predictions: Predictions) -> Predictions:
    """Name groups by numbers, in the order of their first patches: hashes of pixels would be most of a file."""
    numbers, _ = pd.factorize(np.array(predictions.groups, dtype=object))
    return replace(predictions, groups=numbers.astype(np.str_).tolist())


def _training_seconds(folder: Path) -> float:
    """Sum the time from the first to the last event of each TensorBoard file: training with its validations."""
    total = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
        total += max(times) - min(times)
    return total


@dataclass(frozen=True)
class RunResult:
    """The result of a run that is done.

    Args:
        folder: The folder of the run.
        record: What its `study.json` says.
    """

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, split: SplitName) -> "RunResult":
        """Read a result.

        Args:
            path: The `study.json` of a run.
            split: The split that the report is on.

        Returns:
            The result. Its predictions and curves are read when they are asked for.

        Raises:
            UserError: If the file is damaged, or the result is of another split.
        """
        try:
            record = json.loads(path.read_text())
            _check_record(record)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"Expected the result of a run in {path}, but it is not whole ({error}); copy the run's folder again, "
                f"or delete the file, and the study measures the run again."
            ) from error
        found = record["split"]
        if found != split:
            raise UserError(
                f"Expected a result on the split '{split}' in {path}, but found one on '{found}'; delete it, and the "
                f"study measures the run again."
            )
        return cls(path.parent, record)

    @property
    def reading_names(self) -> dict[Reading, str]:
        """What tables and figures call the readings of this run, by reading."""
        return reading_names(self.record["readings"])

    def metrics(self, reading: Reading) -> dict[Metric, float]:
        """Look up the `METRICS` of a reading of the last checkpoint."""
        metrics: dict[Metric, float] = self.record["readings"][self._present(reading)]
        return metrics

    def predictions(self, reading: Reading) -> Predictions:
        """Look up the predictions of a reading.

        Args:
            reading: A reading. For a network whose batch norm is read in one way, that one stands for all of them.

        Returns:
            The predictions in the order of the packed store, which is the same in all readings and all runs of a study,
            also if they had the same patches in different forms, where patches have different ids.

        Raises:
            UserError: If the file is damaged, or the run has no such reading.
        """
        return self._predictions[self._present(reading)]

    def logits(self, reading: Reading) -> NDArray[np.float64]:
        """Look up the logits of a reading, in the order of the packed store."""
        return self.predictions(reading).logits.astype(np.float64)

    @property
    def labels(self) -> NDArray[np.float64]:
        """The true label of each patch, 0 or 1."""
        return self._first.labels.astype(np.float64)

    @property
    def slides_known(self) -> bool:
        """Whether the slides of patches are known."""
        return self._first.slides is not None

    @property
    def units(self) -> list[str]:
        """The independent unit of each patch: its slide if that is known, else its group of identical patches."""
        return self._first.units

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Everything that was logged in training, one row a step."""
        path = self.folder / "metrics.csv"
        try:
            table = pd.read_csv(path)
        except (FileNotFoundError, ValueError) as error:
            raise self._damaged(path) from error
        if not all(name in table and is_numeric_dtype(table[name]) for name in ("step", "train/loss", "val/loss")):
            raise self._damaged(path)
        return table

    def validation(self, metric: Metric, reading: Reading) -> "pd.Series[float]":
        """Look up a metric on the whole valid split at each validation.

        Args:
            metric: The metric.
            reading: The reading.

        Returns:
            Its values, by step.
        """
        column = f"val_shifted/{metric}" if reading == "stain_shifted" else f"val/{metric}_{reading}"
        if column not in self.curves:
            column = f"val/{metric}"
        return self.curves.set_index("step")[column].dropna()

    def published_selection(self, reading: Reading) -> dict[str, float]:
        """Look up the validation with the lowest loss of a reading: the published study chose its checkpoints so.

        Returns:
            `step`, and `loss`, `accuracy` and `auroc` on the whole valid split at that step.
        """
        loss = self.validation("loss", reading)
        row = int(loss.argmin())
        metrics: Sequence[Metric] = ("loss", "accuracy", "auroc")
        values: dict[str, float] = {metric: float(self.validation(metric, reading).iloc[row]) for metric in metrics}
        return {"step": float(loss.index[row])} | values

    def _present(self, reading: Reading) -> Reading:
        """Find the reading that stands for another, where batch norm is read in one way."""
        if reading in self.record["readings"]:
            return reading
        if reading == "stain_shifted":
            raise UserError(
                f"Expected {self.folder} to be read with shifted stains too, but its arm had none; move the folder "
                f"away, and the study trains the run again."
            )
        return TRAINED_READING

    @property
    def _first(self) -> Predictions:
        return next(iter(self._predictions.values()))

    @cached_property
    def _predictions(self) -> dict[Reading, Predictions]:
        found: dict[Reading, Predictions] = {}
        for reading in self.record["readings"]:
            path = _predictions_path(self.folder, self.record["split"], reading)
            found[reading] = Predictions.read(path)
            first = next(iter(found.values()))
            if len(found[reading].ids) != self.record["patches"] or found[reading].ids != first.ids:
                raise self._damaged(path)
        return found

    def _damaged(self, path: Path) -> UserError:
        return UserError(
            f"Expected {path} as the study wrote it, but it is not there or not whole; copy the run's folder again, or "
            f"delete its study.json, and the study measures the run again."
        )
