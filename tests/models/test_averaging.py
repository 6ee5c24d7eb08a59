"""The mean of the weights of several networks."""

import pytest
import torch

from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.averaging import average_weights


def test_every_weight_is_the_mean_and_the_networks_stay_as_they_were() -> None:
    networks = [BaselineCNN() for _ in range(3)]
    before = [{name: weight.clone() for name, weight in network.state_dict().items()} for network in networks]
    averaged = average_weights(networks).state_dict()
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, sum(state[name] for state in before) / 3, msg=name)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(weight, state[name]) for name, weight in network.state_dict().items())


@pytest.mark.slow  # takes some seconds
def test_sizes_go_on_sharing_weights_and_counts_are_kept() -> None:
    networks = [MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[128]) for _ in range(2)]
    averaged = average_weights(networks)
    assert averaged.enlarged is not None
    assert averaged.enlarged.features[0][0][0].weight is averaged.features[0][0].weight
    expected = (networks[0].features[0][0].weight + networks[1].features[0][0].weight) / 2
    torch.testing.assert_close(averaged.features[0][0].weight, expected)
    counts = [buffer for name, buffer in averaged.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count.dtype == torch.long for count in counts)


def test_networks_of_another_build_are_refused() -> None:
    with pytest.raises(UserError, match=r"built alike.*found others \(BaselineCNN, Linear\)"):
        average_weights([BaselineCNN(), torch.nn.Linear(2, 2)])
