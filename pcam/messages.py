"""What is told to the user on the way, by the first of several processes.

Lightning has the same, but takes seconds to import, and most of this package does without it.
"""

import logging
import os
import sys
from typing import Final

from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

__all__ = ["inform", "rank_zero_warn"]


class _Shown(logging.Handler):
    """Writes to what standard error is at the moment, unless the process has said what becomes of its logs."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


_LOG: Final = logging.getLogger("pcam")
_LOG.setLevel(logging.INFO)
_LOG.addHandler(_Shown())


def _rank() -> int:
    """The number of this process among those that train together, which started it so."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning looks for it
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


# As Lightning has set it, or will find it.
rank_zero_only.rank = getattr(rank_zero_only, "rank", _rank())  # type: ignore[attr-defined]


@rank_zero_only
def inform(message: str) -> None:
    """Log a message, in the first process only.

    Args:
        message: A sentence.
    """
    _LOG.info(message)
