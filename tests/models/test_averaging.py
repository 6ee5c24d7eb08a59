"""The mean of the weights of several networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.averaging import average_weights, match_spread


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


BATCHES = [torch.randint(0, 256, (8, 3, 96, 96), dtype=torch.uint8) for _ in range(2)]


def spread(logits: Callable[[Tensor], Tensor]) -> float:
    with torch.inference_mode():
        return float(torch.cat([logits(patches) for patches in BATCHES]).std())


def test_logits_have_the_spread_of_the_networks_mean_logits() -> None:
    networks = [BaselineCNN().eval() for _ in range(2)]
    averaged = average_weights(networks)
    before = spread(averaged)
    factor = match_spread(averaged, networks, BATCHES)
    expected = spread(lambda patches: torch.stack([network(patches) for network in networks]).mean(dim=0))
    assert factor == pytest.approx(expected / before, rel=1e-4)
    assert spread(averaged) == pytest.approx(expected, rel=1e-4)


class Backwards(nn.Module):
    """A network whose last part is not the last to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 1, 1)
        self.first = nn.Linear(96, 96)

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(patches / 255)).tanh().mean(dim=(1, 2, 3))
        return logits


class Convolutional(nn.Sequential):
    """A network without a linear layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 1, 96), nn.Flatten(0))

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = super().forward(patches / 255)
        return logits


@pytest.mark.parametrize("kind", [Backwards, Convolutional])
def test_a_network_that_does_not_end_in_a_linear_layer_is_left_as_it_is(kind: type[nn.Module]) -> None:
    networks = [kind().eval() for _ in range(2)]
    averaged = average_weights(networks)
    before = {name: weight.clone() for name, weight in averaged.state_dict().items()}
    assert match_spread(averaged, networks, BATCHES) is None
    assert all(torch.equal(weight, before[name]) for name, weight in averaged.state_dict().items())
