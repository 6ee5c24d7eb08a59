"""Networks that make an embedding of a patch before their last, linear unit; what probes and `pcam embed` stand on."""

import hashlib
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.models.enlarged import enlarged_part
from pcam.models.symmetry import symmetries
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
    """A network without its last, linear unit, in evaluation.

    Args:
        network: A network that makes embeddings.
        tta: Whether an embedding is the mean over the eight symmetries of the square (test-time augmentation).

    Attributes:
        views: Views that are made of each patch.

    Raises:
        UserError: If the network makes no embeddings.
    """

    def __init__(self, network: nn.Module, *, tta: bool = False) -> None:
        super().__init__()
        embedding_network(network)
        self.network = network
        self.views = 8 if tta else 1

    def forward(self, patches: Patches) -> Embeddings:
        """Compute embeddings; all views go through the network at once.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch, features), float32.
        """
        views = torch.cat(symmetries(patches)) if self.views > 1 else patches
        found: Tensor = self.network.embed(views).float()  # type: ignore[operator]  # as an EmbeddingNetwork does
        return found.reshape(self.views, patches.shape[0], -1).mean(dim=0)


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
