"""What the commands that open runs have in common."""

import sys
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

from pcam.door import program

if TYPE_CHECKING:
    from pcam.trained import TrainedRun


BatchSize = restricted_number_type("BatchSize", int, [(">=", 1), ("<=", 65_536)])
"""A number of patches that are classified at once; 65,536 patches are 1.8 GB before a network sees them."""


Port = restricted_number_type("Port", int, [(">=", 1), ("<=", 65_535)])
"""The number of a port."""


def warn_of_bfloat16(run: "TrainedRun") -> None:
    """Say on standard error that bfloat16 is slow on this machine, if it is asked for and that is so.

    Args:
        run: The run that is about to classify.
    """
    from pcam.models.inference import bfloat16_warning

    warning = bfloat16_warning(run.device) if run.settings.precision == "bf16-mixed" else None
    if warning is not None:
        print(f"{program()}: {warning}", file=sys.stderr)
