"""What a run of a study leaves behind, and reads back for the report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.metrics import Cuts, cross_entropy
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import independent_units
from pcam.options import SplitName
from pcam.run_folder import RunFolder
from pcam.study.plan import AS_TRAINED, FIRST_READING, READING_NAMES, READINGS, Reading, Run

METRICS = ("auroc", "average_precision", "accuracy", "loss")
"""Of each reading: area under the ROC, average precision, accuracy at a score of 0.5, and loss in nats."""


def measure_predictions(predictions: Predictions) -> dict[str, float]:
    """Compute `METRICS`.

    Args:
        predictions: With both labels.

    Returns:
        Each metric.
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

    Args:
        run: The run.
        trained: Its folder.
        split: What was predicted.
        readings: Predictions of the same patches: the first reading of batch norm or all three, and perhaps one with
            shifted stains.
        facts: What else the report says of the run.
    """
    first = next(iter(readings.values()))
    table = pd.DataFrame({"id": first.ids, "label": first.labels, "group": first.groups})
    if first.slides is not None:
        table["slide"] = first.slides
    for reading, predictions in readings.items():
        table[reading] = predictions.logits.astype(np.float64)
    with atomic_path(trained.path / f"study_{split}.csv") as temporary:
        table.to_csv(temporary, index=False)
    record = {
        "arm": run.arm,
        "seed": run.seed,
        "split": split,
        "patches": len(table),
        **facts,
        "seconds": _seconds(trained.path),
        "environment": json.loads((trained.path / "environment.json").read_text()),
        "readings": {reading: measure_predictions(predictions) for reading, predictions in readings.items()},
    }
    with atomic_path(trained.path / "study.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _seconds(folder: Path) -> float:
    """How long training took, validation included: the spans of its TensorBoard files."""
    total = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(path)).Load()]
        total += max(times) - min(times)
    return total


@dataclass(frozen=True)
class RunResult:
    """A run that is done.

    Args:
        folder: Its folder.
        record: What `study.json` says.
    """

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, split: SplitName) -> "RunResult":
        """Read a result.

        Args:
            path: Its `study.json`.
            split: What the report is on.

        Returns:
            The result.

        Raises:
            UserError: If it is of another split, or not whole.
        """
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"Expected the result of a run in {path}, but it is not whole ({error}); copy the run's folder again, "
                f"or delete the file, and the study measures the run again."
            ) from error
        if record["split"] != split:
            raise UserError(
                f"Expected a result on the split '{split}' in {path}, but found one on '{record['split']}'; delete it, "
                f"and the study measures the run again."
            )
        return cls(path.parent, record)

    def reading(self, reading: Reading) -> Reading:
        """The reading that stands for another, where batch norm is read in one way alone.

        Raises:
            UserError: If the run was not read with shifted stains, for which nothing stands.
        """
        if reading in self.record["readings"]:
            return reading
        if reading == "stain_shifted":
            raise UserError(
                f"Expected {self.folder} to be read with shifted stains too, but its arm had none; move the folder "
                f"away, and the study trains the run anew."
            )
        return FIRST_READING

    @property
    def reading_names(self) -> dict[Reading, str]:
        """What tables and figures call the readings that there are."""
        names = {reading: READING_NAMES[reading] for reading in READINGS if reading in self.record["readings"]}
        return names if "reestimated" in names else {**names, FIRST_READING: AS_TRAINED}

    def metrics(self, reading: Reading) -> dict[str, float]:
        """`METRICS` of a reading of the last checkpoint."""
        metrics: dict[str, float] = self.record["readings"][self.reading(reading)]
        return metrics

    def logits(self, reading: Reading) -> NDArray[np.float64]:
        """Logits of a reading, in the order of the packed store."""
        logits: NDArray[np.float64] = self._table[self.reading(reading)].to_numpy()
        return logits

    @property
    def labels(self) -> NDArray[np.float64]:
        """0 or 1."""
        return self._table["label"].to_numpy(dtype=np.float64)

    @property
    def slides_known(self) -> bool:
        """Whether the slide of each patch is known."""
        return "slide" in self._table

    @property
    def units(self) -> list[str]:
        """What was drawn independently of each other: the slide of each patch if it is known, else its group."""
        slides = self._table["slide"].tolist() if self.slides_known else None
        return independent_units(self._table["group"].tolist(), slides)

    @cached_property
    def _table(self) -> pd.DataFrame:
        # As text: the hash of a group may look like a number.
        columns = {"id": str, "group": str, "slide": str}
        table = self._read_csv(f"study_{self.record['split']}.csv", dtype=columns, keep_default_na=False)
        if len(table) != self.record["patches"]:
            raise self._incomplete(f"study_{self.record['split']}.csv")
        return table

    @cached_property
    def curves(self) -> pd.DataFrame:
        """What was logged in training, a row a step."""
        return self._read_csv("metrics.csv")

    def _read_csv(self, name: str, **options: Any) -> pd.DataFrame:
        try:
            table: pd.DataFrame = pd.read_csv(self.folder / name, **options)
        except (FileNotFoundError, ValueError) as error:
            raise self._incomplete(name) from error
        return table

    def _incomplete(self, name: str) -> UserError:
        return UserError(
            f"Expected {self.folder / name} as the study wrote it, but it is not there or not whole; copy the run's "
            f"folder again, or delete its study.json, and the study measures the run again."
        )

    def validation(self, name: str, reading: Reading) -> "pd.Series[float]":
        """A metric on the whole valid split at each validation, by step; `name` as in METRICS."""
        column = f"val_shifted/{name}" if reading == "stain_shifted" else f"val/{name}_{reading}"
        if column not in self.curves:
            column = f"val/{name}"
        return self.curves.set_index("step")[column].dropna()

    def published_selection(self, reading: Reading) -> dict[str, float]:
        """What is measured at the validation where a reading's loss is lowest: the way the published study chose.

        Returns:
            `step`, `loss`, `accuracy` and `auroc` on the whole valid split.
        """
        loss = self.validation("loss", reading)
        row = int(loss.argmin())
        values = {name: float(self.validation(name, reading).iloc[row]) for name in ("loss", "accuracy", "auroc")}
        return {"step": float(loss.index[row]), **values}
