"""From the files of a run to its network and its data."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from pcam.data import PCamDataModule
from pcam.errors import ConfigError, UserError
from pcam.models.published_weights import load_published
from pcam.published import WEIGHTS_FILE
from pcam.run_folder import RunFolder
from pcam.training.checkpoints import load_checkpoint
from pcam.yaml_files import check_yaml


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


def build(config: Mapping[str, Any], path: Path) -> tuple[nn.Module, PCamDataModule]:
    """Build the network and the data that a config names, the network with random weights.

    Args:
        config: All options of a run.
        path: Where they are from, for messages.

    Returns:
        The network and the data.

    Raises:
        ConfigError: If the config names what there is not, or with options that it does not take.
    """
    parser = _ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network", required=True)
    parser.add_class_arguments(PCamDataModule, "data")
    config = deepcopy(dict(config))  # the parser changes what it is given
    data_options = config["data"] | {"seed": config.get("seed_everything", 1)}
    try:
        given = dict(config["model"].get("network") or {})
        # The checkpoint holds all weights: nothing is downloaded again.
        options = dict(given.get("init_args") or {})
        given["init_args"] = options | ({"weights": None} if "weights" in options else {})
        parsed = parser.parse_object({"network": given, "data": data_options})
        with torch.random.fork_rng(devices=[]):  # building a network draws its first weights
            built = parser.instantiate(parsed)
    except (ArgumentError, ConfigError, ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected the config of a run in {path}, but found an option that cannot be used "
            f"({' '.join(str(error).split())}); correct it, or bring back the file that training wrote."
        ) from error
    return built.network, built.data


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
