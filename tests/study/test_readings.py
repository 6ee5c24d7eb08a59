"""Readings: their names, and how long the statistics before training stay in them."""

import pytest
import torch

from pcam.study.readings import PUBLISHED_READING, READING_MOMENTA, reading_names, share_of_start


def test_the_share_of_the_initial_statistics_is_what_batch_norm_keeps() -> None:
    layer = torch.nn.BatchNorm1d(1, momentum=READING_MOMENTA[PUBLISHED_READING]).double()
    layer.running_mean.fill_(1.0)
    for step in range(1, 301):
        layer(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))  # whose mean is 0
        if step in (1, 75, 300):
            assert share_of_start(step) == pytest.approx(layer.running_mean.item())
    assert share_of_start(0) == 1
    assert share_of_start(2250) == pytest.approx(0.105, abs=5e-4)


def test_a_network_that_is_read_in_one_way_is_read_as_trained() -> None:
    assert reading_names({"momentum_0.1": 0, "stain_shifted": 0}) == {
        "momentum_0.1": "as trained",
        "stain_shifted": "stains shifted",
    }
    assert reading_names(dict.fromkeys(["reestimated", "momentum_0.001", "momentum_0.1"])) == {
        "momentum_0.1": "momentum 0.1 (PyTorch's)",
        "momentum_0.001": "momentum 0.001 (Keras's 0.999)",
        "reestimated": "re-estimated",
    }
