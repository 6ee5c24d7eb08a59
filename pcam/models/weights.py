"""Pretrained weights, by torchvision's name or from a file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from pcam.errors import UserError


def load_backbone(features: nn.Sequential, weights: str) -> None:
    """Load pretrained weights into the convolutional part of a MobileNetV2.

    Args:
        features: The `features` of torchvision's MobileNetV2; changed in place.
        weights: One of torchvision's names ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"), or a path to a state dict
            with keys `features.*`, with or without `classifier.*`.

    Raises:
        UserError: If the weights cannot be downloaded, read, or do not fit.
    """
    state = _download(weights) if weights in MobileNet_V2_Weights.__members__ else _read(Path(weights).expanduser())
    prefix = "features."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    expected = features.state_dict()
    # An old state dict has no counter of batches; it plays no part in what the network computes.
    missing = sorted(key for key in expected if key not in found and not key.endswith("num_batches_tracked"))
    misshapen = sorted(key for key, value in found.items() if key in expected and value.shape != expected[key].shape)
    unknown = sorted(key for key in found if key not in expected)
    for complaint, keys in (("misses", missing), ("has in another shape", misshapen), ("has besides", unknown)):
        if keys:
            raise UserError(
                f"Expected weights of torchvision's MobileNetV2 with keys 'features.*', but {weights} {complaint} "
                f"{len(keys)} of them, for instance '{prefix}{keys[0]}'; correct --model.network.weights."
            )
    features.load_state_dict(found, strict=False)


def _download(name: str) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = MobileNet_V2_Weights[name].get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"Expected to download the weights '{name}' of MobileNetV2 through torchvision, but could not "
            f"({error}); give a local copy with --model.network.weights FILE."
        ) from error
    return state


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        names = ", ".join(MobileNet_V2_Weights.__members__)
        raise UserError(
            f"Expected weights by one of torchvision's names ({names}) or a file, but there is no file {path}; "
            f"correct --model.network.weights."
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
