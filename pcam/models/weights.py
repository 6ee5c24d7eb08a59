"""Pretrained weights, by torchvision's name or from a file."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from pcam.atomic import expanded
from pcam.errors import UserError


def load_weights(part: nn.Module, network: str, weights: str, *, prefix: str = "", without: Sequence[str] = ()) -> None:
    """Load pretrained weights into a network of torchvision, or the part of it that is kept.

    Args:
        part: What gets them; changed in place.
        network: torchvision's name of the network ("mobilenet_v2").
        weights: One of torchvision's names of that network's weights ("IMAGENET1K_V1", "DEFAULT"), or a path to a state
            dict.
        prefix: What the state dict has before the names that `part` has.
        without: Names or beginnings of names, with the prefix, that are not loaded, whether they are there or not.

    Raises:
        UserError: If the weights cannot be downloaded, read, or do not fit.
    """
    known = get_model_weights(network)
    if weights in known.__members__:
        state = _download(network, known[weights])
    else:
        state = _read(expanded(weights, "weights"), list(known.__members__))
    kept = {key: value for key, value in state.items() if key.startswith(prefix) and not key.startswith(tuple(without))}
    found = {key.removeprefix(prefix): value for key, value in kept.items()}
    expected = {key: value for key, value in part.state_dict().items() if not (prefix + key).startswith(tuple(without))}
    # An old state dict has no counter of batches; it plays no part in what the network computes.
    missing = sorted(key for key in expected if key not in found and not key.endswith("num_batches_tracked"))
    misshapen = sorted(key for key, value in found.items() if key in expected and value.shape != expected[key].shape)
    unknown = sorted(key for key in found if key not in expected)
    for complaint, keys in (("misses", missing), ("has in another shape", misshapen), ("has besides", unknown)):
        if keys:
            named = f" with keys '{prefix}*'" if prefix else ""
            raise UserError(
                f"Expected weights of torchvision's {network}{named}, but {weights} {complaint} "
                f"{len(keys)} of them, for instance '{prefix}{keys[0]}'; correct --model.network.weights."
            )
    part.load_state_dict(found, strict=False)


def _download(network: str, weights: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"Expected to download the weights '{weights.name}' of {network} through torchvision, but could not "
            f"({error}); give a local copy with --model.network.weights FILE."
        ) from error
    return state


def _read(path: Path, names: Sequence[str]) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"Expected weights by one of torchvision's names ({', '.join(names)}) or a file, but there is no file "
            f"{path}; correct --model.network.weights."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"Expected a state dict of tensors in {path}, but it cannot be loaded safely ({reason}); "
            f"give another file with --model.network.weights."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"Expected a state dict of tensors in {path}, but found something else; save `model.state_dict()` alone."
        )
    return state
