"""How a trained network is evaluated, and the copy of it that evaluates."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pcam.models.enlarged import at_sizes
from pcam.models.symmetry import SymmetryAverage
from pcam.options import Adaptation, Precision
from pcam.patches import Logits, Patches


@dataclass(frozen=True)
class EvaluationSettings:
    """How the scores of a trained network are computed. Evaluate, predict, explain, export and studies all take these.

    Args:
        tta: Whether each score is the mean over the eight symmetries of the square (test-time augmentation).
        precision: "32-true", or "bf16-mixed": convolutions in bfloat16.
        reestimate_bn: Whether batch norm's running statistics are estimated again, on un-augmented training patches.
        enlarged_sizes: The sizes, besides 96 pixels, that patches are evaluated at: some of those that the network was
            trained with; None is all of them.
        adaptation: How the network is adapted to the patches that it scores; None leaves it as it was trained.

    Example:
        >>> from pcam.models.inference import EvaluationSettings
        >>> EvaluationSettings(tta=True, precision="bf16-mixed").suffix
        '_tta_bf16'
    """

    tta: bool = False
    precision: Precision = "32-true"
    reestimate_bn: bool = False
    enlarged_sizes: Sequence[int] | None = None
    adaptation: Adaptation | None = None

    @property
    def suffix(self) -> str:
        """What the folder of results has after the split's name; empty for the default settings."""
        parts = {
            "_bn": self.reestimate_bn,
            "_tta": self.tta,
            "_bf16": self.precision == "bf16-mixed",
            f"_at_{'_'.join(map(str, [96, *(self.enlarged_sizes or ())]))}": self.enlarged_sizes is not None,
        }
        adapted = "" if self.adaptation is None else self.adaptation.suffix
        return "".join(part for part, applies in parts.items() if applies) + adapted

    @property
    def words(self) -> list[str]:
        """What tables and figures say of settings that are not the default."""
        sizes = ", ".join(map(str, [96, *(self.enlarged_sizes or ())]))
        words = {
            "re-estimated bn": self.reestimate_bn,
            "tta": self.tta,
            "bf16": self.precision == "bf16-mixed",
            f"at {sizes} pixels": self.enlarged_sizes is not None,
        }
        adapted = [] if self.adaptation is None else [str(self.adaptation)]
        return [word for word, applies in words.items() if applies] + adapted

    def network(self, trained: nn.Module) -> nn.Module:
        """Make the network whose logits these settings ask for, with gradients and in the precision of the weights.

        Args:
            trained: Patches in, logits out; left as it is, batch norm re-estimated already if that is asked for.

        Returns:
            The network itself or a module around it or a copy of it, which shares its weights where it can.

        Raises:
            UserError: If the network has no batch-norm statistics for one of the sizes.
        """
        network = trained if self.enlarged_sizes is None else at_sizes(trained, self.enlarged_sizes)
        return SymmetryAverage(network) if self.tta else network


class InferenceNetwork(nn.Module):
    """A copy of a network for evaluation alone, without gradients.

    In float32, whatever the network was trained in. Every convolution takes up the batch norm behind it, with the
    statistics that it has now, and the ReLU or ReLU6 behind that. The logits are those of the network except for
    rounding.

    Args:
        network: Patches in, logits out; left as it is.
        precision: What convolutions compute in: float32, or bfloat16, which leaves logits two to three digits.
    """

    def __init__(self, network: nn.Module, precision: Precision = "32-true") -> None:
        super().__init__()
        self.network = deepcopy(network).float().eval().requires_grad_(False)
        self.dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        # oneDNN's ReLU makes 0 of NaN on some processors: a network that has diverged would have finite logits.
        if all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values()):
            for layers in [module for module in self.network.modules() if isinstance(module, nn.Sequential)]:
                _fuse(layers, self.dtype)

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


@cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without, PyTorch computes in it all the same, but slowly.

    oneDNN is asked by having it compute a convolution of one number: which instructions it needs, and what may hide
    them from it (its own environment variables), it knows best.
    """
    kernel = _cpu_kernel()
    number = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    try:
        if kernel is None:
            return bool(torch.backends.cpu.get_cpu_capability() == "AVX512")
        kernel(number, number, None, (0, 0), (1, 1), (1, 1), 1, "none", [], "")
    except RuntimeError:
        return False
    return True


def bfloat16_warning(device: torch.device) -> str | None:
    """Say that bfloat16 brings no speed on this machine, where that is so.

    Args:
        device: Where the network computes.

    Returns:
        A sentence, or None if the device computes in bfloat16.
    """
    if device.type != "cpu" or has_fast_bfloat16():
        return None
    return (
        "Expected a processor with instructions for bfloat16 (AVX-512 or AMX), but this one has none: scores in "
        "bfloat16 are right but computed slowly; 32-true is faster here."
    )


def _cpu_kernel() -> Any:
    """Find oneDNN's convolution with an activation; None if this build of PyTorch has none.

    The operator is private (torch 2.15): it is what torch.compile makes of the same layers, and nothing public leads to
    it without a minute of compiling. Where it is missing, the public functions do the same in two kernels.
    """
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def _fuse(layers: nn.Sequential, dtype: torch.dtype) -> None:
    """Replace each convolution by one with what follows it; the places that become free hold an identity."""
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
    """A convolution, then a ReLU or ReLU6 if there is one: on a CPU in one kernel, where it has one for the dtype."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        usable = convolution.weight.dtype != torch.bfloat16 or has_fast_bfloat16()
        self._kernel = _cpu_kernel() if usable else None
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
