"""Batch norm's running statistics: read, replaced, and estimated anew from patches."""

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcam.errors import UserError
from pcam.patches import Patches

REESTIMATION_PATCHES: Final = 10_000
"""Training patches that statistics are re-estimated on to measure a network: the mean over 312 batches of 32 scatters
by an eighteenth of what that of one batch does, at the cost of a minute on two cores."""

Statistics = Float32[Tensor, " values"]
"""The running means and variances of several layers in one vector: means and variances of the first, and so on."""


def learning_layers(network: nn.Module) -> list[_BatchNorm]:
    """Find the layers of batch norm whose statistics follow the patches in training.

    Args:
        network: Left in the mode that it is in.

    Returns:
        The layers, without those that `network.train()` leaves in evaluation mode because they are frozen.

    Raises:
        UserError: If there are none.
    """
    layers = _learning(network)
    if not layers:
        raise UserError(
            f"Expected a network with batch norm that is not frozen, but {type(network).__name__} has none; "
            f"leave out what asks for other statistics of it."
        )
    return layers


def has_learning_layers(network: nn.Module, part: nn.Module) -> bool:
    """Whether a part of a network has batch norm whose statistics follow the patches when the network trains."""
    layers = set(_learning(network))
    return any(module in layers for module in part.modules())


def _learning(network: nn.Module) -> list[_BatchNorm]:
    modes = {module: module.training for module in network.modules()}
    network.train()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    _set_modes(modes)
    return layers


def read_statistics(layers: Sequence[_BatchNorm]) -> Statistics:
    """Copy the running statistics of layers."""
    return torch.cat([buffer for layer in layers for buffer in _buffers(layer)])


@torch.no_grad()
def write_statistics(layers: Sequence[_BatchNorm], statistics: Statistics) -> None:
    """Replace the running statistics of layers.

    Args:
        layers: The same as those that the statistics are from, or of a network that is built alike.
        statistics: As `read_statistics` gives them.
    """
    buffers = [buffer for layer in layers for buffer in _buffers(layer)]
    for buffer, values in zip(buffers, torch.split(statistics, [len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(values)


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[Patches]) -> None:
    """Replace the running mean and variance of batch norm by their averages over batches, each counting alike.

    What a running average holds depends on its momentum and on weights that have changed since; this is what the
    weights of now give. `torch.optim.swa_utils.update_bn` does the same, but also resets layers that are frozen, and
    lets dropout draw random numbers. Here only batch norm sees batches as in training, so the network draws nothing,
    and what the batches draw leaves the random state as it was.

    Args:
        network: Changed in place: the running statistics of `learning_layers`, nothing else.
        batches: Un-augmented training patches on the network's device, at least two a batch.

    Raises:
        UserError: If no layer of the network is a batch norm that learns.

    Source: Wu and Johnson 2021, "Rethinking 'batch' in BatchNorm" (their PreciseBN).
    """
    layers = learning_layers(network)
    modes = {module: module.training for module in network.modules()}
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    network.eval()
    for layer in layers:
        layer.momentum = None  # PyTorch's way to ask for a plain average
        for buffer in _buffers(layer):
            buffer.zero_()
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=buffer.device)
        layer.train()
    with torch.random.fork_rng(devices=[]):  # loaders draw on the CPU
        for patches in batches:
            network(patches)
    for layer, (momentum, num_batches_tracked) in zip(layers, before, strict=True):
        layer.momentum, layer.num_batches_tracked = momentum, num_batches_tracked
    _set_modes(modes)


def _buffers(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
