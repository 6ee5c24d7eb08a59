"""The network that evaluates, against the one that it is made from."""

import copy

import pytest
import torch
from torch import nn

from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.inference import InferenceNetwork
from tests.models.test_networks import patches, trained

NETWORKS = {
    "MobileNetV2": lambda: MobileNetV2(weights=None, dropout=0.5),
    "MobileNetV2 at two sizes": lambda: MobileNetV2(weights=None, dropout=0.5, enlarged_sizes=[128]),
    "BaselineCNN": BaselineCNN,
    "convolutional BaselineCNN": lambda: BaselineCNN(dense=False, dropout=0.5),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return trained(NETWORKS[request.param]())


def test_the_logits_are_those_of_the_network_in_evaluation(network: nn.Module) -> None:
    network.train()
    fast = InferenceNetwork(network)
    logits = fast(patches(5))
    assert network.training
    expected = network.eval()(patches(5))
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_is_evaluated_in_float32(dtype: torch.dtype, network: nn.Module) -> None:
    expected = InferenceNetwork(network)(patches(3))
    network.to(dtype)
    assert network.eval()(patches(3).float()).dtype == dtype  # as after augmentation
    logits = InferenceNetwork(network)(patches(3))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if dtype == torch.float64 else 0.2)


def test_no_batch_norm_and_no_activation_is_left_to_compute_after_a_convolution() -> None:
    layers = [type(module) for module in InferenceNetwork(MobileNetV2(None, dropout=0.0)).network.features.modules()]
    assert nn.BatchNorm2d not in layers
    assert layers.count(nn.Conv2d) == 52
    assert layers.count(nn.Identity) == 52 + 35  # in the places of batch norm and ReLU6


def test_without_the_cpus_kernel_the_logits_are_the_same(network: nn.Module) -> None:
    fast = InferenceNetwork(network)
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        if hasattr(module, "_kernel"):
            module._kernel = None
    torch.testing.assert_close(fast(patches(3)), slow(patches(3)), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_logits_are_near_and_in_float32(network: nn.Module) -> None:
    logits = InferenceNetwork(network, torch.bfloat16)(patches(8))
    expected = network.eval()(patches(8))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    assert (logits - expected).abs().max() < 0.2 * expected.abs().max()


def test_the_network_stays_as_it_is_and_the_copy_too(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    fast = InferenceNetwork(network)
    logits = fast(patches())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(fast(patches()), logits)
