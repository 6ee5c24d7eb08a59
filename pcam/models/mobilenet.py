"""MobileNetV2, the network of the study."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from pcam.errors import UserError
from pcam.models.enlarged import EnlargedFeatures
from pcam.models.normalization import Normalization, NormalizationName, check_dropout
from pcam.models.weights import load_weights
from pcam.patches import PATCH_SIZE, Embeddings, Logits, Patches

DEFAULT_BN_EPS: Final = 1e-5
"""PyTorch's, with which torchvision's weights were trained."""


class MobileNetV2(nn.Module):
    """MobileNetV2 without its top, then average pooling, dropout and one linear unit; 2,225,153 parameters.

    Args:
        weights: Where the convolutional part starts from: a name of torchvision's weights ("IMAGENET1K_V1",
            downloaded at first use), a path to a state dict (whole, or `features.*` only), or null for random.
        dropout: Probability, 0 to below 1, with which each of the 1,280 features before the linear unit is dropped in
            training. 0 is none. (torchvision's own default is 0.2; here it is always stated.)
        bn_momentum: Share of each new batch in the running statistics of batch norm, above 0 to 1, in PyTorch's
            convention: 0.1 is PyTorch's default, 0.001 is Keras's 0.999.
        bn_eps: Added to the variance in batch norm. Pretrained weights need the 1e-5 they were trained with.
        normalization: How pixel values enter: "imagenet" (the mean and standard deviation that torchvision's weights
            were trained with) or "unit" (scaled to the range [0, 1]). The default is the same for random weights, so
            that a comparison with pretrained weights differs in nothing else.
        freeze: Whether only the linear unit learns. The convolutional part then stays in evaluation mode, so its
            batch-norm statistics stay put too.
        enlarged_sizes: Sides, in pixels, that evaluation also enlarges patches of 96x96 to: the logit of a patch is
            then the mean over its own size and these. Training sees patches in their own size only. Evaluation takes
            as much longer as the areas are larger, 2.8 times with 128. Batch norm has statistics of its own for each
            size, which are estimated before each validation (`pcam.training.EnlargedStatistics`).

    Examples:
        >>> import pcam
        >>> network = pcam.MobileNetV2(weights=None, dropout=0.2)
        >>> sum(parameter.numel() for parameter in network.parameters())
        2225153

    Source: Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks".
    """

    def __init__(
        self,
        weights: str | None,
        dropout: float,
        bn_momentum: float = 0.1,
        bn_eps: float = DEFAULT_BN_EPS,
        normalization: NormalizationName = "imagenet",
        freeze: bool = False,
        enlarged_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        if any(size <= PATCH_SIZE for size in enlarged_sizes) or len(set(enlarged_sizes)) < len(enlarged_sizes):
            raise UserError(
                f"Expected enlarged_sizes to be above {PATCH_SIZE}, each once, but found {list(enlarged_sizes)}; "
                f"correct model.network.enlarged_sizes ({PATCH_SIZE} itself is always evaluated)."
            )
        if not 0 < bn_momentum <= 1:
            raise UserError(
                f"Expected bn_momentum to be above 0 and at most 1 (0.1 is PyTorch's default, 0.001 is Keras's 0.999), "
                f"but found {bn_momentum}."
            )
        if bn_eps <= 0:
            raise UserError(f"Expected bn_eps to be above 0, but found {bn_eps}.")
        if weights is not None and bn_eps != DEFAULT_BN_EPS:
            raise UserError(
                f"Expected bn_eps {DEFAULT_BN_EPS} with pretrained weights, but found {bn_eps}: a third of their "
                f"running variances are below 0.001, so another epsilon breaks them; leave bn_eps out, or set weights "
                f"to null."
            )
        norm_layer = partial(nn.BatchNorm2d, momentum=bn_momentum, eps=bn_eps)
        self.normalization = Normalization(normalization)
        self.features: nn.Sequential = mobilenet_v2(norm_layer=norm_layer).features
        for layer in self.features.modules():
            if isinstance(layer, nn.ReLU6):
                layer.inplace = False  # in place, autograd copies what it needs of the input, and nothing is saved
        linear = nn.Linear(1280, 1)
        nn.init.normal_(linear.weight, 0, 0.01)  # as torchvision starts its own classifier
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.Dropout(dropout), linear)
        if weights is not None:
            load_weights(self.features, "mobilenet_v2", weights, prefix="features.", without=["classifier."])
        self.freeze = freeze
        self.features.requires_grad_(not freeze)
        self.enlarged = EnlargedFeatures(self.features, enlarged_sizes) if enlarged_sizes else None
        self.train()  # a frozen part is in evaluation mode from the start: trainers take modes as they find them
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "MobileNetV2":
        """Switch between training and evaluation; a frozen convolutional part stays in evaluation."""
        super().train(mode)
        if self.freeze:
            self.features.eval()
            if self.enlarged is not None:
                self.enlarged.eval()
        return self

    def embed(self, patches: Patches) -> Embeddings:
        """Compute the mean features of patches in their own size, which the linear unit makes logits of.

        Args:
            patches: As for `forward`.

        Returns:
            Shape (batch, 1280).
        """
        normalized = self.normalization(patches.contiguous(memory_format=torch.channels_last))
        embeddings: Tensor = self.features(normalized).mean(dim=(2, 3))
        return embeddings

    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: Shape (batch, 3, height, width), values 0..255; 96x96 is what the label rule is about.

        Returns:
            Shape (batch,).
        """
        normalized = self.normalization(patches.contiguous(memory_format=torch.channels_last))
        features = [self.features(normalized)]
        if self.enlarged is not None and not self.training:
            features += self.enlarged(normalized)
        logits = [self.head(of_size.mean(dim=(2, 3))).squeeze(1) for of_size in features]
        return torch.stack(logits).mean(dim=0)
