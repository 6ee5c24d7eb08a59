"""Sentences about options with wrong values, in the place of those of jsonargparse and argparse."""

import re
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from pcam.terminal import joined

_KINDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "options by their names",
    "NoneType": "null",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number of at least 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number of at least 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "OpenUnitInterval": "a number between 0 and 1",
}

_BOUNDS: Final = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}


def sentence(message: str) -> str | None:
    """Say what value an option takes and what was found.

    Args:
        message: What jsonargparse 4.53 or argparse says, in one line.

    Returns:
        The sentence; None where the message is of another kind.
    """
    without = re.fullmatch(r"argument (\S+): ignored explicit argument '(.*)'", message)
    if without:
        return f"Expected {without[1]} without a value, but found {without[2]}; leave the value out."
    alone = re.fullmatch(r"argument (\S+): expected (?:one argument|at least one argument|\d+ arguments?)", message)
    if alone:
        return f"Expected a value after {alone[1]}, but found none; --help explains it."
    foreign = re.search(r"Option '([^']+)' is not accepted$", message)
    if foreign:
        return f"Expected an option that its class takes, but found {foreign[1]}; --help shows those that there are."
    keyed = re.fullmatch(r'Parser key "([^"]+)": (.+)', message)
    found = keyed and (_one_of_several(keyed[2]) or _of_a_kind(keyed[2]) or _restricted(keyed[2]))
    if not keyed or not found:
        return None
    expected, value = found
    return f"Expected {keyed[1]} to be {expected}, but found {value}; --help explains it."


def _one_of_several(message: str) -> tuple[str, str] | None:
    found = re.search(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .* "
        r"Given value type: \S+ \S+ Given value: (.*)$",
        message,
    )
    if not found:
        return None
    kinds = re.split(r", (?![^\[]*\])", found[1])  # at commas that are in no brackets
    return _either(word for kind in kinds for word in _in_words(kind)), found[2]


def _of_a_kind(message: str) -> tuple[str, str] | None:
    found = re.fullmatch(r"Expected an? (.*)\. Got value: (.*)", message)
    return (_either(_in_words(found[1])), found[2]) if found else None


def _restricted(message: str) -> tuple[str, str] | None:
    unlike = re.fullmatch(
        r"Not of type \w+: (?:invalid literal for int\(\) with base 10|could not convert string to (float)): '(.*)'",
        message,
    )
    if unlike:
        return ("a number" if unlike[1] else "a whole number"), unlike[2]
    beyond = re.fullmatch(r"Not of type \w+: (\S+) does not conform to restriction (.*)", message)
    if not beyond:
        return None
    return re.sub("v([<>]=?)", lambda bound: f"{_BOUNDS[bound[1]]} ", beyond[2]), beyond[1]


def _either(words: Iterable[str]) -> str:
    return joined(dict.fromkeys(words), "or")


def _in_words(kind: str) -> list[str]:
    """Say what a type takes: each choice, or one description."""
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if choices:
        return [choice.strip("'\"") for choice in choices[1].split(", ")]
    if kind == "list[int]":
        return ["a list such as [128]"]
    name = re.sub(r"\[.*", "", kind.removeprefix("<class '").removesuffix("'>")).rpartition(".")[2]
    return [_KINDS.get(name, name)]


def missing_names(
    parser: ArgumentParser, names: Sequence[str], words: Sequence[str] | None, *, names_of_config: AbstractSet[str]
) -> str:
    """Say what a user would have to type, or to write into a config, for parameters that are missing.

    Args:
        parser: The parser that misses them.
        names: Their names; those of a subcommand come after its name, as in "pack.root".
        words: The command line; None if the parser is that of a part of a config.
        names_of_config: The names of parameters that a config gives.
    """
    if words is None:
        return " and ".join(names)
    if set(names) <= names_of_config:
        has_config = any(word.partition("=")[0] == "--config" for word in words)
        return f"{' and '.join(names)} in the config" if has_config else "--config"
    return " and ".join(_typed(parser, name) for name in names)


def _typed(parser: ArgumentParser, name: str) -> str:
    """What a user types for a parameter: --input, or RUN for one without a flag."""
    command, _, rest = name.partition(".")
    for action in parser._actions:
        if action.dest == name:
            return str([*action.option_strings, action.metavar or name][0])
        if isinstance(action.choices, dict) and command in action.choices:
            return _typed(action.choices[command], rest)
    return name
