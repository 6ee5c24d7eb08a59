"""A trained network made fast to evaluate: each convolution, its batch norm and its activation become one layer."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pcam.patches import Logits, Patches


class InferenceNetwork(nn.Module):
    """A copy of a network for evaluation alone, without gradients.

    In float32, whatever the network was trained in. Every convolution takes up the batch norm behind it, with the
    statistics that it has now, and the ReLU or ReLU6 behind that. The logits are those of the network but for
    rounding.

    Args:
        network: Patches in, logits out; left as it is.
        dtype: What convolutions compute in: float32, or bfloat16, which leaves logits two to three digits.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = deepcopy(network).float().eval().requires_grad_(False)
        self.dtype = dtype
        for layers in [module for module in self.network.modules() if isinstance(module, nn.Sequential)]:
            _fuse(layers, dtype)

    @torch.no_grad()
    def forward(self, patches: Patches) -> Logits:
        """Compute logits.

        Args:
            patches: As the network takes them.

        Returns:
            Shape (batch,), float32.
        """
        with torch.autocast(patches.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.network(patches)
        return logits.float()


def _fuse(layers: nn.Sequential, dtype: torch.dtype) -> None:
    """Replace each convolution with what follows it; places that become free hold an identity."""
    for place, layer in enumerate(layers):
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
            continue
        convolution, norm, activation = layer, _layer(layers, place + 1), None
        if isinstance(norm, nn.BatchNorm2d):
            convolution = fuse_conv_bn_eval(convolution, norm)
            layers[place + 1] = nn.Identity()
        behind = place + 2 if isinstance(norm, nn.BatchNorm2d) else place + 1
        if isinstance(_layer(layers, behind), nn.ReLU | nn.ReLU6):
            activation = layers[behind]
            layers[behind] = nn.Identity()
        layers[place] = _FusedConvolution(convolution.to(dtype), activation)


def _layer(layers: nn.Sequential, place: int) -> nn.Module | None:
    return layers[place] if place < len(layers) else None


class _FusedConvolution(nn.Module):
    """A convolution, then a ReLU or ReLU6 if there is one: on a CPU in one kernel."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        # oneDNN's, to which torch.compile brings the same layers (torch 2.15); nothing public leads to it without
        # a minute of compiling. Where a build lacks it, the public functions do the same in two kernels.
        self._kernel = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
        self._clamp: tuple[str, list[float]] = ("none", []) if activation is None else ("relu", [])
        if isinstance(activation, nn.ReLU6):
            self._clamp = ("hardtanh", [0.0, 6.0])
        padding = convolution.padding
        if padding == "same":
            padding = tuple(
                size // 2 * gap for size, gap in zip(convolution.kernel_size, convolution.dilation, strict=True)
            )
        self._padding = padding

    def forward(self, features: Tensor) -> Tensor:
        layer = self.convolution
        features = features.to(layer.weight.dtype)
        place = (self._padding, layer.stride, layer.dilation)
        if features.device.type == "cpu" and self._kernel is not None:
            name, limits = self._clamp
            fused: Tensor = self._kernel(features, layer.weight, layer.bias, *place, layer.groups, name, limits, "")
            return fused
        padding, stride, dilation = place
        features = conv2d(features, layer.weight, layer.bias, stride, padding, dilation, layer.groups)
        return features if self.activation is None else self.activation(features)
