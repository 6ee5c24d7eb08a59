"""Names as a terminal may show them."""


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
