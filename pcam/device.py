"""Where networks compute."""

import torch


def find_device(name: str | torch.device = "auto") -> torch.device:
    """Find where to compute.

    Args:
        name: "auto" (an accelerator if PyTorch finds one, else the CPU), or PyTorch's name of a device.
    """
    if name != "auto":
        return torch.device(name)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found
