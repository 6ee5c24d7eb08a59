"""What the commands that open runs have in common: how their options are spelled, and what they say at the start."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import docstring_parser
from jsonargparse.typing import restricted_number_type

from pcam.door import Parser, program

if TYPE_CHECKING:
    from pcam.trained import TrainedRun


BatchSize = restricted_number_type("BatchSize", int, [(">=", 1), ("<=", 65_536)])
"""A number of patches that are classified at once; 65,536 patches are 1.8 GB before a network sees them."""


def add_option(parser: Parser, function: Callable[..., Any], parameter: str, spelling: str, **details: Any) -> None:
    """Add an option that is spelled differently from the parameter of the function that it is for.

    Args:
        parser: Changed in place.
        function: A function that is documented.
        parameter: The name of its parameter, whose explanation becomes the option's.
        spelling: The option, or the name of a positional argument.
        **details: As for `add_argument`.
    """
    explained = {found.arg_name: found.description for found in docstring_parser.parse(function.__doc__ or "").params}
    parser.add_argument(spelling, help=explained[parameter], **details)


def warn_of_bfloat16(run: "TrainedRun") -> None:
    """Say on standard error that bfloat16 is slow on this machine, if it is asked for and that is so.

    Args:
        run: The run that is about to classify.
    """
    from pcam.models.inference import bfloat16_warning

    warning = bfloat16_warning(run.device) if run.settings.precision == "bf16-mixed" else None
    if warning is not None:
        print(f"{program()}: {warning}", file=sys.stderr)
