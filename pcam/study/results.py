"""Results: what a report needs to know of each run, in a few small files that outlive the run itself.

A folder of results has `patches.csv.gz`, with the name, label and group of each patch that was measured, and a folder
for each run, `<arm>_seed_<seed>`:

- `logits.csv.gz`: the logit of each patch in each reading, in the order of `patches.csv.gz`
- `curves.csv.gz`: what was logged in training
- `record.json`: everything else: the arm's options, the environment, the metrics. It is written last, so its presence
  says that the run is done.

The whole report follows from them, so a study can be checked, or go on, on a machine that has nothing else of it.
"""

import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.metrics import measure_logits
from pcam.evaluation.statistics import independent_units
from pcam.study.plan import Metric, Plan, Run
from pcam.study.readings import READINGS, TRAINED_READING, Reading, reading_names

if TYPE_CHECKING:
    from pcam.evaluation.predictions import Predictions

METRICS: Final[Sequence[Metric]] = ("auroc", "average_precision", "accuracy", "loss")
"""What is computed of each reading: accuracy is at a score of 0.5, and loss is in nats."""

PATCHES: Final = "patches.csv.gz"
LOGITS: Final = "logits.csv.gz"
CURVES: Final = "curves.csv.gz"
RECORD: Final = "record.json"

_RECORD_KEYS: Final = (
    "arm", "seed", "digest", "split", "step", "batch_size", "train_patches", "passes", "data_fingerprint", "seconds",
    "environment", "readings",
)  # fmt: skip
ENVIRONMENT_KEYS: Final = ("python", "packages", "device", "threads", "git_commit", "data_fingerprints")
"""What must be known of where a run was trained."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run that is done.

    Args:
        folder: The folder of the result.
        record: What its `record.json` says.
        patches: The patches that it was measured on: `label`, `group` and, where slides are known, `slide` of each.
    """

    folder: Path
    record: Mapping[str, Any]
    patches: pd.DataFrame

    @property
    def reading_names(self) -> dict[Reading, str]:
        """What tables and figures call the readings of this run, by reading."""
        return reading_names(self.record["readings"])

    def metrics(self, reading: Reading) -> dict[Metric, float]:
        """Look up the `METRICS` of a reading of the last checkpoint."""
        metrics: dict[Metric, float] = self.record["readings"][self._present(reading)]
        return metrics

    def logits(self, reading: Reading) -> NDArray[np.float64]:
        """Look up the logit of each patch in a reading.

        Args:
            reading: A reading. For a network whose batch norm is read in one way, that one stands for all of them.

        Returns:
            The logits in the order of the packed store, which is the same in all readings and all runs of a study, also
            if they had the same patches in different forms, where patches have different names.

        Raises:
            UserError: If the file is damaged, or the run has no such reading.
        """
        return self._logits[self._present(reading)].to_numpy(np.float64)

    @property
    def labels(self) -> NDArray[np.float64]:
        """The true label of each patch, 0 or 1."""
        return self.patches["label"].to_numpy(dtype=np.str_).astype(np.float64)

    @property
    def slides_known(self) -> bool:
        """Whether the slides of patches are known."""
        return "slide" in self.patches

    @property
    def units(self) -> list[str]:
        """The independent unit of each patch: its slide if that is known, else its group of identical patches."""
        return independent_units(
            self.patches["group"].tolist(), self.patches["slide"].tolist() if self.slides_known else None
        )

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Everything that was logged in training, one row a step."""
        path = self.folder / CURVES
        table = _read_table(path)
        if not all(name in table and is_numeric_dtype(table[name]) for name in ("step", "train/loss", "val/loss")):
            raise _damaged(path)
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
                f"away, and the study measures the run again."
            )
        return TRAINED_READING

    @cached_property
    def _logits(self) -> pd.DataFrame:
        path = self.folder / LOGITS
        table = _read_table(path)
        numbers = all(reading in table and is_numeric_dtype(table[reading]) for reading in self.record["readings"])
        if not numbers or len(table) != len(self.patches) or table.isna().any(axis=None):
            raise _damaged(path)
        return table.astype(np.float32)


@dataclass(frozen=True)
class ResultsFolder:
    """The folder with the results of a study's runs.

    Args:
        path: The folder.
    """

    path: Path

    def is_done(self, run: Run) -> bool:
        """Whether the result of a run is there."""
        return (self.path / run.name / RECORD).exists()

    def write(
        self, run: Run, readings: "Mapping[Reading, Predictions]", curves: bytes, facts: Mapping[str, Any]
    ) -> None:
        """Write the result of a run.

        Args:
            run: The run.
            readings: The predictions of each reading, all of the same patches.
            curves: What was logged in training, as CSV.
            facts: What else `record.json` says, by name.

        Raises:
            UserError: If the results of other runs are of other patches.
        """
        first = next(iter(readings.values()))
        # Groups by numbers, in the order of their first patches: hashes of pixels would be most of the file.
        columns = {"id": first.ids, "label": first.labels, "group": pd.factorize(np.array(first.groups, object))[0]}
        table = pd.DataFrame(columns | ({} if first.slides is None else {"slide": first.slides})).astype(str)
        path = self.path / PATCHES
        if not path.exists():
            _write_table(table, path)
        elif not self.patches.drop(columns="id").equals(table.drop(columns="id")):  # names differ from form to form
            raise UserError(
                f"Expected the results in {self.path} to be of one set of patches, but {run.name} was measured on "
                f"others; give its results a folder of their own."
            )
        folder = self.path / run.name
        # Nine digits determine a float32.
        logits = {reading: [f"{logit:.9g}" for logit in found.logits] for reading, found in readings.items()}
        _write_table(pd.DataFrame(logits), folder / LOGITS)
        _write(curves, folder / CURVES)
        measured = {reading: measure_logits(found.labels, found.logits) for reading, found in readings.items()}
        metrics = {reading: {name: found[name] for name in METRICS} for reading, found in measured.items()}
        record = {"arm": run.arm, "seed": run.seed, **facts, "readings": metrics}
        _write((json.dumps(record, indent=2) + "\n").encode(), folder / RECORD)

    def files(self, run: Run) -> dict[str, bytes]:
        """Read the files of a run's result, to be carried to another machine; `record.json` comes last."""
        names = [PATCHES, *(f"{run.name}/{name}" for name in (LOGITS, CURVES, RECORD))]
        return {name: (self.path / name).read_bytes() for name in names}

    def take(self, files: Mapping[str, bytes]) -> None:
        """Write what `files` has read on another machine; what is there stays."""
        for name, content in files.items():
            if not (self.path / name).exists():
                with atomic_path(self.path / name) as temporary:
                    temporary.write_bytes(content)

    def read(self, plan: Plan, run: Run) -> RunResult:
        """Read the result of a run.

        Args:
            plan: The study.
            run: A run that is done.

        Returns:
            The result. Its logits and curves are read when they are asked for.

        Raises:
            UserError: If a file is damaged, or the result is of another split or of other options than the plan's.
        """
        path = self.path / run.name / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            _check_record(record)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"Expected the result of a run in {path}, but it is not whole ({error}); copy the folder again, or "
                f"delete it, and the study measures the run again."
            ) from error
        if record["split"] != plan.split:
            raise UserError(
                f"Expected a result on the split '{plan.split}' in {path}, but found one on '{record['split']}'; move "
                f"it away, and the study measures the run again."
            )
        if (record["arm"], record["seed"], record["digest"]) != (*run, plan.arms[run.arm].digest()):
            raise UserError(
                f"Expected {path.parent} to be the result of the arm '{run.arm}' as the study's YAML has it, but "
                f"{path.name} says that it was trained with other options; move it away, or give the study another "
                f"name."
            )
        return RunResult(path.parent, record, self.patches)

    @cached_property
    def patches(self) -> pd.DataFrame:
        """The patches that all runs were measured on: `id`, `label`, `group` and perhaps `slide`, as text."""
        path = self.path / PATCHES
        table = _read_table(path, dtype=str, keep_default_na=False)  # a slide may be called "NA"
        if not {"id", "label", "group"} <= set(table) or not table["label"].isin(["0", "1"]).all():
            raise _damaged(path)
        return table


def _write_table(table: pd.DataFrame, path: Path) -> None:
    _write(table.to_csv(index=False).encode(errors="surrogateescape"), path)  # names of files need not be UTF-8


def _write(content: bytes, path: Path) -> None:
    with atomic_path(path) as temporary:
        # Without the time that gzip would store, so that the same result is the same bytes.
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _read_table(path: Path, **options: Any) -> pd.DataFrame:
    try:
        text = gzip.decompress(path.read_bytes()).decode(errors="surrogateescape")
        table: pd.DataFrame = pd.read_csv(io.StringIO(text), **options)
    except (FileNotFoundError, EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path) from error
    return table


def _damaged(path: Path) -> UserError:
    return UserError(
        f"Expected {path} as the study wrote it, but it is not there or not whole; copy it again, or delete the "
        f"{RECORD} of the runs that need it, and the study measures them again."
    )


def _check_record(record: Mapping[str, Any]) -> None:
    """Refuse, with a ValueError or a TypeError, a record that lacks what a report needs."""
    check_keys(record, _RECORD_KEYS, "")
    check_keys(record["environment"], ENVIRONMENT_KEYS, "environment.")
    check_keys(record["environment"]["packages"], ("torch", "lightning"), "environment.packages.")
    check_keys(record["environment"]["data_fingerprints"], ("train",), "environment.data_fingerprints.")
    unknown = sorted(set(record["readings"]) - set(READINGS))
    if unknown or TRAINED_READING not in record["readings"]:
        raise ValueError(f"its readings are {', '.join(record['readings']) or 'none'}")
    for reading, metrics in record["readings"].items():
        check_keys(metrics, METRICS, f"readings.{reading}.")


def check_keys(found: Mapping[str, Any], keys: Sequence[str], prefix: str) -> None:
    """Refuse, with a ValueError or a TypeError, what is no mapping with these keys."""
    missing = [f"{prefix}{key}" for key in keys if key not in found]
    if missing or not isinstance(found, dict):
        raise ValueError(f"it has no {', '.join(missing) or 'keys'}")
