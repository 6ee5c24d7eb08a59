"""The file of a checkpoint, read without running any code in it."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcam.errors import UserError


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without running any code in it.

    Args:
        path: A file that Lightning wrote.

    Returns:
        Its contents, on the CPU.

    Raises:
        UserError: If it is damaged, no checkpoint, or holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch 2.15 does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and pickle raise many kinds for damaged files
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"Expected a checkpoint of tensors and plain values in {path}, but it cannot be loaded safely ({reason}); "
            f"it may be truncated or damaged."
        ) from error
    weights, step = (checkpoint.get(key) if isinstance(checkpoint, dict) else None for key in _EVERY_CHECKPOINT)
    sound = isinstance(weights, Mapping) and all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    )
    if not sound or not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(
            f"Expected a checkpoint that training wrote, with state_dict and global_step, but {path} holds something "
            f"else; bring back the file that training wrote."
        )
    assert isinstance(checkpoint, dict)
    return checkpoint


_EVERY_CHECKPOINT = ("state_dict", "global_step")
"""The parts of a checkpoint that every use of it needs."""
