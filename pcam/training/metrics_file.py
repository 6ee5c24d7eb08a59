"""`metrics.csv`: what was logged, one row a step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from pcam.atomic import atomic_path


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
        if resume_step is not None and path.exists():
            table = pd.read_csv(path)
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
            self._rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew."""
        if not self._rows:
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
