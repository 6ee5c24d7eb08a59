"""The file of weights of a published run: safetensors, in half precision where that changes no score that matters."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_model
from torch import nn

from pcam.errors import UserError

LARGE: Final = 10_000
"""The number of weights from which a tensor is stored in half precision. Of MobileNetV2 these are nearly all weights;
with the small ones, which every feature goes through, in half precision too, scores move ten times as much."""


def save_published(network: nn.Module, path: Path, step: int, *, half: bool) -> nn.Module:
    """Write weights and buffers; tensors that several parts of the network share are stored once.

    Args:
        network: The network, on the CPU.
        path: The file.
        step: The number of optimizer steps behind the weights.
        half: Whether to store tensors of at least `LARGE` weights, which are most of the file, as float16.

    Returns:
        A copy of the network with the weights as they were stored, in float32.
    """
    stored = deepcopy(network)
    for parameter in stored.parameters():  # those that are shared stay so; the format has no other order of axes
        kind = torch.float16 if half and parameter.numel() >= LARGE else torch.float32
        parameter.data = parameter.data.to(kind).contiguous()
    save_model(stored, str(path), {"step": str(step)})
    contents = path.read_bytes()
    path.unlink()  # safetensors 0.8 makes a file that nobody but its owner can read, whatever the umask says
    path.write_bytes(contents)
    copy = deepcopy(network)
    load_published(copy, path)
    return copy


def load_published(network: nn.Module, path: Path) -> int:
    """Load what `save_published` wrote, or a file of safetensors with the same names of tensors.

    Args:
        network: Changed in place; its weights stay float32.
        path: The file.

    Returns:
        The number of optimizer steps behind the weights; 0 if the file does not say.

    Raises:
        UserError: If the file is damaged or of another format.
        RuntimeError: If its weights are of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Expected weights as safetensors in {path}, but they cannot be read ({' '.join(str(error).split())}); "
            f"the file may be truncated or damaged: download or export it again."
        ) from error
    # save_model names each tensor that it left out because another shares its memory, and that other one.
    weights |= {name: weights[kept] for name, kept in metadata.items() if kept in weights}
    network.load_state_dict(weights)
    step = metadata.get("step", "0")
    return int(step) if step.isdecimal() else 0
