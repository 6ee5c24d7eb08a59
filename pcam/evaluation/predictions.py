"""Predictions: the logit that a classifier gives each patch of a split, and the file that holds them."""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logsumexp
from torch import Tensor

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.statistics import independent_units
from pcam.options import ORIGINS, Origin
from pcam.patches import Labels

_REQUIRED_COLUMNS: Final = ("id", "label", "logit", "group")


@dataclass(frozen=True)
class Predictions:
    """A classifier's logit for each patch of a split, with what is needed to judge it.

    Args:
        ids: The name of each patch.
        labels: The true label of each patch, 0 or 1, shape (patches,).
        logits: The log-odds of label 1 for each patch, float32, shape (patches,).
        groups: The group of identical patches that each patch belongs to. As the data name it, this is the SHA-1 of
            the patch's pixels in hexadecimal.
        slides: The slide of each patch, empty where it is not known; None if no slide is known.
        patients: The patient of each patch, in the same way.
        hospitals: The hospital of each patch, in the same way.

    Examples:
        >>> import numpy as np
        >>> import pcam
        >>> predictions = pcam.Predictions(
        ...     ids=["a.png", "b.png"],
        ...     labels=np.array([0, 1], dtype=np.uint8),
        ...     logits=np.array([-2.0, 0.0], dtype=np.float32),
        ...     groups=["a", "b"],
        ... )
        >>> predictions.scores.round(3)
        array([0.119, 0.5  ])
    """

    ids: list[str]
    labels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    groups: list[str]
    slides: list[str] | None = None
    patients: list[str] | None = None
    hospitals: list[str] | None = None

    @property
    def origins(self) -> dict[Origin, list[str]]:
        """Where each patch is from, as far as it is known."""
        found: dict[Origin, list[str] | None] = {
            "slide": self.slides, "patient": self.patients, "hospital": self.hospitals,
        }  # fmt: skip
        return {origin: names for origin, names in found.items() if names is not None}

    def subset(self, rows: NDArray[np.int64]) -> "Predictions":
        """Take the predictions of some patches.

        Args:
            rows: The numbers of their rows, in the order that is wanted.

        Returns:
            The predictions.
        """
        return Predictions(
            [self.ids[row] for row in rows],
            self.labels[rows],
            self.logits[rows],
            [self.groups[row] for row in rows],
            **{f"{origin}s": [names[row] for row in rows] for origin, names in self.origins.items()},
        )

    @property
    def units(self) -> list[str]:
        """The independent unit of each patch: its slide if that is known, else its group of identical patches."""
        return independent_units(self.groups, self.slides)

    @property
    def scores(self) -> NDArray[np.float64]:
        """The probability of label 1 of each patch, in float64: in float32 all logits above 17 would become 1."""
        scores: NDArray[np.float64] = expit(self.logits.astype(np.float64))
        return scores

    def tensors(self) -> tuple[Tensor, Labels]:
        """Return scores and labels as the tensors that torchmetrics takes."""
        return torch.from_numpy(self.scores), torch.from_numpy(self.labels.astype(np.int64))

    def write(self, path: Path) -> None:
        """Write a CSV with the columns id, label, logit, score, group and, where known, slide, patient and hospital.

        The rows are in the order of the ids, where a reader finds a patch. `read` gives back every bit of the logits,
        and the same predictions always give the same bytes.

        Args:
            path: The file; compressed with gzip if its name ends with `.gz`. It is replaced only when the new one is
                whole.
        """
        columns: dict[str, Any] = {"id": self.ids, "label": self.labels}
        columns |= {"logit": self.logits.astype(np.float64), "score": self.scores, "group": self.groups}
        columns |= {str(origin): names for origin, names in self.origins.items()}
        text = pd.DataFrame(columns).sort_values("id", kind="stable").to_csv(index=False)
        content = text.encode(errors="surrogateescape")  # names of files need not be UTF-8
        with atomic_path(path) as temporary:
            # Without the time and the temporary name that gzip would store.
            temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what `write` wrote; other columns are ignored.

        Args:
            path: The file; decompressed if its name ends with `.gz`.

        Returns:
            The predictions, in the order of the file.

        Raises:
            UserError: If the file is not there, or is not whole.
        """
        try:
            if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
                raise ValueError("it is no file")
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode(errors="surrogateescape")
            if not text.endswith("\n"):
                raise ValueError("its last line has no end")
            # As text: a hash may look like a number, and a slide may be called "NA".
            table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
            if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first of too many fields for an index
                raise ValueError("its rows have more fields than its header")
            missing = [name for name in _REQUIRED_COLUMNS if name not in table]
            if missing:
                raise ValueError(f"it has no column {' and no column '.join(missing)}")
            if not table["label"].isin(["0", "1"]).all():
                raise ValueError("it has labels other than 0 and 1")
            logits = table["logit"].to_numpy(dtype=np.str_).astype(np.float64).astype(np.float32)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(
                f"Expected predictions in {path} (a CSV with the columns {', '.join(_REQUIRED_COLUMNS)}), but it "
                f"cannot be read ({' '.join(str(error).split()).rstrip('.')}); copy or write the file again."
            ) from error
        return cls(
            table["id"].tolist(),
            table["label"].to_numpy(dtype=np.str_).astype(np.uint8),
            logits,
            table["group"].tolist(),
            *(table[origin].tolist() if origin in table else None for origin in ORIGINS),
        )


def check_finite(logits: NDArray[np.float32], source: str) -> None:
    """Refuse logits that are not finite, because they have no score.

    Args:
        logits: The logits, shape (patches,).
        source: What the message says that they come from, such as the run's folder and the split.

    Raises:
        UserError: If a logit is infinite or NaN.
    """
    bad = np.count_nonzero(~np.isfinite(logits))
    if bad:
        raise UserError(
            f"Expected finite logits from {source}, but {bad:,} of {len(logits):,} are not: its training has diverged; "
            f"train it anew with a lower learning rate."
        )


def average_scores(members: Sequence[Predictions]) -> Predictions:
    """Average the scores of several classifiers of the same patches, as an ensemble.

    Scores, not logits: logits of different networks differ in scale, and the most confident would decide alone.

    Args:
        members: Predictions of the same patches in the same order.

    Returns:
        Predictions whose scores are the means.
    """
    logits = np.stack([member.logits.astype(np.float64) for member in members])
    # The log-odds of the mean score; through scores themselves, logits above 37 would become infinite.
    mean = logsumexp(log_expit(logits), axis=0) - logsumexp(log_expit(-logits), axis=0)
    return replace(members[0], logits=mean.astype(np.float32))
