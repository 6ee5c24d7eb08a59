"""Foundation models of pathology, and DINOv3: how timm builds each, and how its authors feed it and read it.

None of their weights come with this package, and those that are gated need their authors' permission. What is tested of
each preset is that timm builds it, the number of its parameters, the length of its embeddings, and that a state dict of
the same architecture loads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Pooling = Literal["cls", "mean", "cls_and_mean"]
"""What an embedding is made of: the class token, the mean over the patch tokens, or both one after the other."""

Argument = int | float | bool | str | list[int]
"""A value of an argument that timm builds a network with."""

Triple = tuple[float, float, float]

IMAGENET: Final[tuple[Triple, Triple]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Final[tuple[Triple, Triple]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HIBOU: Final[tuple[Triple, Triple]] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
OPTIMUS: Final[tuple[Triple, Triple]] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
CLIP: Final[tuple[Triple, Triple]] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Preset:
    """A model as its authors describe it.

    Args:
        architecture: timm's name of the architecture.
        hub: Where its weights are on the Hugging Face hub.
        licence: The licence of the weights.
        gated: Whether they are given on request only.
        parameters: Millions of parameters that timm's network has, without a head.
        length: The number of values of an embedding.
        pooling: What the authors make an embedding of.
        mean_and_std: Of red, green and blue, for pixel values from 0 to 1.
        image_size: The side of the input in pixels.
        arguments: What timm builds the architecture with, beside its own defaults.
    """

    architecture: str
    hub: str
    licence: str
    gated: bool
    parameters: float
    length: int
    pooling: Pooling = "cls"
    mean_and_std: tuple[Triple, Triple] = IMAGENET
    image_size: int = 224
    arguments: Mapping[str, Argument] = field(default_factory=dict)


_LAYER_SCALE: Final[Mapping[str, Argument]] = {"init_values": 1e-5}
_SWIGLU: Final[Mapping[str, Argument]] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_UNI2: Final[Mapping[str, Argument]] = {
    "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 5.33334, "no_embed_class": True,
    "reg_tokens": 8, **_LAYER_SCALE, **_SWIGLU,
}  # fmt: skip
_VIRCHOW: Final[Mapping[str, Argument]] = {"mlp_ratio": 5.3375, "global_pool": "", **_LAYER_SCALE, **_SWIGLU}
_GIGAPATH: Final[Mapping[str, Argument]] = {"patch_size": 16, "mlp_ratio": 5.33334, "global_pool": "token"}

_BY_NC_ND = "CC-BY-NC-ND-4.0"
_OWKIN = "Owkin's, non-commercial"
_META = "DINOv3's"

PRESETS: Final[Mapping[str, Preset]] = {
    "uni": Preset("vit_large_patch16_224", "MahmoodLab/UNI", _BY_NC_ND, True, 303.4, 1024, arguments=_LAYER_SCALE),
    "uni2_h": Preset("vit_giant_patch14_224", "MahmoodLab/UNI2-h", _BY_NC_ND, True, 681.4, 1536, arguments=_UNI2),
    "virchow": Preset(
        "vit_huge_patch14_224", "paige-ai/Virchow", "Apache-2.0", True, 631.2, 2560, "cls_and_mean", arguments=_VIRCHOW
    ),
    "virchow2": Preset(
        "vit_huge_patch14_224", "paige-ai/Virchow2", _BY_NC_ND, True, 631.2, 2560, "cls_and_mean",
        arguments={"reg_tokens": 4, **_VIRCHOW},
    ),
    "h_optimus_0": Preset(
        "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-0", "Apache-2.0", True, 1134.8, 1536, "cls", OPTIMUS
    ),
    "h_optimus_1": Preset(
        "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-1", _BY_NC_ND, True, 1134.8, 1536, "cls", OPTIMUS
    ),
    "prov_gigapath": Preset(
        "vit_giant_patch14_dinov2", "prov-gigapath/prov-gigapath", "Apache-2.0", True, 1135.0, 1536, arguments=_GIGAPATH
    ),
    "phikon": Preset("vit_base_patch16_224", "owkin/phikon", _OWKIN, False, 85.8, 768),
    "phikon_v2": Preset("vit_large_patch16_224", "owkin/phikon-v2", _OWKIN, False, 303.4, 1024, arguments=_LAYER_SCALE),
    "hibou_b": Preset("vit_base_patch14_reg4_dinov2", "histai/hibou-b", "Apache-2.0", False, 85.7, 768, "cls", HIBOU),
    "hibou_l": Preset("vit_large_patch14_reg4_dinov2", "histai/hibou-L", "Apache-2.0", True, 303.2, 1024, "cls", HIBOU),
    "midnight_12k": Preset(
        "vit_giant_patch14_dinov2", "kaiko-ai/midnight", "MIT", False, 1134.8, 3072, "cls_and_mean", HALF
    ),
    # What timm can hold of CONCH is the trunk of its image tower; the authors' embedding is what attention pools of it.
    "conch_trunk": Preset("vit_base_patch16_224", "MahmoodLab/CONCH", _BY_NC_ND, True, 86.3, 768, "cls", CLIP, 448),
    "vit_small_patch16_dinov3": Preset(
        "vit_small_patch16_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m", _META, False, 21.6, 384
    ),
    "vit_base_patch16_dinov3": Preset(
        "vit_base_patch16_dinov3", "timm/vit_base_patch16_dinov3.lvd1689m", _META, False, 85.6, 768
    ),
    "vit_large_patch16_dinov3": Preset(
        "vit_large_patch16_dinov3", "timm/vit_large_patch16_dinov3.lvd1689m", _META, False, 303.1, 1024
    ),
}  # fmt: skip
"""The presets, by the name that TimmNetwork takes.

Source: the model cards at https://huggingface.co/<hub>; licences, access and how they are built also in
github.com/mahmoodlab/TRIDENT, github.com/kaiko-ai/eva, github.com/MICS-Lab/thunder and github.com/mahmoodlab/CONCH
(docs/backbones.md says which fact is from where); counted parameters are those of timm 1.0.31.
"""
