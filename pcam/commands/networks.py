"""What the commands that build a network from its options have in common: embed and probe."""

import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml

from pcam.commands.train_help import data_options, network_names
from pcam.door import Arguments, Parser, long_description, program, with_config_paths

if TYPE_CHECKING:
    from torch import nn

    from pcam.data import PCamDataModule


Options = TypeVar("Options")


@dataclass(frozen=True)
class Built(Generic[Options]):
    """What a command line has built.

    Args:
        network: The network, with its weights.
        data: The patches.
        options: The command's own options.
        config: All options, resolved, as they lie in a run's config.yaml.
    """

    network: "nn.Module"
    data: "PCamDataModule"
    options: Options
    config: Mapping[str, Any]


def build_network(command: Callable[..., Any], options: type[Options], args: Arguments) -> Built[Options]:
    """Build the network and the data of a command line; their options are spelled as those of train.

    Args:
        command: The command, whose docstring its help begins with.
        options: A dataclass of the command's own options.
        args: The words of the command line; None takes the process's own.

    Returns:
        What was built.

    Raises:
        UserError: If there are no such data or weights.
    """
    words = sys.argv[1:] if args is None else [str(word) for word in args]
    if {"-h", "--help"} & set(words):  # at once, without PyTorch
        _help_parser(command, options).print_help()
        sys.exit(0)
    from torch import nn

    from pcam.cli import TrainingParser, complete_network, make_absolute
    from pcam.data import PCamDataModule
    from pcam.data.layouts import find_layout

    class Model:
        """The part of the options that train has in its classifier: a class, so that what its network says is heard.

        Args:
            network: A network that makes embeddings.
        """

        def __init__(self, network: nn.Module) -> None:
            self.network = network

    parser = TrainingParser(prog=program(), description=long_description(command))
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_function(options)
    parser.add_class_arguments(Model, "model")
    parser.add_class_arguments(PCamDataModule, "data", skip={"seed"})  # nothing of it is drawn
    config = parser.parse_args(with_config_paths(words))
    parser.refuse_null("data", PCamDataModule, config.data)
    make_absolute(config)
    find_layout(config.data.root)  # before weights are downloaded
    complete_network(config.model.network)
    config.pop("config", None)
    saved = yaml.safe_load(parser.dump(config, skip_none=False))
    built = parser.instantiate(config)
    own = options(**{field.name: config[field.name] for field in fields(options)})  # type: ignore[arg-type]
    return Built(built.model.network, built.data, own, saved)


def _help_parser(command: Callable[..., Any], options: type[Any]) -> Parser:
    parser = Parser(prog=program(), description=long_description(command))
    parser.add_argument("--config", help="A YAML file with these options, such as the config.yaml of an earlier run.")
    parser.add_function(options)
    parser.add_argument(
        "--model.network",
        help=f"The network: {', '.join(network_names())}, or the path of any class that makes embeddings. Its options "
        f"are --model.network.NAME; --model.network.help CLASS explains them.",
    )
    for name, option in data_options().items():
        default = " Required." if option.default is None else f" Default: {option.default}."
        parser.add_argument(f"--data.{name}", default=SUPPRESS, help=option.explanation.replace("%", "%%") + default)
    return parser
