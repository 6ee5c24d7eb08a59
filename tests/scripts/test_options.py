"""The options of every command, so that none is added, renamed or removed by accident: docs and users rely on them.

After a change that is meant, write the list anew: PYTHONPATH=. python tests/scripts/test_options.py
"""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import pcam.models
from pcam.__main__ import MODULES
from pcam.commands.prepare_data import COMMANDS as DATA_COMMANDS
from pcam.door import Parser

RECORDED = Path(__file__).with_name("options.json")

NOT_OURS = ("--trainer", "--model.optimizer.", "--model.scheduler.")
"""Options that are Lightning's and PyTorch's."""


class ParserFound(BaseException):
    """Ends a command where it would parse its command line."""

    def __init__(self, parser: Parser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(main: Callable[[list[str]], None]) -> Parser:
    """Find the parser that a command makes."""

    def parse_args(self: Parser, *args: Any, **options: Any) -> None:
        raise ParserFound(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", parse_args)
        with pytest.raises(ParserFound) as found:
            main(["--help_all"])
    return found.value.parser


def options_of(parser: Any) -> Iterator[str]:
    """List the options of a parser and of its subcommands, as they are typed; arguments without a flag in capitals."""
    for action in parser._actions:
        names = action.option_strings or [(action.metavar or action.dest).upper()]
        if isinstance(action.choices, dict):  # subcommands
            for command, subparser in action.choices.items():
                yield from (f"{command} {option}" for option in options_of(subparser))
        elif "-h" not in names and not any(name.startswith(NOT_OURS) for name in names):
            yield from (name for name in names if not name.endswith(("help", "+")) and " " not in name)


def all_options() -> dict[str, list[str]]:
    """List the options of every command, and of the networks."""
    found = {name: sorted(set(options_of(parser_of(import_module(f"pcam.commands.{name}").main)))) for name in MODULES}
    networks = {name: getattr(pcam.models, name) for name in pcam.models.__all__}
    found |= {
        name: [f"--model.network.{option}" for option in signature(network).parameters]
        for name, network in networks.items()
        if isinstance(network, type)
    }
    return found


def test_the_options_are_those_that_are_recorded() -> None:
    recorded = json.loads(RECORDED.read_text())
    found = all_options()
    assert found.keys() == recorded.keys()
    for name, options in found.items():
        assert options == recorded[name], f"of {name}; if this is meant, see the top of {Path(__file__).name}"


def test_a_data_command_is_also_a_subcommand_with_the_same_options() -> None:
    recorded = json.loads(RECORDED.read_text())["prepare_data"]
    assert {option.split()[0] for option in recorded} == set(DATA_COMMANDS)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(all_options(), indent=2) + "\n")
