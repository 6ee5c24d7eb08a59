"""Batch norm's running statistics, estimated anew from the patches that a network was trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcam.errors import UserError
from pcam.patches import Patches


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[Patches]) -> dict[str, Tensor]:
    """Replace the running mean and variance of batch norm by their averages over batches, each counting alike.

    What a running average holds depends on its momentum and on weights that have changed since; this is what the
    weights of now give. `torch.optim.swa_utils.update_bn` does the same, but also resets layers that are frozen, and
    lets dropout draw random numbers. Here only batch norm sees batches as in training, so the network draws nothing,
    and what the batches draw leaves the random state as it was.

    Args:
        network: Changed in place: the buffers of its batch norm, nothing else. Layers that `network.train()` leaves
            in evaluation mode are frozen and stay as they are.
        batches: Un-augmented training patches on the network's device, at least two a batch.

    Returns:
        The buffers as they were, by name; `network.load_state_dict(buffers, strict=False)` puts them back.

    Raises:
        UserError: If no layer of the network is a batch norm that learns.

    Source: Wu and Johnson 2021, "Rethinking 'batch' in BatchNorm" (their PreciseBN).
    """
    modes = {module: module.training for module in network.modules()}
    network.train()
    layers = {
        name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm) and module.training
    }
    if not layers:
        raise UserError(
            f"Expected a network with batch norm that is not frozen, but {type(network).__name__} has none; "
            f"leave out --reestimate_bn."
        )
    before = {
        f"{name}.{key}": buffer.clone() for name, layer in layers.items() for key, buffer in layer.named_buffers()
    }
    momenta = {layer: layer.momentum for layer in layers.values()}
    network.eval()
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to ask for a plain average
        layer.train()
    with torch.random.fork_rng(devices=[]):  # loaders draw on the CPU
        for patches in batches:
            network(patches)
    for layer, momentum in momenta.items():
        layer.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    return before
