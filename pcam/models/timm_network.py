"""Any network of timm as a classifier of patches: trained whole, in part, or with LoRA, or probed as it is."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate

from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.models.normalization import Normalization, check_dropout
from pcam.models.presets import Argument, Pooling
from pcam.models.timm_weights import Facts, build_backbone, find_facts, find_weights, load_backbone
from pcam.patches import PATCH_SIZE, Embeddings, Logits, Patches

Trained = Literal["all", "head", "norms_and_biases", "lora"]
"""What of a network learns."""


@runtime_checkable
class LayeredNetwork(Protocol):
    """A network whose layers learn at rates of their own. Any network with this method is one."""

    def rate_scales(self) -> Mapping[nn.Parameter, float]:
        """What the optimizer's learning rate is multiplied by for each parameter; 1 for those that are not there."""


class TimmNetwork(nn.Module):
    """Any network of timm, as a classifier of patches of 96x96, with one linear unit behind its embedding.

    Needs pip install 'pcam[timm]'. Patches are normalised and enlarged as the weights want it, on the device. Presets
    know this of foundation models of pathology: uni, uni2_h, virchow, virchow2, h_optimus_0, h_optimus_1,
    prov_gigapath, phikon, phikon_v2, hibou_b, hibou_l, midnight_12k, conch_trunk and vit_small_patch16_dinov3.

    Args:
        name: The name of a preset, or timm's name of a network ("tf_efficientnet_lite0", "vit_small_patch16_224"); null
            is the one that the config.json of the weights names.
        weights: Where it starts from: a file with a state dict (.safetensors or .pth, loaded without pickle), a folder
            with config.json and weights as on the Hugging Face hub, "hf-hub:OWNER/NAME" to download one, or null for
            random weights.
        dropout: Probability, 0 to below 1, with which each value of an embedding is dropped in training.
        image_size: Side in pixels that patches are enlarged to, at least 32; null is the weights' own.
        mean: Mean of red, green and blue that the network subtracts, for pixel values from 0 to 1; null is the
            weights' own.
        std: Standard deviation of red, green and blue that it divides by; null is the weights' own.
        pooling: What the embedding of a transformer is: "cls", its class token; "mean", the mean over its patch tokens,
            without register tokens; "cls_and_mean", both; or null, what the preset says, else what timm does.
        arguments: More arguments that timm builds the network with, such as {"reg_tokens": 4}.
        trained: What learns: "all"; "head", the linear unit alone; "norms_and_biases", the normalisation layers and all
            biases too; or "lora", the unit and matrices of low rank beside the weights of some layers.
        lora_rank: Rank of those matrices, at least 1.
        lora_alpha: What their product is multiplied by, divided by the rank; above 0.
        lora_layers: Ends of the names of the layers that have them.
        layer_decay: Factor, above 0 to 1, between the learning rates of a layer and of the next; the head has the
            optimizer's rate. 1 is the same rate for all.

    Example:
        >>> import torch
        >>> import pcam
        >>> network = pcam.TimmNetwork("test_vit", weights=None).eval()
        >>> patches = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
        >>> network(patches).shape, network.embed(patches).shape
        (torch.Size([2]), torch.Size([2, 64]))

    Source: Wightman, "PyTorch Image Models"; Hu et al. 2021, "LoRA: low-rank adaptation of large language models"; the
    factor between layers Bao et al. 2021, "BEiT", section 2.6.
    """

    def __init__(
        self,
        name: str | None,
        weights: str | None,
        dropout: float = 0.0,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pooling: Pooling | None = None,
        arguments: dict[str, Argument] | None = None,
        trained: Trained = "all",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_layers: Sequence[str] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        _check_numbers(image_size, mean, std, lora_rank, lora_alpha, layer_decay)
        source = find_weights(weights)
        facts = find_facts(name, source, image_size, mean, std, pooling, arguments)
        self.image_size = facts.image_size
        self.pooling = facts.pooling
        self.trained: Trained = trained
        self.layer_decay = layer_decay
        self.normalization = Normalization((facts.mean, facts.std))
        backbone = build_backbone(facts)
        self.features = _Features(backbone)
        if source is not None:
            load_backbone(backbone, facts, source)
        linear = nn.Linear(self._try(facts), 1)
        nn.init.normal_(linear.weight, 0, 0.01)  # as in MobileNetV2
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.Dropout(dropout), linear)
        if trained == "lora":
            self._add_lora(lora_rank, lora_alpha, lora_layers)
        for parameter_name, parameter in self.features.named_parameters():
            if trained == "head" or (trained == "norms_and_biases" and not _is_norm_or_bias(backbone, parameter_name)):
                parameter.requires_grad_(False)
        self.train()
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def complete(options: Mapping[str, Any]) -> dict[str, Any]:
        """Write out what the weights' own config decides, so that a run can be loaded without it.

        Args:
            options: Arguments of this class, by name.

        Returns:
            The same, with nothing left to the weights but their values.
        """
        asked = ("image_size", "mean", "std", "pooling", "arguments")
        facts = find_facts(
            options.get("name"), find_weights(options.get("weights")), *(options.get(name) for name in asked)
        )
        return {
            **options, "name": facts.name, "image_size": facts.image_size, "mean": list(facts.mean),
            "std": list(facts.std), "pooling": facts.pooling, "arguments": dict(facts.arguments),
        }  # fmt: skip

    def extra_repr(self) -> str:
        """How patches enter and what an embedding is made of; fingerprints of embeddings go by it."""
        return f"image_size={self.image_size}, pooling={self.pooling}, interpolation=bilinear"

    def train(self, mode: bool = True) -> "TimmNetwork":
        """Switch between training and evaluation; a backbone that does not learn stays in evaluation."""
        super().train(mode)
        if self.trained == "head":
            self.features.eval()
        return self

    def rate_scales(self) -> Mapping[nn.Parameter, float]:
        """What the optimizer's learning rate is multiplied by for each parameter of the backbone."""
        if self.layer_decay == 1:
            return {}
        groups = import_extra("timm.optim", "timm").param_groups_layer_decay(
            self.features.backbone, layer_decay=self.layer_decay
        )
        # timm's last layer has the rate of a head, which it would be beside; here the head is one layer further.
        return {parameter: group["lr_scale"] * self.layer_decay for group in groups for parameter in group["params"]}

    def embed(self, patches: Patches) -> Embeddings:
        """Compute the embeddings, which the linear unit makes logits of.

        Args:
            patches: As for `forward`.

        Returns:
            Shape (batch, features).
        """
        inputs = self.normalization(patches.contiguous(memory_format=torch.channels_last))
        if self.image_size != PATCH_SIZE:
            inputs = interpolate(inputs, (self.image_size, self.image_size), mode="bilinear")
        return self.features.pool(self.features(inputs), self.pooling)

    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch,).
        """
        logits: Tensor = self.head(self.embed(patches)).squeeze(1)
        return logits

    def _try(self, facts: Facts) -> int:
        """Find the length of an embedding, and refuse a size that the network cannot take; computes nothing."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        try:
            patches = torch.empty(2, 3, PATCH_SIZE, PATCH_SIZE, device="meta")
            shape = functional_call(_Embed(self), {f"network.{name}": value for name, value in empty.items()}, patches)
        except UserError:
            raise
        except Exception as error:  # whatever a network of timm raises
            raise UserError(
                f"Expected a size that {facts.name} takes, but at {facts.image_size} pixels it fails "
                f"({' '.join(str(error).split())[:200]}); choose another with --model.network.image_size."
            ) from error
        return int(shape.shape[1])

    def _add_lora(self, rank: int, alpha: float, layers: Sequence[str]) -> None:
        peft = import_extra("peft", "timm")
        try:
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers)), self.features
            )
        except ValueError as error:
            raise UserError(
                f"Expected lora_layers to be ends of the names of linear or convolutional layers, but found "
                f"{list(layers)} ({' '.join(str(error).split())[:160]}); correct --model.network.lora_layers."
            ) from error


class _Embed(nn.Module):
    """A network whose result is its embedding."""

    def __init__(self, network: TimmNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return self.network.embed(patches)


class _Features(nn.Module):
    """What a network of timm computes before it pools: features of places, or tokens.

    Args:
        backbone: The network, without its last layer.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone
        # Some, as Swin's, have their channels last; whoever looks at features wants them first.
        self.channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.backbone.forward_features(inputs)
        return features.permute(0, 3, 1, 2) if self.channels_last and features.ndim == 4 else features

    def pool(self, features: Tensor, pooling: Pooling | None) -> Tensor:
        """Make an embedding of each patch.

        Args:
            features: What `forward` gave.
            pooling: How; None as timm does.
        """
        if pooling is None:
            own = features.permute(0, 2, 3, 1) if self.channels_last and features.ndim == 4 else features
            pooled: Tensor = self.backbone.forward_head(own, pre_logits=True)
            if pooled.ndim != 2:
                raise UserError(
                    f"Expected pooling for {type(self.backbone).__name__}, whose tokens timm does not pool, but found "
                    f"none; give --model.network.pooling cls, mean or cls_and_mean."
                )
            return pooled
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)  # the class token and registers
        if features.ndim != 3 or ("cls" in pooling and not prefix):
            raise UserError(
                f"Expected a transformer with {'a class token' if 'cls' in pooling else 'tokens'} for pooling "
                f"'{pooling}', but {type(self.backbone).__name__} has none; leave out --model.network.pooling."
            )
        parts = {"cls": features[:, 0], "mean": features[:, prefix:].mean(dim=1)}
        norm = getattr(self.backbone, "fc_norm", None) or nn.Identity()  # where timm normalises after pooling
        return torch.cat([norm(parts[name]) for name in pooling.split("_and_")], dim=1)


def _check_numbers(
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    lora_rank: int,
    lora_alpha: float,
    layer_decay: float,
) -> None:
    fault = None
    if image_size is not None and image_size < 32:
        fault = f"image_size to be at least 32, but found {image_size}"
    for name, values in {"mean": mean, "std": std}.items():
        if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            fault = f"{name} to be three numbers{', above 0' if name == 'std' else ''}, but found {list(values)}"
    if lora_rank < 1 or lora_alpha <= 0:
        fault = f"lora_rank to be at least 1 and lora_alpha above 0, but found {lora_rank} and {lora_alpha}"
    if not 0 < layer_decay <= 1:
        fault = f"layer_decay to be above 0 and at most 1, but found {layer_decay}"
    if fault:
        raise UserError(f"Expected {fault}; correct model.network.")


def _is_norm_or_bias(backbone: nn.Module, parameter_name: str) -> bool:
    """Whether a parameter of the features is a bias, or belongs to a layer that normalises."""
    layer, _, name = parameter_name.removeprefix("backbone.").rpartition(".")
    return name.endswith("bias") or "norm" in type(backbone.get_submodule(layer)).__name__.lower()
