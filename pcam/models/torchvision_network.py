"""Any other classifier of torchvision."""

from difflib import get_close_matches
from typing import Final

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SwinTransformer, get_model, list_models

from pcam.errors import UserError
from pcam.models.normalization import Normalization, NormalizationName, check_dropout
from pcam.models.weights import load_weights
from pcam.patches import PATCH_SIZE, Logits, Patches

IMAGENET_CLASSES: Final = 1000


class TorchvisionNetwork(nn.Module):
    """Any classifier of torchvision.models that takes patches of 96x96, with one logit in place of its classes.

    Args:
        name: torchvision's name of it: "resnet18", "efficientnet_b0", "densenet121", "convnext_tiny".
        weights: Where it starts from: a name of its weights ("IMAGENET1K_V1" or "DEFAULT", downloaded at first use), a
            path to a state dict, with its last layer or without, or null for random.
        dropout: Probability, 0 to below 1, with which each feature before the last layer is dropped in training; takes
            the place of the network's own dropout there.
        normalization: How pixel values enter: "imagenet" (the mean and standard deviation that torchvision's weights
            were trained with) or "unit" (scaled to the range [0, 1]).

    Examples:
        >>> import torch
        >>> import pcam
        >>> network = pcam.TorchvisionNetwork("resnet18", weights=None).eval()
        >>> network(torch.zeros(2, 3, 96, 96, dtype=torch.uint8)).shape
        torch.Size([2])
    """

    def __init__(
        self, name: str, weights: str | None, dropout: float = 0.0, normalization: NormalizationName = "imagenet"
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        if name not in list_models(module=torchvision.models):
            near = get_close_matches(name, list_models(module=torchvision.models), n=3, cutoff=0.4)
            raise UserError(
                f"Expected the name of a classifier of torchvision.models, but found '{name}'; "
                f"{'near it are ' + ', '.join(near) if near else 'torchvision.models.list_models() names them'}."
            )
        # Two networks have outputs beside the last one, for training alone.
        options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        self.normalization = Normalization(normalization)
        self.network = get_model(name, **options)
        last = [path for path, layer in self.network.named_modules() if _outputs(layer) == IMAGENET_CLASSES][-1]
        if weights is not None:
            load_weights(self.network, name, weights, without=[f"{last}.", "aux1.", "aux2.", "AuxLogits."])
        self._replace(last, dropout)
        self.to(memory_format=torch.channels_last)
        self._try()

    def _replace(self, path: str, dropout: float) -> None:
        """Put one output in the place of the classes."""
        layer = self.network.get_submodule(path)
        place, _, name = path.rpartition(".")
        parent = self.network.get_submodule(place)
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            new = nn.Conv2d(layer.in_channels, 1, 1)
        else:
            assert isinstance(layer, nn.Linear)
            new = nn.Linear(layer.in_features, 1)
        layers = list(parent.children())
        before = layers[layers.index(layer) - 1] if isinstance(parent, nn.Sequential) else None
        if isinstance(before, nn.Dropout):
            before.p = dropout
        else:
            new = nn.Sequential(nn.Dropout(dropout), new)
        setattr(parent, name, new)
        if layers[-1] is not layer and isinstance(layers[layers.index(layer) + 1], nn.ReLU):
            # SqueezeNet's: a logit may be negative.
            setattr(parent, [*parent._modules][layers.index(layer) + 1], nn.Identity())

    @torch.no_grad()
    def _try(self) -> None:
        """Refuse a network that does not take patches, before anything else is done with it."""
        try:
            self.eval()(torch.zeros(2, 3, PATCH_SIZE, PATCH_SIZE))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"Expected a network that takes patches of {PATCH_SIZE}x{PATCH_SIZE}, but "
                f"{type(self.network).__name__} does not ({' '.join(str(error).split())}); take another."
            ) from error
        self.train()

    @property
    def features(self) -> nn.Module:
        """What computes the last convolutional features, where the network has such a part."""
        for name in ("features", "layer4"):
            # A SwinTransformer's have their channels last.
            if hasattr(self.network, name) and not isinstance(self.network, SwinTransformer):
                part: nn.Module = getattr(self.network, name)
                return part
        raise AttributeError(f"{type(self.network).__name__} has no part that computes convolutional features")

    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch,).
        """
        logits: Tensor = self.network(self.normalization(patches.contiguous(memory_format=torch.channels_last)))
        return logits.flatten()


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None
