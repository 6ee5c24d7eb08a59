"""Networks of timm: what decides how one is built and fed, and how its weights get into it."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pcam.atomic import expanded
from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.models.presets import IMAGENET, PRESETS, Argument, Pooling
from pcam.models.weights import fit_state, read_state
from pcam.terminal import similar_names

HUB: Final = "hf-hub:"
FOLDER: Final = "local-dir:"

WEIGHTS_FILES: Final = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""The names that weights have in a folder in the Hugging Face form, the ones that are taken first in front."""


@dataclass(frozen=True)
class Facts:
    """Everything that decides a network of timm but its weights.

    Args:
        name: The name of a preset, or timm's name of the architecture.
        architecture: timm's name of the architecture, without a tag.
        image_size: The side in pixels that patches are enlarged to.
        mean: Of red, green and blue, for pixel values from 0 to 1.
        std: The same for the standard deviation.
        pooling: What an embedding is made of; None is what timm has for the architecture.
        arguments: What timm builds the architecture with.
        classifier: The names that its last layers have in a state dict.
    """

    name: str
    architecture: str
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    pooling: Pooling | None
    arguments: Mapping[str, Argument]
    classifier: Sequence[str]


def find_weights(weights: str | None) -> Path | None:
    """Find the file or the folder of weights, downloading it if it is on the hub.

    Args:
        weights: A path, or `hf-hub:` and the name of a repository; None for random weights.

    Raises:
        UserError: If there is nothing, or the hub does not give it.
    """
    if weights is None:
        return None
    if weights.startswith(HUB):
        return _download(weights.removeprefix(HUB))
    path = expanded(weights.removeprefix(FOLDER), "weights")
    if not path.exists():
        raise UserError(
            f"Expected weights as a file, as a folder with config.json, or as {HUB}OWNER/NAME, but there is nothing at "
            f"{path}; correct --model.network.weights."
        )
    return path


def _download(repository: str) -> Path:
    hub = import_extra("huggingface_hub", "timm")
    name, _, revision = repository.partition("@")
    try:
        for file in WEIGHTS_FILES[:2]:  # one of them is enough
            patterns = ["config.json", file]
            folder = Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if (folder / file).exists():
                break
    except Exception as error:  # huggingface_hub raises many kinds: no rights, no such name, no connection
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"Expected to download {name} from the Hugging Face hub, but could not ({type(error).__name__}: {reason}); "
            f"if it is gated, ask its authors and log in with `hf auth login`, or give a local copy with "
            f"--model.network.weights FOLDER."
        ) from error
    return folder


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except FileNotFoundError as error:
        raise UserError(
            f"Expected a folder in the Hugging Face form, with config.json and weights, but {folder} has no "
            f"config.json; give the file of the weights itself, with --model.network.name for its architecture."
        ) from error
    except ValueError as error:
        raise UserError(f"Expected a JSON file in {path}, but it cannot be read ({error}); fetch it anew.") from error
    return config


def find_facts(
    name: str | None,
    source: Path | None,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    pooling: Pooling | None,
    arguments: Mapping[str, Argument] | None,
) -> Facts:
    """Gather what decides a network: what is asked for, else its preset, else the config of its weights, else timm's.

    Args:
        name: The name of a preset or of an architecture; None is the architecture that the config names.
        source: The file or the folder of the weights; None for random ones.
        image_size: As in `Facts`; None is the weights' own. So are the next four.
        mean: As in `Facts`.
        std: As in `Facts`.
        pooling: As in `Facts`.
        arguments: As in `Facts`; they come on top of the weights' own.

    Raises:
        UserError: If there is no such network, or the weights are of another one.
    """
    timm = import_extra("timm", "timm")
    config = _read_config(source) if source is not None and source.is_dir() else {}
    found = config.get("architecture")  # in timm's form; a config of the package transformers has none
    name = name or found
    if name is None:
        raise UserError(
            f"Expected the name of a preset or of a network of timm, but found none, and {source or 'random weights'} "
            f"names none either; give it with --model.network.name."
        )
    preset = PRESETS.get(name)
    architecture = preset.architecture if preset else name.partition(".")[0]
    if not timm.is_model(architecture):
        advice = similar_names(name, [*PRESETS, *timm.list_models()], "timm.list_models() names them", likeness=0.4)
        raise UserError(f"Expected the name of a preset or of a network of timm, but found '{name}'; {advice}.")
    if found is not None and found.partition(".")[0] != architecture:
        raise UserError(
            f"Expected weights of {architecture}, but the config.json of {source} says {found}; correct "
            f"--model.network.name or --model.network.weights."
        )
    try:
        default = timm.models.get_pretrained_cfg(architecture if preset else name)
    except RuntimeError as error:
        raise UserError(
            f"Expected a tag that timm has for {architecture}, but found '{name}' ({error}); leave out what is behind "
            f"the dot."
        ) from error
    usual = {} if default is None else default.to_dict()
    own = usual | (config.get("pretrained_cfg", config) if found else {})
    built: dict[str, Argument] = {**(config.get("model_args") or {}), **(preset.arguments if preset else {})}
    built |= arguments or {}
    for given in ("num_classes", "in_chans", "img_size"):  # what a classifier of patches is built with anyway
        built.pop(given, None)
    side = image_size or (preset.image_size if preset else int(own.get("input_size", (3, 224, 224))[-1]))
    means = preset.mean_and_std if preset else (own.get("mean", IMAGENET[0]), own.get("std", IMAGENET[1]))
    classifier = own.get("classifier") or ()
    # A transformer is built for a size; the config of a hub's folder says so in its arguments.
    if preset or usual.get("fixed_input_size") or "img_size" in (config.get("model_args") or {}):
        built["img_size"] = side
    return Facts(
        name, architecture, side, list(mean or means[0]), list(std or means[1]),
        pooling or (preset.pooling if preset else None), built,
        (classifier,) if isinstance(classifier, str) else tuple(classifier),
    )  # fmt: skip


def build_backbone(facts: Facts) -> nn.Module:
    """Build a network of timm without its last layer, with random weights.

    Args:
        facts: What it is.

    Raises:
        UserError: If timm refuses one of its arguments.
    """
    timm = import_extra("timm", "timm")
    classes = {"SwiGLUPacked": import_extra("timm.layers", "timm").SwiGLUPacked, "SiLU": nn.SiLU}
    arguments = {key: classes.get(value, value) if isinstance(value, str) else value for key, value in
                 facts.arguments.items()}  # fmt: skip
    try:
        backbone: nn.Module = timm.create_model(facts.architecture, num_classes=0, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected arguments that timm builds {facts.architecture} with, but it refuses {dict(facts.arguments)} "
            f"({' '.join(str(error).split())[:200]}); correct --model.network.image_size or "
            f"--model.network.arguments."
        ) from error
    return backbone


def load_backbone(backbone: nn.Module, facts: Facts, source: Path) -> None:
    """Load weights into a network of timm.

    Args:
        backbone: As `build_backbone` made it; changed in place.
        facts: What it is.
        source: A file with a state dict, or a folder with one, in timm's key names, in those that timm converts itself
            (DINOv2's, DINOv3's and OpenCLIP's), or in those of the package transformers (ViT and DINOv2).

    Raises:
        UserError: If there are no weights, or they are of another network.
    """
    file = source
    if source.is_dir():
        files = [source / name for name in WEIGHTS_FILES if (source / name).is_file()]
        if not files:
            raise UserError(
                f"Expected weights in {source} ({', '.join(WEIGHTS_FILES)}), but found none; put them there, or give "
                f"their file with --model.network.weights."
            )
        file = files[0]
    state = {key.removeprefix("module."): value for key, value in read_state(file).items()}
    if any("embeddings.patch_embeddings" in key for key in state):
        state = _from_transformers(state)
    # Each module of timm that knows of other key names, or of positions for another size, has this function.
    convert: Callable[..., Mapping[str, Tensor]] | None = getattr(
        sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None
    )
    try:
        converted = state if convert is None else convert(state, backbone)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected weights of {facts.name}, but timm cannot make them of {file} "
            f"({' '.join(str(error).split())[:200]}); correct --model.network.weights."
        ) from error
    heads = [f"{name}." for name in facts.classifier]
    fit_state(backbone, converted, facts.name, str(file), without=[*heads, "mask_token"])


_TRANSFORMERS_NAMES: Final = (
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
"""What the names in a ViT or a DINOv2 of the package transformers become; the rest is timm's or DINOv2's already."""


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a ViT or a DINOv2 of the package transformers, and join query, key and value."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(("pooler.", "classifier.")):
            renamed[name] = value
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[name.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat(parts)
    return renamed
