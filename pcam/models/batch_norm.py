"""Batch norm's running statistics: read, replaced, estimated anew, and adapted to patches from elsewhere."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Final

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcam.errors import UserError
from pcam.models.enlarged import enlarged_part
from pcam.options import Adaptation
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
    _estimate(network, learning_layers(network), batches)


def adapt_batch_norm(network: nn.Module, batches: Iterable[Patches], adaptation: Adaptation) -> nn.Module:
    """Copy a network, and adapt the first layers of batch norm in the copy to patches, which need no labels.

    Another hospital stains and scans differently, which shifts what the first layers compute. There the running
    statistics of training are replaced by those of the patches, or by a mean of both. The statistics of later layers
    depend on how many patches show tumour, so adapting them takes a lack of tumour for a difference in staining.

    Args:
        network: Left as it is.
        batches: Patches that are from one hospital or slide, mixed at random and as many in each batch, on the
            network's device.
        adaptation: How many layers are adapted (of a network that sees patches enlarged, at each size), and how much.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UserError: If the network has no batch norm, or the number of layers or the weight is none that there can be.

    Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation", for
    the mean of both statistics. They adapt all layers.
    """
    copy = deepcopy(network).eval()
    layers = first_layers(copy, adaptation.layers)
    trained = read_statistics(layers)
    _estimate(copy, layers, batches)
    blend_statistics(layers, trained, read_statistics(layers), adaptation.weight)
    return copy


def first_layers(network: nn.Module, count: int) -> list[_BatchNorm]:
    """Find the first layers of batch norm, frozen or not, in the order in which the network lists its parts.

    Args:
        network: A network.
        count: How many, at least 1; all, if there are fewer. Of a network that sees patches enlarged, at each size.

    Returns:
        The layers.

    Raises:
        UserError: If there are none, or `count` is below 1.
    """
    if count < 1:
        raise UserError(f"Expected to adapt at least 1 layer of batch norm, but found {count}; raise it.")
    enlarged = enlarged_part(network)
    at_larger_sizes = [] if enlarged is None else list(enlarged.features)
    apart = {module for part in at_larger_sizes for module in part.modules()}
    layers = []
    for part in [network, *at_larger_sizes]:
        found = [module for module in part.modules() if isinstance(module, _BatchNorm)]
        layers += [layer for layer in found if part is not network or layer not in apart][:count]
    if not layers:
        raise UserError(
            f"Expected a network with batch norm, whose statistics can be adapted, but {type(network).__name__} has "
            f"none; leave the adaptation out."
        )
    return layers


def blend_statistics(layers: Sequence[_BatchNorm], trained: Statistics, found: Statistics, weight: float) -> None:
    """Give layers a weighted mean of two statistics.

    Args:
        layers: Changed in place.
        trained: The statistics of training.
        found: Those of other patches.
        weight: The share of `found`, 0 to 1.

    Raises:
        UserError: If the weight is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"Expected the weight of an adaptation to be from 0 to 1, but found {weight}; correct it.")
    write_statistics(layers, torch.lerp(trained, found, weight))


@torch.no_grad()
def _estimate(network: nn.Module, layers: Sequence[_BatchNorm], batches: Iterable[Patches]) -> None:
    """Replace the running statistics of some layers by their averages over batches, as `reestimate_batch_norm` does."""
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
