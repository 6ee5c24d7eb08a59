"""Names as a terminal may show them, and names that a user may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


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
