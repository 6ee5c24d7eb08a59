"""The networks: sizes, shapes, batch norm, freezing."""

import copy
import re

import pytest
import torch
from torch import nn

from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm
from pcam.models.normalization import Normalization


def trainable(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def patches(count: int = 2, size: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def trained(network: nn.Module) -> nn.Module:
    """Give batch norm statistics of real activations, and weights far from 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(patches(16))
    return network


def test_parameter_counts_are_the_published_ones() -> None:
    assert trainable(BaselineCNN()) == 166_977
    assert trainable(MobileNetV2(weights=None, dropout=0.5)) == 2_225_153


@pytest.mark.parametrize("network", [BaselineCNN(), BaselineCNN(dense=False), MobileNetV2(weights=None, dropout=0.5)])
def test_a_patch_gives_one_logit_whatever_its_type_and_memory_format(network: nn.Module) -> None:
    network.eval()
    with torch.inference_mode():
        expected = network(patches())
        assert expected.shape == (2,)
        assert torch.equal(network(patches().float()), expected)
        assert torch.equal(network(patches().contiguous(memory_format=torch.channels_last)), expected)


def test_the_cnn_without_dense_layers_is_the_same_function() -> None:
    dense, convolutional = BaselineCNN(), BaselineCNN(dense=False)
    convolutional.features.load_state_dict(dense.features.state_dict())
    hidden, last = dense.head[1], dense.head[4]
    convolutional.head.load_state_dict(
        {
            "0.weight": hidden.weight.view(64, 64, 6, 6),
            "0.bias": hidden.bias,
            "3.weight": last.weight.view(1, 64, 1, 1),
            "3.bias": last.bias,
        }
    )
    with torch.inference_mode():
        torch.testing.assert_close(convolutional(patches()), dense(patches()))


def test_the_cnn_starts_as_keras_does() -> None:
    network = BaselineCNN()
    hidden = network.head[1]
    bound = (6 / (2304 + 64)) ** 0.5
    assert hidden.bias.abs().max() == 0
    assert 0.99 * bound < hidden.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [("unit", 0.0, 1.0), ("imagenet", -0.485 / 0.229, (1 - 0.485) / 0.229)],
)
def test_normalization_maps_black_and_white(name, black: float, white: float) -> None:
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    red = Normalization(name)(extremes)[:, 0].flatten()
    torch.testing.assert_close(red, torch.tensor([black, white]))


@pytest.mark.slow  # takes some seconds
def test_batch_norm_takes_the_configs_momentum_and_epsilon() -> None:
    network = MobileNetV2(weights=None, dropout=0.0, bn_momentum=0.001, bn_eps=0.001)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == 52
    assert {(layer.momentum, layer.eps) for layer in layers} == {(0.001, 0.001)}
    network.train()(patches(4))
    # One batch moved the statistics by a thousandth: the initial variance 1 is still nearly all there.
    assert all((layer.running_var >= 0.999).all() for layer in layers)


@pytest.mark.slow  # takes some seconds
def test_dropout_is_where_it_is_said_to_be() -> None:
    rates = [layer.p for layer in MobileNetV2(weights=None, dropout=0.5).modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.5]
    network = MobileNetV2(weights=None, dropout=0.0, freeze=True).train()  # frozen: no batch statistics either
    with torch.no_grad():
        assert torch.equal(network(patches()), network(patches()))


def test_a_frozen_network_trains_its_last_layer_and_keeps_its_statistics() -> None:
    network = MobileNetV2(weights=None, dropout=0.0, freeze=True)  # as a trainer gets it, without `train()`
    assert trainable(network) == 1281
    before = {name: value.clone() for name, value in network.features.state_dict().items()}
    network(patches(4)).sum().backward()
    torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1).step()
    assert all(torch.equal(value, before[name]) for name, value in network.features.state_dict().items())
    assert network.head[1].bias.item() != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"Expected dropout to be at least 0 and below 1, but found 1\.0"),
        ({"dropout": 0.5, "bn_momentum": 0.0}, r"Expected bn_momentum to be above 0 .* but found 0\.0"),
        ({"dropout": 0.5, "bn_eps": 0.0}, r"Expected bn_eps to be above 0, but found 0\.0"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MobileNetV2(weights=None, **options)


def test_another_epsilon_with_pretrained_weights_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"a third of their running variances are below 0\.001"):
        MobileNetV2(weights="IMAGENET1K_V1", dropout=0.5, bn_eps=0.001)


def test_dropout_of_the_cnn_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"Expected dropout .* but found -0\.1"):
        BaselineCNN(dropout=-0.1)


def enlarging(*sizes: int) -> MobileNetV2:
    torch.manual_seed(0)
    network = MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=sizes)
    trained(network)
    return network


@pytest.mark.slow  # takes some seconds
def test_evaluation_averages_the_logits_at_all_sizes() -> None:
    network = enlarging(128, 112).eval()
    assert network.enlarged is not None
    with torch.no_grad():
        logits = []
        for size, features in ((96, network.features), *zip((128, 112), network.enlarged.features, strict=True)):
            sized = nn.functional.interpolate(network.normalization(patches(4)), size=(size, size), mode="bilinear")
            logits.append(network.head(features(sized).mean(dim=(2, 3))).squeeze(1))
        torch.testing.assert_close(network(patches(4)), sum(logits) / 3)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@pytest.mark.slow  # takes some seconds
def test_sizes_are_of_patches_and_scale_with_a_larger_image() -> None:
    network = enlarging(144).eval()
    assert network.enlarged is not None
    (features,) = network.enlarged(torch.zeros(1, 3, 96, 192))
    assert features.shape == (1, 1280, 5, 9)


def test_training_neither_sees_enlarged_patches_nor_changes_their_statistics() -> None:
    network = enlarging(128)
    assert network.enlarged is not None
    before = read_statistics(learning_layers(network.enlarged))
    plain = copy.deepcopy(network)
    plain.enlarged = None
    assert torch.equal(network.train()(patches(4)), plain.train()(patches(4)))
    assert torch.equal(read_statistics(learning_layers(network.enlarged)), before)


def test_sizes_share_weights_and_nothing_else() -> None:
    network = enlarging(128)
    assert network.enlarged is not None
    assert trainable(network) == 2_225_153
    network.to(torch.float64).float()
    weights = zip(network.features.parameters(), network.enlarged.features[0].parameters(), strict=True)
    assert all(own is enlarged for own, enlarged in weights)
    own = read_statistics(learning_layers(network.features))
    reestimate_batch_norm(network.enlarged, [network.normalization(patches(4))])
    assert torch.equal(read_statistics(learning_layers(network.features)), own)
    assert not torch.equal(read_statistics(learning_layers(network.enlarged)), own)


def test_a_frozen_network_keeps_its_statistics_at_all_sizes() -> None:
    network = MobileNetV2(weights=None, dropout=0.0, freeze=True, enlarged_sizes=[128]).train()
    assert network.enlarged is not None
    assert not any(module.training for part in (network.features, network.enlarged) for module in part.modules())


@pytest.mark.parametrize("sizes", [[96], [64], [128, 128]])
def test_sizes_that_do_not_enlarge_or_repeat_are_refused(sizes: list[int]) -> None:
    with pytest.raises(UserError, match=f"above 96, each once, but found {re.escape(str(sizes))}"):
        MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=sizes)
