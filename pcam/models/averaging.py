"""One network that has the mean of the weights of several."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from pcam.errors import UserError


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
