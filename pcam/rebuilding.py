"""From the files of a run to its network and its data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import nn

from pcam.checkpoint_file import load_checkpoint
from pcam.errors import ConfigError, UserError
from pcam.models.published_weights import load_published
from pcam.published import WEIGHTS_FILE
from pcam.run_folder import RunFolder
from pcam.yaml_files import check_yaml

if TYPE_CHECKING:
    from pcam.data import PCamDataModule


def read_config(folder: RunFolder) -> Mapping[str, Any]:
    """Read a run's config.

    Args:
        folder: The run folder.

    Returns:
        All options of the run.

    Raises:
        ConfigError: If it is not a config of a run.
    """
    check_yaml(folder.config)
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in ("model", "data")):
        raise ConfigError(
            f"Expected the config of a run in {folder.config}, with the sections model and data, but found something "
            f"else; bring back the file that training wrote."
        )
    return config


class _ConfigParser(ArgumentParser):
    """A parser of a run's config that raises instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ConfigError(" ".join(message.split()))


def build_network(config: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the network that a config names, with random weights.

    Args:
        config: All options of a run.
        path: Where they are from, for messages.

    Returns:
        The network.

    Raises:
        ConfigError: If the config names a network that there is not, or options that it does not take.
    """
    parser = _ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network", required=True)
    with _refusing(path), torch.random.fork_rng(devices=[]):  # building a network draws its first weights
        given = dict(config["model"].get("network") or {})
        # The checkpoint holds all weights: nothing is downloaded again.
        options = dict(given.get("init_args") or {})
        given["init_args"] = options | ({"weights": None} if "weights" in options else {})
        network: nn.Module = _instantiated(parser, {"network": given}).network
    return network


def build_data(config: Mapping[str, Any], path: Path) -> "PCamDataModule":
    """Build the data that a config names. This imports Lightning, which takes seconds.

    Args:
        config: All options of a run.
        path: Where they are from, for messages.

    Returns:
        The data.

    Raises:
        ConfigError: If the config has options that the data do not take.
    """
    from pcam.data import PCamDataModule  # noqa: PLC0415  # takes seconds

    parser = _ConfigParser(exit_on_error=False)
    parser.add_class_arguments(PCamDataModule, "data")
    options = config["data"] | {"seed": config.get("seed_everything", 1)}
    with _refusing(path):
        data: PCamDataModule = _instantiated(parser, {"data": options}).data
    return data


def _instantiated(parser: ArgumentParser, options: Mapping[str, Any]) -> Namespace:
    # The parser changes what it is given.
    built: Namespace = parser.instantiate(parser.parse_object(deepcopy(dict(options))))
    return built


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Answer whatever a wrong option of a config raises."""
    try:
        yield
    except (ArgumentError, ConfigError, ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected the config of a run in {path}, but found an option that cannot be used "
            f"({' '.join(str(error).split())}); correct it, or bring back the file that training wrote."
        ) from error


def load_weights(network: nn.Module, path: Path, meant_for: str) -> int:
    """Load the weights of a checkpoint into a network.

    Args:
        network: Changed in place.
        path: The checkpoint.
        meant_for: What a message calls the network.

    Returns:
        The number of optimizer steps behind the weights.

    Raises:
        UserError: If the checkpoint cannot be read, or is of another network.
    """
    try:
        if path.name == WEIGHTS_FILE:
            return load_published(network, path)
        contents = load_checkpoint(path)
        around = nn.ModuleDict({"network": network})  # as in the classifier, whose weights a checkpoint holds
        around.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"Expected {path} to fit {meant_for} ({type(network).__name__}), but its weights are of another "
            f"network; bring the checkpoint and the config of one run together."
        ) from error
    step: int = contents["global_step"]
    return step
