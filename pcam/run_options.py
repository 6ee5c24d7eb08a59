"""The options of a training that are not those of its trainer, network or data."""

from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ActionYesNo
from jsonargparse.typing import PositiveFloat, restricted_number_type

from pcam.options import Monitor, ResumeName

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", 2**32 - 1)])
"""What Lightning takes for a seed."""


class TakesArguments(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option."""


def add_run_options(parser: TakesArguments) -> None:
    """Add the options to a parser.

    Args:
        parser: Changed in place.
    """
    parser.add_argument(
        "--seed_everything",
        type=Seed,
        default=1,
        help="Seed of everything that is random: first weights, order of patches, augmentation, dropout; 0 to "
        "4,294,967,295.",
    )
    parser.add_argument(
        "--experiment",
        type=str,
        required=True,
        help="Name of the experiment, which is the name of its config; it names a folder.",
    )
    parser.add_argument("--monitor", type=Monitor, required=True, help="What the best checkpoint is best in.")
    parser.add_argument(
        "--runs_dir",
        type=Path,
        default=Path("lightning_logs"),
        help="Folder of all runs; this one becomes <runs_dir>/<experiment>/version_N.",
    )
    parser.add_argument(
        "--checkpoint_every_seconds",
        type=PositiveFloat | None,
        default=None,
        help="Also write last.ckpt this many seconds after the last checkpoint; null writes it only after each "
        "validation and at the end.",
    )
    parser.add_argument(
        "--compile",
        action=ActionYesNo,
        default=False,
        help="Let torch.compile make the training step: about a minute at the start, faster steps from then on. On a "
        "CPU it needs a C++ compiler.",
    )
    parser.add_argument(
        "--resume",
        type=Path | None,
        default=None,
        help="A run folder to resume, with its own config and its last checkpoint, instead of --config. Options that "
        "say how long training takes, what it runs on and where the data lie can be given beside it, such as "
        "--trainer.max_steps; what cannot change within a run, such as optimizer, seed and network, is refused.",
    )
    parser.add_argument(
        "--resume_from",
        type=ResumeName,
        default="last",
        help="The checkpoint that --resume goes on from: last, or previous, the one before the last.",
    )
    parser.add_argument(
        "--allow_other_data",
        action=ActionYesNo,
        default=False,
        help="Let --resume go on with other patches than those that the run was trained on; both are recorded.",
    )
