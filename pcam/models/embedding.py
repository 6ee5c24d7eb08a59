"""Networks that make an embedding of a patch before their last, linear unit; what probes and `pcam embed` stand on."""

import hashlib
from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.models.enlarged import enlarged_part
from pcam.models.symmetry import symmetries
from pcam.options import Precision
from pcam.patches import Embeddings, Patches


@runtime_checkable
class EmbeddingNetwork(Protocol):
    """A network whose logits are those of a linear unit. Any network with these two is one.

    Attributes:
        head: What makes logits of embeddings: a sequence that ends with an `nn.Linear` of one output, and that does
            nothing else in evaluation.
    """

    head: nn.Sequential

    def embed(self, patches: Patches) -> Embeddings:
        """Compute the embeddings of patches, shape (batch, 3, 96, 96), values 0..255."""


def embedding_network(network: nn.Module) -> tuple[EmbeddingNetwork, nn.Linear]:
    """Take a network as one that makes embeddings.

    Args:
        network: Patches in, logits out.

    Returns:
        The network, and the linear unit at its end.

    Raises:
        UserError: If it makes no embeddings, or its logits are of patches at several sizes.
    """
    if not isinstance(network, EmbeddingNetwork) or not isinstance(network.head[-1], nn.Linear):
        raise UserError(
            f"Expected a network that makes embeddings, as pcam.models.TimmNetwork and pcam.models.MobileNetV2 do, but "
            f"{type(network).__name__} has no method embed with a head behind it; choose another with --model.network."
        )
    if enlarged_part(network) is not None:
        raise UserError(
            "Expected a network that makes one embedding of a patch, but found enlarged_sizes; make "
            "model.network.enlarged_sizes []."
        )
    return network, network.head[-1]


class Embedder(nn.Module):
    """A copy of a network for embedding alone, without gradients and in evaluation mode.

    Args:
        network: A network that makes embeddings; left as it is.
        tta: Whether an embedding is the mean over the eight symmetries of the square (test-time augmentation).
        precision: "32-true", or "bf16-mixed": matrix products and convolutions in bfloat16.
    """

    def __init__(self, network: nn.Module, *, tta: bool = False, precision: Precision = "32-true") -> None:
        super().__init__()
        embedding_network(network)
        self.network = deepcopy(network).float().eval().requires_grad_(False)
        self.tta = tta
        self.precision = precision

    @torch.no_grad()
    def forward(self, patches: Patches) -> Embeddings:
        """Compute embeddings.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch, features), float32.
        """
        views = symmetries(patches) if self.tta else [patches]
        with torch.autocast(patches.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            found = [embedding_network(self.network)[0].embed(view).float() for view in views]
        embeddings: Tensor = torch.stack(found).mean(dim=0)
        return embeddings


def backbone_fingerprint(network: nn.Module) -> str:
    """Condense what decides the embeddings of a network: its structure and every tensor of it but the head's.

    Args:
        network: A network that makes embeddings.

    Returns:
        A SHA-256 in hexadecimal. It changes with the weights, with how patches enter, and with the version of PyTorch
        or timm if that describes the structure in other words.
    """
    parts = [repr(part) for name, part in network.named_children() if name != "head"]
    digest = hashlib.sha256(" ".join([type(network).__name__, network.extra_repr(), *parts]).encode())
    for name, tensor in network.state_dict().items():
        if name.startswith("head."):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
