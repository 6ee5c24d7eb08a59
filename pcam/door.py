"""The front door of every command: words in, one sentence and an exit code out.

Imports nothing that takes time, so that `--help` and a wrong option answer at once.
"""

import errno
import functools
import inspect
import os
import re
import signal
import sys
import threading
import weakref
from argparse import HelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Final, NoReturn, Protocol, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser

from pcam import wrong_values
from pcam.errors import REFUSALS, SIGNALS, ConfigError, StoppedError, UserError
from pcam.memory import keep_freed_memory
from pcam.shipped import find_config
from pcam.terminal import UNREAD, end_output, nobody_reads, printable, similar_names
from pcam.yaml_files import check_yaml

Arguments = Sequence[str] | None
"""Words of a command line; None is those that the process was started with."""


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, args: Arguments = None) -> None:
        """Run the command; None takes the process's own command line."""


def front_door(main: Main) -> Main:
    """Turn whatever can end a command into its exit code and one sentence.

    The exit code is 1 for a `UserError`, 2 for a `ConfigError` and for a wrong command line, and 128 plus the signal's
    number after a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP (a closed terminal), 141 where nobody
    reads the output any more. A bug keeps its traceback.

    Args:
        main: The main function of a command.

    Returns:
        The same function, which ends with `SystemExit` in these cases.
    """

    @functools.wraps(main)
    def guarded(args: Arguments = None) -> None:
        keep_freed_memory()
        with _signals() as received:
            try:
                _check_working_directory()
                main(args)
                if not end_output():
                    sys.exit(UNREAD)
            except SystemExit as ended:
                if ended.code or end_output():
                    raise
                sys.exit(UNREAD)
            except StoppedError as error:
                leave(str(error), 128 + error.signal_number)
            except KeyboardInterrupt:
                leave("Interrupted.", 128 + signal.SIGINT)
            except Exception as error:
                if isinstance(error, BrokenPipeError) and nobody_reads():
                    sys.exit(UNREAD)
                if received:  # a library has made another error of the one that the signal raised
                    leave("Stopped.", 128 + received[0])
                _answer(error)

    return guarded


def _answer(error: Exception) -> NoReturn:
    """End with the sentence of an error that the user can mend; raise a bug again, with its traceback."""
    if isinstance(error, UserError):
        leave(str(error), 2 if isinstance(error, ConfigError) else 1)
    if isinstance(error, OSError) and error.errno in {*REFUSALS, *_WRONG_PATHS}:
        leave(f"Expected to read or write {error.filename or 'a file'}, but the system refused: {error.strerror}.", 1)
    raise error


SECONDS_UNTIL_SENT_AGAIN: Final = 0.5
"""How long a command that was to end may go on before the signal is sent again: time to clear away, if it is ending."""

_WRONG_PATHS: Final = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP})
"""What a path may be that no system takes: a name that is too long, a file as a folder, links in a circle."""


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError(
            "Expected to be started in a folder, but found that the working directory has been deleted; change to "
            "another with cd."
        ) from error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """End by a `StoppedError` when a signal comes, so that what is half written is cleared away.

    A signal that is ignored stays so, as nohup leaves SIGHUP. What a signal raises may be swallowed: by Python in
    `__del__`, and by libraries in C++ that call Python, which make another error of it or none. Then nothing refers to
    it any more, and the signal is sent again a moment later.

    Yields:
        The signals that have come.
    """
    received: list[int] = []
    raised: list[weakref.ref[StoppedError]] = []

    def stop(signal_number: int, frame: FrameType | None) -> NoReturn:
        received.append(signal_number)
        error = StoppedError(signal_number, "Interrupted." if signal_number == signal.SIGINT else "Stopped.")
        raised.append(weakref.ref(error, lambda _: again(signal_number)))
        try:
            raise error
        finally:
            del error  # its traceback has this frame: it would refer to itself, and never be let go

    def again(signal_number: int) -> None:
        def send() -> None:
            if signal.getsignal(signal_number) is stop:  # else the command is over, and the signal not for us
                os.kill(os.getpid(), signal_number)

        timer = threading.Timer(SECONDS_UNTIL_SENT_AGAIN, send)
        timer.daemon = True
        timer.start()

    def unraisable(found: "sys.UnraisableHookArgs") -> None:
        if not isinstance(found.exc_value, StoppedError):
            hook(found)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def program() -> str:
    """What the user typed to start this process: "pcam train", or the name of a script."""
    name = Path(sys.argv[0]).name
    if name not in ("pcam", "__main__.py"):
        return name
    commands = [word for word in sys.argv[1:2] if not word.startswith("-")]
    return " ".join(["pcam", *commands])


def leave(sentence: str, exit_code: int) -> NoReturn:
    """Print a sentence on standard error, and end.

    Args:
        sentence: What went wrong and what to do.
        exit_code: The exit code.
    """
    print(f"{program()}: {printable(sentence)}", file=sys.stderr)
    end_output()
    sys.exit(exit_code)


OLD_SPELLINGS: Final[dict[str, str]] = {
    "--report-only": "--report_only",
    "--out": "--output",
    "--layout": "--axis_order",
}
"""Options that were spelled otherwise, which go on working without being shown."""


class Parser(ArgumentParser):
    """A parser that answers a wrong command line with one sentence and exit code 2."""

    supplied_by_config: Set[str] = frozenset()
    """Options that are required, but that a config gives: the help does not ask for them."""

    _words: list[str] | None = None
    """The command line; None of a parser within another, as of an entry in a config."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Explain the options; those that a config supplies are not marked as required."""
        supplied = [action for action in self._actions if action.dest in self.supplied_by_config and action.required]
        for action in supplied:
            action.required = False
        try:
            return str(super().format_help(formatter))
        finally:
            for action in supplied:
                action.required = True

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence, without the usage, which is longer than a screen."""
        said = " ".join(message.split())
        unknown = re.fullmatch(r"unrecognized arguments: (.+)", said)
        missing = re.fullmatch(r"the following arguments are required: (.+)", said)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            advice = similar_names(
                unknown[1].split()[0].partition("=")[0], options, "--help shows those that there are"
            )
            said = f"Expected options of {program()}, but found {unknown[1]}; {advice}."
        elif missing:
            names = missing[1].split(", ")
            typed = wrong_values.missing_names(self, names, self._words, names_of_config=self.supplied_by_config)
            said = f"Expected {typed}, without which {program()} cannot run, but found none; --help explains it."
        leave(wrong_values.sentence(said) or said, 2)

    def add_function(
        self,
        function: Callable[..., Any],
        spelled: Mapping[str, str] = MappingProxyType({}),
        skip: Set[str] = frozenset(),
    ) -> None:
        """Add a function's parameters as options, each explained by the function's docstring.

        A parameter that is False by default becomes a switch without a value.

        Args:
            function: A function that is annotated and documented.
            spelled: Parameters that are spelled differently from their names: "--data.root", or "RUN" for an argument
                without a flag, with several values after it if the parameter is a list.
            skip: Names of parameters that are not added.
        """
        parameters = inspect.signature(function).parameters
        parsed = docstring_parser.parse(function.__doc__ or "")
        explained = {found.arg_name: found.description for found in parsed.params}
        switches = [name for name, parameter in parameters.items() if parameter.default is False and name not in skip]
        leading = list(takewhile(spelled.__contains__, parameters))
        for name in leading:
            self._add_spelled(name, spelled[name], parameters[name], explained[name])
        for name in switches:
            self.add_argument(f"--{name}", action="store_true", help=explained[name])
        self.add_function_arguments(function, as_positional=True, skip={*skip, *switches, *spelled}, as_group=False)
        for name in spelled:
            if name not in leading:
                self._add_spelled(name, spelled[name], parameters[name], explained[name])

    def _add_spelled(self, name: str, spelling: str, parameter: inspect.Parameter, explanation: str | None) -> None:
        kinds = {"help": explanation, "type": parameter.annotation}
        lists = [kind for kind in (parameter.annotation, *get_args(parameter.annotation)) if get_origin(kind) is list]
        if lists:
            kinds |= {"type": get_args(lists[0])[0], "nargs": "+"}
            if spelling.startswith("-"):  # given twice, it has the values of both
                kinds |= {"action": "extend"}
        is_required = parameter.default is inspect.Parameter.empty
        if not spelling.startswith("-"):
            optional = {} if is_required else {"nargs": "*" if lists else "?", "default": parameter.default}
            self.add_argument(name, metavar=spelling, **kinds | optional)
        elif is_required:
            self.add_argument(spelling, required=True, **kinds)
        else:
            self.add_argument(spelling, default=parameter.default, **kinds)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parse a command line, in which options may have their old spellings.

        What is not text is answered with one sentence too.
        """
        self._words = words = sys.argv[1:] if args is None else [str(word) for word in args]
        if self.supplied_by_config and {"-h", "--help"} & set(words):  # while parsing, jsonargparse 4.53 restores marks
            self.print_help()
            sys.exit(0)
        try:
            return super().parse_args([_respelled(word) for word in words], *others, **options)
        except UnicodeDecodeError as error:
            self.error(
                f"Expected a config in UTF-8, but found the byte {error.object[error.start]:#04x} at place "
                f"{error.start} ({error.reason}); save it as UTF-8."
            )

    def refuse_null(self, key: str, configured: type[Any], options: Mapping[str, Any]) -> None:
        """Refuse null for an option that does not take it, which jsonargparse 4.53 lets through in files.

        Args:
            key: Where the options are in the config: "model.network".
            configured: The class whose options they are.
            options: Name and value of each.
        """
        parameters = inspect.signature(configured).parameters
        for name, value in options.items():
            parameter = parameters.get(name)
            if value is not None or parameter is None or parameter.default is None:
                continue
            if not any(word in str(parameter.annotation) for word in ("None", "Optional")):
                self.error(
                    f"Expected a value of type {parameter.annotation} for {key}.{name} ({configured.__name__}), but "
                    f"found null; leave it out to have its default."
                )


def _respelled(word: str) -> str:
    name, equals, value = word.partition("=")
    return OLD_SPELLINGS.get(name, name) + equals + value


def first_line(function: Callable[..., Any]) -> str:
    """The summary of a function's docstring."""
    return (function.__doc__ or "").partition("\n")[0]


def long_description(function: Callable[..., Any]) -> str:
    """What a docstring says before it explains the arguments, one line a paragraph."""
    parsed = docstring_parser.parse(inspect.cleandoc(function.__doc__ or ""))
    paragraphs = [parsed.short_description or "", *(parsed.long_description or "").split("\n\n")]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def run_function(
    function: Callable[..., Any], args: Arguments, spelled: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run a function as a command; its options come from its signature and docstring.

    Args:
        function: The command.
        args: The command line.
        spelled: Parameters whose options are spelled differently from their names, as `Parser.add_function` takes them.
    """
    parser = Parser(prog=program(), description=long_description(function))
    parser.add_function(function, spelled)
    _call(function, parser.instantiate(parser.parse_args(args)), spelled)


def _call(function: Callable[..., Any], options: Any, spelled: Mapping[str, str]) -> None:
    names = {name: name for name in inspect.signature(function).parameters}
    names |= {name: spelling.removeprefix("--") for name, spelling in spelled.items() if spelling.startswith("--")}
    function(**{name: options[option] for name, option in names.items()})


def run_subcommand(
    description: str,
    functions: Mapping[str, Callable[..., Any]],
    args: Arguments,
    spelled: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> None:
    """Run one of several functions as a subcommand; its options come from its signature and docstring.

    Args:
        description: What the command is for.
        functions: The subcommands, by name.
        args: The command line.
        spelled: For each of them, parameters that are spelled differently, as `Parser.add_function` takes them.
    """
    parser = Parser(prog=program(), description=description)
    subcommands = parser.add_subcommands(dest="command")
    for name, function in functions.items():
        subparser = Parser(description=long_description(function))
        subparser.add_function(function, spelled.get(name, {}))
        subcommands.add_subcommand(name, subparser, help=first_line(function))
    config = parser.instantiate(parser.parse_args(args))
    _call(functions[config.command], config[config.command], spelled.get(config.command, {}))


def with_config_paths(words: Sequence[str], folder: str = "") -> list[str]:
    """Replace what follows --config, a path or the bare name of a shipped config, by the path of a file that is sound.

    Args:
        words: A command line.
        folder: Where shipped configs are looked for: "" for experiments, "studies" for studies.

    Raises:
        ConfigError: If there is no such config, or it repeats keys or has aliases.
    """
    found = list(words)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--config" and equals:
            found[number] = f"--config={_sound_config(value, folder)}"
        elif number and words[number - 1] == "--config":
            found[number] = str(_sound_config(word, folder))
    return found


def _sound_config(name: str, folder: str) -> Path:
    try:
        path = find_config(name, folder)
    except UserError as error:
        raise ConfigError(str(error)) from error
    check_yaml(path)
    return path
