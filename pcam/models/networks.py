"""The networks: those of the study, MobileNetV2 and the baseline CNN, and every other that torchvision has.

All take patches with values 0..255 (uint8, or float after augmentation) and normalise them in their first layer, so
whatever feeds them needs to know nothing about it.
"""

from collections.abc import Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from typing import Final, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import SwinTransformer, get_model, list_models, mobilenet_v2

from pcam.errors import UserError
from pcam.models.weights import load_weights
from pcam.patches import PATCH_SIZE, Logits, Patches

NormalizationName = Literal["imagenet", "symmetric", "unit"]

MEAN_AND_STD: Final[dict[NormalizationName, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    # Source: torchvision's weights, `MobileNet_V2_Weights.IMAGENET1K_V1.transforms()`.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

IMAGENET_CLASSES: Final = 1000

DEFAULT_BN_EPS: Final = 1e-5
"""PyTorch's, with which torchvision's weights were trained."""


class Normalization(nn.Module):
    """Map pixel values to what a network was trained on: (patches / 255 - mean) / std, channel by channel.

    Args:
        name: "imagenet", the mean and std of torchvision's weights; "symmetric", to [-1, 1]; "unit", to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: NormalizationName) -> None:
        super().__init__()
        mean, std = MEAN_AND_STD[name]
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, patches: Patches) -> Patches:
        """Normalise.

        Args:
            patches: Shape (batch, 3, height, width), values 0..255, any dtype.

        Returns:
            The same shape, in the network's floating-point type.
        """
        return torch.sub(patches, self.mean).div_(self.std).to(self.mean.dtype)


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
        normalization: How pixel values enter: "imagenet" (what torchvision's weights were trained with), "symmetric"
            ([-1, 1]) or "unit" ([0, 1]). The same default without weights, so that arms differ in nothing else.
        freeze: Whether only the linear unit learns. The convolutional part then stays in evaluation mode, so its
            batch-norm statistics stay put too.
        enlarged_sizes: Sides, in pixels, that evaluation enlarges patches of 96x96 to, beside their own size: a logit
            is the mean over the sizes. Training sees patches in their own size alone. Evaluation takes longer by the
            areas, 2.8 times with 128. Batch norm has statistics for each size, from `pcam.training.EnlargedStatistics`,
            which scripts/train.py brings.

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
        _check_dropout(dropout)
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


class EnlargedFeatures(nn.Module):
    """The convolutional part of a network at other sizes: the same weights, with batch-norm statistics of their own.

    A network that has learned from patches in their own size sees each nucleus larger here, at other places of its
    grid of strides. Both make other errors than it makes without, once batch norm has the statistics of the size
    (`reestimate_batch_norm` of this module); those of another size cost more than the rest brings.

    Args:
        features: Shares its weights with this module; its statistics are what those here start from.
        sizes: Sides, in pixels, of patches that have 96x96 before.

    Source: Touvron et al. 2019, "Fixing the train-test resolution discrepancy", for the size and the statistics.
    """

    def __init__(self, features: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        shared = {id(parameter): parameter for parameter in features.parameters()}
        self.features = nn.ModuleList(deepcopy(features, dict(shared)) for _ in sizes)

    def forward(self, patches: Patches) -> list[Tensor]:
        """Compute features.

        Args:
            patches: Shape (batch, 3, height, width), normalised.

        Returns:
            For each size, shape (batch, channels, rows, columns).
        """
        height, width = patches.shape[2:]
        return [
            features(interpolate(patches, (height * size // PATCH_SIZE, width * size // PATCH_SIZE), mode="bilinear"))
            for size, features in zip(self.sizes, self.features, strict=True)
        ]


class BaselineCNN(nn.Module):
    """Two convolutions, two poolings and a dense layer; 166,977 parameters.

    Weights start as Keras starts them (Glorot uniform, biases 0), as in the study.

    Args:
        dense: Whether the last two layers are dense, as published, or the same computation as convolutions (6x6 valid,
            then 1x1), which also runs over larger images (`logit_map`).
        dropout: Probability, 0 to below 1, with which each of the 64 features before the last layer is dropped in
            training. 0, the published network, is none.
        normalization: How pixel values enter; "unit" ([0, 1]) is the published one.

    Source: TU/e course 8P361, assignment 3; the initialisation Glorot and Bengio 2010.
    """

    def __init__(self, dense: bool = True, dropout: float = 0.0, normalization: NormalizationName = "unit") -> None:
        super().__init__()
        _check_dropout(dropout)
        self.dense = dense
        self.normalization = Normalization(normalization)
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Conv2d(32, 64, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(4),
        )
        self.head = (
            nn.Sequential(nn.Flatten(), nn.Linear(2304, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 1))
            if dense
            else nn.Sequential(nn.Conv2d(64, 64, 6), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(64, 1, 1))
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..255.

        Returns:
            Shape (batch,).
        """
        logits: Tensor = self.head(self._features(patches)).flatten()
        return logits

    def _features(self, patches: Patches) -> Tensor:
        features: Tensor = self.features(self.normalization(patches.contiguous(memory_format=torch.channels_last)))
        return features

    def logit_map(self, images: Patches) -> Tensor:
        """Slide the network over larger images, in steps of 16 pixels; only without dense layers.

        Args:
            images: Shape (batch, 3, height, width), values 0..255, height and width at least 96.

        Returns:
            Shape (batch, rows, columns): entry (row, column) is the logit of the 96x96 window that starts at pixel
            (16 row, 16 column), but for what padding does at a window's own edges.

        Raises:
            ValueError: If the network has dense layers.
        """
        if self.dense:
            raise ValueError("Expected a BaselineCNN(dense=False), but this one has dense layers, which fix the size.")
        logits: Tensor = self.head(self._features(images)).squeeze(1)
        return logits


class TorchvisionNetwork(nn.Module):
    """Any classifier of torchvision.models that takes patches of 96x96, with one logit in place of its classes.

    Args:
        name: torchvision's name of it: "resnet18", "efficientnet_b0", "densenet121", "convnext_tiny".
        weights: Where it starts from: a name of its weights ("IMAGENET1K_V1" or "DEFAULT", downloaded at first use), a
            path to a state dict, with its last layer or without, or null for random.
        dropout: Probability, 0 to below 1, with which each feature before the last layer is dropped in training; takes
            the place of the network's own dropout there.
        normalization: How pixel values enter: "imagenet" (what torchvision's weights were trained with), "symmetric"
            ([-1, 1]) or "unit" ([0, 1]).
    """

    def __init__(
        self, name: str, weights: str | None, dropout: float = 0.0, normalization: NormalizationName = "imagenet"
    ) -> None:
        super().__init__()
        _check_dropout(dropout)
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


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UserError(f"Expected dropout to be at least 0 and below 1, but found {dropout}.")
