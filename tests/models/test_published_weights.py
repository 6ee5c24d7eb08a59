"""The file of weights of a published run."""

from pathlib import Path

import pytest
import torch

from pcam.models import MobileNetV2
from pcam.models.published_weights import load_published, save_published


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("half", [True, False])
def test_weights_come_back_and_are_stored_once_for_all_sizes(half: bool, tmp_path: Path) -> None:
    network = MobileNetV2(weights=None, dropout=0.2, enlarged_sizes=[128]).to(memory_format=torch.channels_last).eval()
    stored = save_published(network, tmp_path / "model.safetensors", 7, half=half)
    other = MobileNetV2(weights=None, dropout=0.2, enlarged_sizes=[128]).eval()
    assert load_published(other, tmp_path / "model.safetensors") == 7
    patches = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(other(patches), stored(patches))
        assert torch.equal(stored(patches), network(patches)) != half
    parameters = sum(parameter.numel() for parameter in network.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < parameters * (2.2 if half else 4) + buffers + 1e5
