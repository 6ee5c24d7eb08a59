"""What Lightning says at every start and tells the user nothing of a run."""

import logging
import warnings


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
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _says_something not in logger.filters:
        logger.addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()  # Lightning 2.6 recommends a product at every start
