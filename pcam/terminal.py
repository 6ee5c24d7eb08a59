"""Words for a terminal: printable names, lists, names that a user may have meant; and a terminal that reads no more."""

import os
import select
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final, Literal

STDOUT: Final = 1
"""The number of standard output."""

UNREAD: Final = 128 + 13
"""The exit code if nobody reads the output any more, as after `| head`: that of SIGPIPE, which Python ignores."""


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


def joined(words: Iterable[str], last: Literal["and", "or"]) -> str:
    """Join words as a sentence has them.

    Args:
        words: At least one.
        last: What stands before the last of several.

    Returns:
        Such as "a", "a or b" or "a, b or c".
    """
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end


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


def end_output() -> bool:
    """Write out what has been printed, and say whether somebody reads it; if not, what follows is written nowhere."""
    try:
        if sys.stdout is not None:  # a user may have closed it
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return False
    return True


def nobody_reads() -> bool:
    """Find whether standard output is a pipe to a command that has ended; if so, what follows is written nowhere."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(STDOUT, 0)  # that the other end is closed is told whatever is asked for
    is_closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_closed:
        _discard_output()
    return is_closed


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python still writes what it has kept when it ends
