"""Pretrained weights: by torchvision's name or from a file, and how they are fitted to a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from pcam.atomic import expanded
from pcam.errors import UserError
from pcam.extras import import_extra


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
    fit_state(part, state, f"torchvision's {network}", weights, prefix=prefix, without=without)


def fit_state(
    part: nn.Module,
    state: Mapping[str, Tensor],
    network: str,
    weights: str,
    *,
    prefix: str = "",
    without: Sequence[str] = (),
) -> None:
    """Load a state dict that must have exactly the tensors of a network, or of a part of it.

    Args:
        part: What gets them; changed in place.
        state: The tensors by name.
        network: What a message calls the network.
        weights: Where the state dict is from, for messages.
        prefix: What the state dict has before the names that `part` has; other names are left out.
        without: Names or beginnings of names, with the prefix, that are not loaded, whether they are there or not.

    Raises:
        UserError: If they do not fit.
    """
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
                f"Expected weights of {network}{named}, but {weights} {complaint} {len(keys)} of them, for instance "
                f"'{prefix}{keys[0]}'; correct --model.network.weights."
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
    return read_state(path)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict without running any code in its file.

    Args:
        path: A file of safetensors if its name says so, else one of PyTorch's, with tensors or with a state dict under
            the name state_dict or model.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        UserError: If the file cannot be read, or holds something else.
    """
    is_safetensors = path.suffix == ".safetensors"
    load_file = import_extra("safetensors.torch", "timm").load_file if is_safetensors else None
    try:
        state = load_file(path) if load_file else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and safetensors raise many kinds for damaged files
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"Expected a state dict of tensors in {path}, but it cannot be loaded safely ({reason}); "
            f"give another file with --model.network.weights."
        ) from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"Expected a state dict of tensors in {path}, but found something else; save `model.state_dict()` alone."
        )
    return state
