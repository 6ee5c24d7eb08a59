"""`train --help`, and the answer to an option that there is not, at once.

The whole parser of a training needs PyTorch and Lightning, whose imports take seconds. What the short help shows is
therefore read from the source files of the classes: their docstrings and the names of their options.
"""

import ast
import importlib.util
import re
import shutil
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import docstring_parser
from jsonargparse import DefaultHelpFormatter

from pcam.door import Parser, leave, program
from pcam.run_options import add_run_options
from pcam.shipped import list_configs
from pcam.terminal import similar_names

TRAINER_OPTIONS: Final = (
    "max_steps",
    "max_epochs",
    "val_check_interval",
    "log_every_n_steps",
    "accelerator",
    "devices",
    "precision",
    "limit_train_batches",
    "callbacks",
    "enable_progress_bar",
    "fast_dev_run",
)
"""The trainer's options that the short help shows; the others are behind --help_all."""

RARE_DATA_OPTIONS: Final = ("train_patches", "train_slides")
"""The data's options that only --help_all shows: those of a study of how much data is enough."""

UNEXPLAINED: Final = {"-h", "--help", "--help_all", "--print_config", "--config"}
"""Options of the whole parser that are neither a run's nor a part's."""

DESCRIPTION: Final = """\
Train a classifier of PatchCamelyon's patches. A config says what is trained; any option of it can also be given on the
command line, as --trainer.max_steps 500. Each run gets a folder of its own, <runs_dir>/<experiment>/version_N."""

MORE: Final = """\
More help: --help_all shows every option, --model.network.help pcam.models.MobileNetV2 those of a network, and
--model.optimizer.help torch.optim.AdamW those of an optimizer. --print_config prints all options with their values."""


@dataclass(frozen=True)
class Option:
    """An option of a class, as its source says.

    Args:
        default: Its default in Python; None if it is required.
        explanation: What the docstring says.
    """

    default: str | None
    explanation: str


def read_options(path: Path, class_name: str) -> dict[str, Option]:
    """Read the options of a class from its source, without importing it.

    Args:
        path: The source file.
        class_name: The class; its own docstring, or that of its `__init__`, explains the options.

    Returns:
        The options by name, in their order.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == class_name)
    (init,) = (node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    explained = {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for node in (found, init)
        for parameter in docstring_parser.parse(ast.get_docstring(node) or "").params
    }
    arguments = init.args
    positional = arguments.args[1:]  # without self
    missing = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*missing, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        argument.arg: Option(None if default is None else ast.unparse(default), explained.get(argument.arg, ""))
        for argument, default in pairs
    }


@cache
def data_options() -> Mapping[str, Option]:
    """The options of the data."""
    options = read_options(Path(__file__).parents[1] / "data" / "datamodule.py", "PCamDataModule")
    return {name: option for name, option in options.items() if name != "seed"}  # the run's seed is the data's


@cache
def trainer_options() -> Mapping[str, Option]:
    """The options of Lightning's trainer."""
    found = importlib.util.find_spec("lightning")  # finds the package without importing it
    assert found is not None
    assert found.origin is not None
    return read_options(Path(found.origin).parent / "pytorch" / "trainer" / "trainer.py", "Trainer")


@cache
def network_names() -> list[str]:
    """The networks of this project, by the path of their class."""
    tree = ast.parse((Path(__file__).parents[1] / "models" / "__init__.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return [f"pcam.models.{name}" for name in sorted(names)]


class _WideFormatter(DefaultHelpFormatter):
    """jsonargparse's help, with short flags beside their explanations."""

    def __init__(self, prog: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # jsonargparse 4.53
            prog, max_help_position=32, width=min(max(shutil.get_terminal_size().columns - 2, 80), 120)
        )


def short_parser() -> Parser:
    """Make a parser of the options that people set first; its help is the short help."""
    parser = Parser(
        prog=program(),
        usage="%(prog)s --config CONFIG [--data.root DIR] [options]\n       %(prog)s --resume RUN [options]",
        description=f"{DESCRIPTION}\n\n{MORE}",
        add_help=False,
        formatter_class=_WideFormatter,
    )
    group = parser.add_argument_group("The run")
    group.add_argument(
        "--config",
        metavar="CONFIG",
        default=SUPPRESS,
        help=f"A YAML file, or the name of a shipped config: {', '.join(list_configs())}.",
    )
    add_run_options(group)
    parser.supplied_by_config = frozenset({"experiment", "monitor"})
    group = parser.add_argument_group("The data")
    for name, option in data_options().items():
        if name in RARE_DATA_OPTIONS:
            continue
        _add(group, f"--data.{name}", option, sentences=1 if name == "root" else 2)
    group = parser.add_argument_group("The classifier")
    networks = f"{', '.join(network_names())}, or the path of any class that takes patches and gives logits"
    for name, explanation in {
        "network": f"The network: {networks}. Its options are --model.network.NAME.",
        "optimizer": "A class of torch.optim. Its options are --model.optimizer.NAME, such as lr.",
        "scheduler": "A class of torch.optim.lr_scheduler, which steps after each batch; null keeps the rate constant.",
    }.items():
        group.add_argument(f"--model.{name}", metavar="CLASS", default=SUPPRESS, help=explanation)
    group = parser.add_argument_group("The trainer")
    for name in TRAINER_OPTIONS:
        _add(group, f"--trainer.{name}", trainer_options()[name], sentences=2)
    return parser


def _add(group: Any, flag: str, option: Option, sentences: int | None = None) -> None:
    explanation = option.explanation.replace("``", "").partition(" Default: ")[0].replace("%", "%%")
    explanation = " ".join(re.split(r"(?<=[.!?]) ", explanation)[:sentences])
    default = f" Default: {'the one in the config' if option.default is None else option.default}."
    group.add_argument(flag, metavar="VALUE", default=SUPPRESS, help=explanation + default)


def print_help() -> None:
    """Print the short help."""
    short_parser().print_help()


def check_options(words: Sequence[str]) -> None:
    """End with a sentence and exit code 2 if there is no such option, before anything that takes time is imported.

    Options of networks, optimizers and schedulers, and those within a trainer's option, are left to the whole parser.

    Args:
        words: The command line.
    """
    known = set(UNEXPLAINED)
    for action in short_parser()._actions:
        known.update(action.option_strings)
    parts = {"data": data_options(), "trainer": trainer_options()}
    for word in words:
        flag = word.partition("=")[0].rstrip("+")
        part, _, name = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or flag == "--" or flag in known or part == "model":
            continue
        if part in parts and (not name or name.partition(".")[0] in {*parts[part], "help", "seed"}):
            continue
        names = [*known, *(f"--{part}.{name}" for part, options in parts.items() for name in options)]
        advice = similar_names(flag, names, "--help shows those that there are")
        leave(f"Expected an option of train, but found {flag}; {advice}.", 2)
