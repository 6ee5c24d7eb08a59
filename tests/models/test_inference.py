"""The network that evaluates, against the one that it is made from."""

import copy

import pytest
import torch
from torch import nn

from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.inference import EvaluationSettings, InferenceNetwork, bfloat16_warning
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


@pytest.mark.parametrize("engine", [True, False])
def test_the_logits_are_those_of_the_network_in_evaluation(engine: bool, network: nn.Module) -> None:
    network.train()
    logits = InferenceNetwork(network, engine=engine)(patches(5))
    assert network.training
    expected = network.eval()(patches(5))
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_is_evaluated_in_float32(dtype: torch.dtype, network: nn.Module) -> None:
    expected = InferenceNetwork(network)(patches(3))
    network.to(dtype)
    assert network.eval()(patches(3).float()).dtype == dtype  # as after augmentation
    logits = InferenceNetwork(network)(patches(3))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if dtype == torch.float64 else 0.2)


def test_in_bfloat16_the_logits_are_near_and_in_float32(network: nn.Module) -> None:
    logits = InferenceNetwork(network, "bf16-mixed")(patches(8))
    expected = network.eval()(patches(8))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    assert (logits - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.slow  # takes some seconds
def test_the_network_stays_as_it_is_and_the_copy_too(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    fast = InferenceNetwork(network)
    logits = fast(patches())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(fast(patches()), logits)


def test_a_processor_without_bfloat16_is_said_once_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcam.models.inference.has_fast_bfloat16", lambda: False)
    warning = bfloat16_warning(torch.device("cpu"))
    assert warning is not None
    assert "Expected a processor with instructions for bfloat16" in warning
    assert bfloat16_warning(torch.device("cuda")) is None
    monkeypatch.setattr("pcam.models.inference.has_fast_bfloat16", lambda: True)
    assert bfloat16_warning(torch.device("cpu")) is None


def test_settings_say_what_they_are() -> None:
    assert EvaluationSettings().suffix == ""
    assert EvaluationSettings(tta=True, precision="bf16-mixed", reestimate_bn=True).suffix == "_bn_tta_bf16"
    assert EvaluationSettings(enlarged_sizes=[]).suffix == "_at_96"
    assert EvaluationSettings(tta=True, enlarged_sizes=[128]).suffix == "_tta_at_96_128"
    assert EvaluationSettings(tta=True, enlarged_sizes=[]).words == ["tta", "at 96 pixels"]


@pytest.mark.slow  # takes some seconds
def test_fewer_sizes_are_those_of_a_network_that_has_no_others() -> None:
    network = trained(MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[112, 128])).eval()
    own = trained(MobileNetV2(weights=None, dropout=0.0))
    own.load_state_dict({name: value for name, value in network.state_dict().items() if "enlarged" not in name})
    batch = patches(3)
    with torch.inference_mode():
        alone = EvaluationSettings(enlarged_sizes=[]).network(network)(batch)
        torch.testing.assert_close(alone, own.eval()(batch), rtol=1e-4, atol=1e-5)
        everything = network.eval()(batch)
        one = EvaluationSettings(enlarged_sizes=[112]).network(network)(batch)
        other = EvaluationSettings(enlarged_sizes=[128]).network(network)(batch)
    torch.testing.assert_close((2 * one + 2 * other - alone) / 3, everything, rtol=1e-4, atol=1e-4)
    assert EvaluationSettings(enlarged_sizes=[128, 112]).network(network) is network


def test_a_size_that_the_network_was_not_trained_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch-norm statistics for \(\[128\]\), but found \[160\]"):
        EvaluationSettings(enlarged_sizes=[160]).network(MobileNetV2(None, dropout=0.0, enlarged_sizes=[128]))
    with pytest.raises(UserError, match=r"batch-norm statistics for \(\[\]\), but found \[128\]"):
        EvaluationSettings(enlarged_sizes=[128]).network(BaselineCNN())
