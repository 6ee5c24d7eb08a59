"""Lightning's messages that tell the user nothing about a run."""

import logging
import re
import warnings
from typing import Final

_LOGGERS: Final = (
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.rank_zero",
)
"""Where Lightning 2.6 says them; look again when it is raised."""

_MESSAGES: Final = re.compile(
    "|".join(
        [
            "Seed set to",  # `config.yaml` says it
            "GPU available:|TPU available:|LOCAL_RANK:",  # the line about the network says what it is trained on
            "`weights_only` was not set",  # each load of ours sets it, and Lightning's words suggest the opposite
            "Received SIGTERM",  # the last line says where the run was stopped
            "`Trainer.fit` stopped: `max_",  # training has come to its end, as the config says
            "Restoring states from",  # followed by "Restored all states from"
            "litlogger",  # an advertisement
        ]
    )
)


def quieten() -> None:
    """Silence Lightning's lines that say nothing about the user's run; for a command, which has a process of its own.

    A notebook that trains with its own Trainer sees what Lightning says.
    """
    # The store is memory-mapped: a batch is read faster than a worker process could hand it over.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # A run that resumes goes on in its own folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # A frozen part is meant to be.
    warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start of training")
    # Lightning 2.6 with torch 2.15; look again when it is raised.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_says_something)  # at most once, as it is the same function


def _says_something(record: logging.LogRecord) -> bool:
    return _MESSAGES.search(record.getMessage()) is None
