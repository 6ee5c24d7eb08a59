"""Any network of timm: what it is built of, which weights it takes, what of it learns, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

import pcam
from pcam.errors import UserError
from pcam.evaluation.explain import explain
from pcam.models import TimmNetwork
from pcam.models.inference import InferenceNetwork
from pcam.models.presets import PRESETS
from pcam.models.timm_weights import build_backbone, find_facts
from tests.models.test_networks import patches

SMALL = ("phikon", "hibou_b", "vit_small_patch16_dinov3")


def hub_folder(folder: Path, name: str, **pretrained: Any) -> nn.Module:
    """Write a folder in the Hugging Face form with random weights; return timm's network that they are of."""
    network = timm.create_model(name)
    for _ in range(20):  # statistics of batch norm, with which features differ from patch to patch
        network.train()(torch.rand(8, 3, 160, 160))
    arguments = {"in_chans": 3, "num_classes": 1000}
    timm.models.save_for_hf(network, folder, {"model_args": arguments}, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= pretrained
    (folder / "config.json").write_text(json.dumps(config))
    return network.eval()


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_a_preset_has_the_parameters_and_the_embedding_that_it_says(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):  # shapes without memory
        backbone = build_backbone(find_facts(name, None, None, None, None, None, None))
        network = TimmNetwork(name, None)
    assert sum(weight.numel() for weight in backbone.parameters()) / 1e6 == pytest.approx(preset.parameters, abs=0.06)
    assert network.head[-1].in_features == preset.length
    assert network.pooling == preset.pooling
    assert network.image_size == preset.image_size


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet"])
def test_it_gives_what_timm_gives_for_normalised_and_enlarged_patches(name: str, tmp_path: Path) -> None:
    own = hub_folder(tmp_path / "model", name, mean=[0.7, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    network = TimmNetwork(None, str(tmp_path / "model")).eval()
    mean, std = torch.tensor([0.7, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    inputs = nn.functional.interpolate((patches(3) / 255 - mean) / std, (160, 160), mode="bilinear")
    with torch.no_grad():
        expected = own.forward_head(own.forward_features(inputs), pre_logits=True)
        torch.testing.assert_close(network.embed(patches(3)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(patches(3)), network.head[1](expected)[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(InferenceNetwork(network)(patches(3)), network(patches(3)), rtol=1e-3, atol=1e-5)


@pytest.mark.slow  # takes some seconds
def test_weights_come_from_files_with_and_without_a_head_and_from_a_folder(tmp_path: Path) -> None:
    state = hub_folder(tmp_path / "model", "test_vit").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "whole.pth")
    save_file({key: value for key, value in state.items() if "head" not in key}, tmp_path / "headless.safetensors")
    for weights in ("whole.pth", "headless.safetensors", "model"):
        loaded = TimmNetwork("test_vit", str(tmp_path / weights)).features.backbone.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    assert TimmNetwork("test_vit", f"local-dir:{tmp_path / 'model'}").image_size == 160


@pytest.mark.slow  # takes some seconds
def test_a_completed_network_is_built_again_without_its_weights(tmp_path: Path) -> None:
    hub_folder(tmp_path / "model", "test_vit", mean=[0.7, 0.5, 0.6])
    network = TimmNetwork(None, str(tmp_path / "model"), image_size=96, pooling="cls_and_mean").eval()
    asked = {"name": None, "weights": str(tmp_path / "model"), "image_size": 96, "pooling": "cls_and_mean"}
    options = TimmNetwork.complete(asked)
    again = TimmNetwork(**{**options, "weights": None}).eval()
    again.load_state_dict(network.state_dict())
    assert options["arguments"]["img_size"] == 96
    with torch.no_grad():
        assert torch.equal(again(patches(2)), network(patches(2)))


@pytest.mark.slow  # takes some seconds
def test_positions_are_resampled_for_another_size(tmp_path: Path) -> None:
    hub_folder(tmp_path / "model", "test_vit")
    network = TimmNetwork(None, str(tmp_path / "model"), image_size=96)
    assert network.features.backbone.pos_embed.shape == (1, 37, 64)
    assert network(patches(2)).shape == (2,)


@pytest.mark.parametrize(("arguments", "momentum"), [(None, 0.1), ({"bn_momentum": 0.03}, 0.03)])
def test_every_batch_norm_of_an_efficientnet_has_the_momentum_that_is_asked_for(
    arguments: dict[str, Any] | None, momentum: float
) -> None:
    with torch.device("meta"):  # shapes without memory
        network = TimmNetwork("tf_efficientnet_lite0", None, arguments=arguments)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 49
    assert {layer.momentum for layer in layers} == {momentum}


def test_register_tokens_are_never_averaged_in() -> None:
    network = TimmNetwork("test_vit", None, pooling="cls_and_mean", arguments={"reg_tokens": 4}).eval()
    inputs = nn.functional.interpolate(network.normalization(patches(2)), (160, 160), mode="bilinear")
    with torch.no_grad():
        tokens = network.features(inputs)
        assert tokens.shape == (2, 1 + 4 + 100, 64)
        expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)
        torch.testing.assert_close(network.embed(patches(2)), expected)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
TIMM_SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swiglu", "registers"])
def test_weights_of_the_package_transformers_give_the_same_class_token(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = dict(TIMM_SHAPE)
    name = "vit_tiny_patch16_224"
    if kind == "vit":
        model: Any = ViTModel(ViTConfig(**SHAPE, intermediate_size=128), add_pooling_layer=False)
    elif kind == "registers":
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=4))
        arguments |= {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
    else:
        model = Dinov2Model(Dinov2Config(**SHAPE, use_swiglu_ffn=kind == "swiglu"))
        arguments |= {"init_values": 1e-5}
    if kind == "swiglu":
        arguments |= {"mlp_ratio": 5.5, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}  # 2 * 88 hidden values
    for weight in model.parameters():
        nn.init.normal_(weight, 0, 0.2)
    model.save_pretrained(tmp_path)  # under the names of published files
    network = TimmNetwork(
        name, str(tmp_path), image_size=32, mean=[0.0] * 3, std=[1.0] * 3, pooling="cls", arguments=arguments
    ).eval()
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(pixel_values=inputs).last_hidden_state[:, 0]
        torch.testing.assert_close(network.embed(inputs * 255), expected, rtol=1e-3, atol=1e-4)


def test_an_activation_within_batch_norm_is_not_lost_in_evaluation() -> None:
    torch.manual_seed(0)
    arguments = {"growth_rate": 4, "block_config": [1, 1, 1, 1]}
    network = TimmNetwork("densenet121", None, image_size=64, arguments=arguments)
    nn.init.normal_(network.head[1].weight, 0, 10)
    network(patches(8))  # statistics of batch norm
    network.eval()
    with torch.no_grad():
        expected = network(patches(3))
        assert expected.abs().min() > 0.1
        torch.testing.assert_close(InferenceNetwork(network)(patches(3)), expected, rtol=1e-3, atol=1e-3)


def test_features_are_explained_where_they_are_convolutional() -> None:
    convolutional = TimmNetwork("test_resnet", None).eval()
    attributions, _ = explain(convolutional, patches(2))
    assert attributions.shape == (2, 5, 5)
    with pytest.raises(UserError, match=r"but found a result of shape \(1, 101, 64\)"):
        explain(TimmNetwork("test_vit", None).eval(), patches(2))


@pytest.mark.parametrize(
    ("trained", "learning"),
    [
        ("all", 306_305),
        ("head", 65),
        # 6 blocks: two norms of 2 x 64, biases of qkv (192), proj (64), fc1 (192) and fc2 (64); patch (64), norm (128)
        ("norms_and_biases", 65 + 6 * (256 + 192 + 64 + 192 + 64) + 64 + 128),
        # rank 4: qkv (64 + 192), proj (64 + 64), fc1 (64 + 192), fc2 (192 + 64)
        ("lora", 65 + 6 * 4 * (256 + 128 + 256 + 256)),
    ],
)
def test_only_what_is_asked_for_learns(trained: Any, learning: int) -> None:
    torch.manual_seed(0)
    network = TimmNetwork("test_vit", None, trained=trained, lora_rank=4)
    assert sum(weight.numel() for weight in network.parameters() if weight.requires_grad) == learning
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's first step leaves one of its matrices as it is
        network(patches(4)).square().sum().backward()
        optimizer.step()
    changed = {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}
    assert changed <= {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert any(name.startswith("features.") for name in changed) == (trained != "head")
    assert network.features.training == (trained != "head")
    if trained == "lora":
        assert all("lora_" in name or name.startswith("head.") for name in changed)


@pytest.mark.parametrize("one_cycle", [False, True])
def test_layers_learn_at_rates_of_their_own(one_cycle: bool) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)

    network = TimmNetwork("test_vit", None, layer_decay=0.5)
    classifier = pcam.PatchClassifier(
        network, lambda parameters: torch.optim.AdamW(parameters, lr=0.1), schedule if one_cycle else None
    )
    optimizer, scheduler = classifier.make_optimizer()
    for _ in range(3 if one_cycle else 0):  # at the top of the cycle
        optimizer.step()
        scheduler.step()
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    scale = (scheduler.get_last_lr()[0] / optimizer.param_groups[0]["rate_scale"]) if one_cycle else 0.1
    backbone = network.features.backbone
    assert rates[network.head[1].weight] == pytest.approx(scale)
    assert rates[backbone.blocks[5].mlp.fc1.weight] == pytest.approx(scale * 0.5)
    assert rates[backbone.blocks[0].mlp.fc1.weight] == pytest.approx(scale * 0.5**6)
    assert rates[backbone.pos_embed] == pytest.approx(scale * 0.5**7)
    assert len(rates) == len(list(network.parameters()))


def test_swins_features_have_their_channels_first() -> None:
    network = TimmNetwork(
        "swin_tiny_patch4_window7_224", None, image_size=64,
        arguments={"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    ).eval()  # fmt: skip
    with torch.no_grad():
        inputs = nn.functional.interpolate(network.normalization(patches(2)), (64, 64), mode="bilinear")
        assert network.features(inputs).shape == (2, 24, 8, 8)
        torch.testing.assert_close(network.embed(patches(2)), network.features(inputs).mean(dim=(2, 3)))


def test_what_there_is_not_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            TimmNetwork(*args, **options)

    hub_folder(tmp_path / "model", "test_vit")
    weights = str(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"architecture": "test_vit"}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("[]")
    torch.save({"pos_embed": torch.zeros(2), "mask_token": 0}, tmp_path / "odd.pth")
    refused("found 'vit_smal_patch16_224'; similar ones are vit_small_patch16_224", "vit_smal_patch16_224", None)
    refused("but found 'test_vit.of_mine'", "test_vit.of_mine", None)
    refused("but found none, and random weights names none either", None, None)
    refused("there is nothing at .*nowhere", "test_vit", str(tmp_path / "nowhere"))
    refused(r"empty has no config\.json; give the file", "test_vit", str(tmp_path / "empty"))
    refused(r"bare \(model\.safetensors, .*\), but found none", None, str(tmp_path / "bare"))
    refused("it is no mapping", None, str(tmp_path / "damaged"))
    refused(r"weights of test_resnet, but the config\.json of .* says test_vit", "test_resnet", weights)
    refused("weights of test_vit2, but .* (misses|has in another shape)", "test_vit2", f"{weights}/model.safetensors")
    refused("but found something else", "test_vit", str(tmp_path / "odd.pth"))
    refused("at 100 pixels it fails .*choose another with --model.network.image_size", "test_vit", None, image_size=100)
    refused("image_size to be at least 32", "test_vit", None, image_size=8)
    refused("timm builds test_vit with, but it refuses .*nothing", "test_vit", None, arguments={"nothing": 1})
    refused("a class token for pooling 'cls', but EfficientNet has none", "test_efficientnet", None, pooling="cls")
    refused("whose tokens timm does not pool", "test_vit", None, arguments={"global_pool": ""})
    refused("lora_layers to be ends of the names", "test_vit", None, trained="lora", lora_layers=["nothing"])
    refused("lora_rank to be at least 1", "test_vit", None, lora_rank=0)
    refused("layer_decay to be above 0", "test_vit", None, layer_decay=0.0)
    refused("std to be three numbers, above 0", "test_vit", None, std=[1.0, 1.0, 0.0])
    refused("mean to be three numbers, but", "test_vit", None, mean=[1.0])


def test_weights_that_timm_cannot_convert_are_refused(tmp_path: Path) -> None:
    torch.save({"mask_token": torch.zeros(1), "pos_embed": torch.zeros(1), "register_tokens": torch.zeros(1)},
               tmp_path / "odd.pth")  # fmt: skip
    with pytest.raises(UserError, match=r"Expected weights of test_vit, but timm cannot make them of .*odd\.pth"):
        TimmNetwork("test_vit", str(tmp_path / "odd.pth"))


def test_a_gated_model_without_rights_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"download MahmoodLab/UNI from .*GatedRepoError.*if it is gated, ask its"):
        TimmNetwork("uni", "hf-hub:MahmoodLab/UNI")


@pytest.mark.slow  # takes some seconds
def test_a_model_of_the_hub_is_taken_from_the_folder_that_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_folder(tmp_path / "model", "test_resnet")
    asked: list[tuple[Any, ...]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, *allow_patterns))
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert type(TimmNetwork(None, "hf-hub:mine/resnet@v2").features.backbone).__name__ == "ResNet"
    assert asked == [("mine/resnet", "v2", "config.json", "model.safetensors")]
