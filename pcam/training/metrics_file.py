"""`metrics.csv`: what was logged, one row a step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from pcam.atomic import atomic_path
from pcam.errors import UserError


class MetricsFile(Logger):
    """Log metrics to a CSV file that is always whole, and that a resumed run continues.

    Lightning's CSVLogger deletes the file of a resumed run and rewrites it in place.

    Args:
        path: The file; columns `step` (optimizer steps done), `epoch`, then the metrics, empty where not measured.
        resume_step: Rows of `path` after this step are dropped; null starts a new file.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, float]] = {}
        self._has_news = False
        if resume_step is not None and path.exists():
            table = _read(path)
            for row in table[table["step"] <= resume_step].to_dict("records"):
                self._rows[int(row["step"])] = {str(key): value for key, value in row.items() if not pd.isna(value)}

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """The name of the run folder."""
        return self.path.parent.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        if step is not None:
            self._has_news = True
            self._rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew, once there is something new: a run that cannot be resumed keeps the file as it is."""
        if not self._has_news:
            return
        table = pd.DataFrame([self._rows[step] for step in sorted(self._rows)])
        first = ["step", "epoch"]
        table = table.reindex(columns=first + sorted(column for column in table.columns if column not in first))
        table = table.astype({"step": int, "epoch": "Int64"})  # some of Lightning's callbacks log without an epoch
        with atomic_path(self.path) as temporary:
            table.to_csv(temporary, index=False)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file at the end."""
        self.save()


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # among them pandas' own and those of a wrong encoding
        raise _damaged(path, " ".join(str(error).split())) from error
    if "step" not in table or not is_integer_dtype(table["step"]):
        raise _damaged(path, "it has no column step of whole numbers")
    text = [str(column) for column in table if not is_numeric_dtype(table[column])]
    if text:
        raise _damaged(path, f"its column {text[0]} holds more than numbers")
    return table


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"Expected what training has logged in {path}, a row a step, but it cannot be read ({reason}); bring back the "
        f"file that training wrote, or move it away, and the run goes on without its earlier rows."
    )
