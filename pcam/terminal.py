"""Names as a terminal may show them, names that a user may have meant, and a terminal that reads no more."""

import os
import select
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

STDOUT: Final = 1
"""The number of standard output."""


def printable(text: str) -> str:
    """Escape the control characters in a name, which a terminal would act on, and bytes that are no text.

    Args:
        text: Such as a file's name.

    Returns:
        The same, with each of these as Python writes it in quotes.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def similar_names(found: str, known: Iterable[str], otherwise: str, *, likeness: float = 0.6) -> str:
    """Advise what a name that there is not may have been meant to be.

    Args:
        found: What a user has given.
        known: The names that there are.
        otherwise: The advice if none of them is similar.
        likeness: From which a name counts as similar, 0 (any name) to 1 (the same name), as `difflib` has it.

    Returns:
        The end of a sentence.
    """
    near = get_close_matches(found, list(dict.fromkeys(known)), n=3, cutoff=likeness)
    return f"similar ones are {', '.join(near)}" if near else otherwise


def nobody_reads() -> bool:
    """Find whether standard output is a pipe to a command that has ended, such as `head`; then close it for good."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(STDOUT, 0)  # that the other end is closed is told whatever is asked for
    is_closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # for what Python still writes when it ends
    return is_closed
