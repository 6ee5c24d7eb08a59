"""torchvision's other classifiers, through the door of the configs."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, get_model

from pcam.commands.train import main as train
from pcam.errors import UserError
from pcam.models import TorchvisionNetwork
from pcam.models.inference import InferenceNetwork
from tests.conftest import REPOSITORY
from tests.models.test_networks import patches

# One of each way to hold the last layer: an attribute, a place in a Sequential behind a dropout, behind none, a
# convolution, and a network with outputs beside the last one.
NAMES = ["resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "googlenet"]


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", NAMES)
def test_any_classifier_gives_one_logit_a_patch(name: str) -> None:
    network = TorchvisionNetwork(name, weights=None, dropout=0.3)
    assert network.training
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)][-1] == 0.3
    logits = network(patches(3))
    assert logits.shape == (3,)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(InferenceNetwork(network)(patches(3)), network(patches(3)), rtol=1e-3, atol=1e-4)


def test_a_logit_may_be_negative_where_the_classes_were_rectified() -> None:
    network = TorchvisionNetwork("squeezenet1_1", weights=None).eval()
    nn.init.constant_(network.network.classifier[1].bias, -5.0)
    with torch.no_grad():
        assert (network(patches(2)) < 0).all()


def test_the_networks_own_dropout_before_the_last_layer_is_replaced() -> None:
    dropouts = [
        layer.p for layer in TorchvisionNetwork("mobilenet_v3_small", None).modules() if type(layer) is nn.Dropout
    ]
    assert dropouts == [0.0]


@pytest.mark.parametrize("with_last_layer", [True, False])
def test_weights_are_loaded_but_for_the_last_layer(with_last_layer: bool, tmp_path: Path) -> None:
    state = get_model("resnet18").state_dict()
    kept = {name: value for name, value in state.items() if with_last_layer or not name.startswith("fc.")}
    torch.save(kept, tmp_path / "weights.pth")
    loaded = TorchvisionNetwork("resnet18", str(tmp_path / "weights.pth")).network.state_dict()
    assert {name for name in loaded if name not in state} == {"fc.1.weight", "fc.1.bias"}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items() if name in state)


def test_weights_by_name_are_those_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    state = get_model("resnet18").state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    network = TorchvisionNetwork("resnet18", "IMAGENET1K_V1")
    assert torch.equal(network.network.conv1.weight, state["conv1.weight"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(get_model("resnet34").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"Expected weights of torchvision's resnet18, but .* has besides"):
        TorchvisionNetwork("resnet18", str(tmp_path / "weights.pth"))


def test_a_name_that_torchvision_does_not_have_is_refused_with_those_near_it() -> None:
    with pytest.raises(UserError, match=r"found 'resnet_18'; near it are resnet18"):
        TorchvisionNetwork("resnet_18", None)


def test_a_network_that_takes_no_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes patches of 96x96, but VisionTransformer does not"):
        TorchvisionNetwork("vit_b_32", None)


def test_one_line_trains_another_network(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    train([
        "--config", str(REPOSITORY / "configs" / "random_dropout.yaml"), "--data.root", str(patch_root),
        "--data.cache_dir", str(cache_dir), "--runs_dir", str(tmp_path), "--trainer.fast_dev_run", "1",
        "--model.network", "pcam.models.TorchvisionNetwork", "--model.network.name", "resnet18",
        "--model.network.weights", "null", "--trainer.accelerator", "cpu",
    ])  # fmt: skip
