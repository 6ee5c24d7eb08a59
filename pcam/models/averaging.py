"""One network that has the mean of the weights of several."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from torch import nn

from pcam.errors import UserError
from pcam.models.inference import InferenceNetwork
from pcam.patches import Patches


@torch.no_grad()
def average_weights(networks: Sequence[nn.Module]) -> nn.Module:
    """Average the weights of networks that are built alike and were trained from the same start.

    Trained so, they lie in one basin of the loss, and their mean is mostly better than each. Of networks that were
    started from different random weights the mean says nothing: the same place in two of them has different features.
    Batch norm's running statistics do not fit the mean either; estimate them again (`reestimate_batch_norm`).

    Args:
        networks: At least one; left as they are.

    Returns:
        A new network with the mean of every weight and of every statistic; what is no floating-point number, as a
        count, is that of the first.

    Raises:
        UserError: If the networks do not have the same weights, by name and shape.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time" (their uniform soup).
    """
    states = [network.state_dict() for network in networks]
    shapes = [{name: tuple(weight.shape) for name, weight in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        kinds = sorted({type(network).__name__ for network in networks})
        raise UserError(
            f"Expected networks that are built alike, whose weights have the same names and shapes, but found others "
            f"({', '.join(kinds)}); average runs of one config."
        )
    averaged = deepcopy(networks[0])
    for name, weight in averaged.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
    return averaged


@torch.no_grad()
def match_spread(averaged: nn.Module, networks: Sequence[nn.Module], batches: Iterable[Patches]) -> float | None:
    """Give the logits of averaged weights the standard deviation of the networks' mean logits, by their last layer.

    Features of averaged weights are fainter than those of the networks, so their logits are nearer to 0. That changes
    neither the order of patches nor, but for a bias, the decisions, but all scores would be too near one half.

    Args:
        averaged: The mean of the weights, in evaluation mode, with the statistics of batch norm that it keeps; its last
            layer is changed in place.
        networks: What it is the mean of.
        batches: Patches, as many as estimate a standard deviation; labels are not needed. On the networks' device.

    Returns:
        What the logits were multiplied by; None if the last layer is not linear, or the logits are all alike: then
        nothing is changed.
    """
    kept = list(batches)
    classify_averaged, *classifiers = (InferenceNetwork(network) for network in [averaged, *networks])
    own = torch.cat([classify_averaged(patches) for patches in kept])
    theirs = torch.cat([torch.stack([classify(patches) for classify in classifiers]).mean(dim=0) for patches in kept])
    layers = [module for module in averaged.modules() if isinstance(module, nn.Linear)]
    factor = float(theirs.std() / own.std())
    if not layers or not 0 < factor < float("inf"):
        return None
    before = deepcopy(layers[-1].state_dict())
    for parameter in layers[-1].parameters():
        parameter.mul_(factor)
    # Whether the last layer in the list is the last to compute, only the logits tell.
    expected = factor * own[: len(kept[0])]
    if torch.allclose(InferenceNetwork(averaged, engine=False)(kept[0]), expected, rtol=1e-3, atol=1e-3):
        return factor
    layers[-1].load_state_dict(before)
    return None
