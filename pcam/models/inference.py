"""How a trained network is evaluated, and the copy of it that evaluates."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from pcam.models.engine import compiled
from pcam.models.enlarged import at_sizes
from pcam.models.symmetry import SymmetryAverage
from pcam.options import Adaptation, Precision
from pcam.patches import Embeddings, Logits, Patches

CPU_VIEWS: Final = 64
"""Views of patches that PyTorch computes at once on a CPU, at most, where each patch has several."""


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

    Examples:
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


class InferenceNetwork:
    """A copy of a network for evaluation alone, without gradients: in OpenVINO where that pays, else in PyTorch.

    In float32, whatever the network was trained in. On a CPU and in float32, OpenVINO computes the same scores several
    times as fast, if it is installed (`pip install 'pcam[engine]'`). The logits are those of the network except for
    rounding.

    Args:
        network: Patches in, logits or embeddings out; left as it is.
        precision: What convolutions compute in: float32, or bfloat16, which leaves logits two to three digits.
        engine: Whether OpenVINO may compute. Making it ready takes a second, which few patches do not bring back.
        device: Where the copy computes; null is where the network is.

    Attributes:
        network: The copy.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision = "32-true",
        *,
        engine: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.network = deepcopy(network).to(device).float().eval().requires_grad_(False)
        self._dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        self._views: int = getattr(network, "views", 1)
        on_cpu = all(tensor.device.type == "cpu" for tensor in self.network.state_dict().values())
        self._engine = compiled(self.network, self._views) if engine and on_cpu and precision == "32-true" else None

    @property
    def name(self) -> str:
        """What computes, with its version, such as "OpenVINO 2026.4.1"."""
        return f"PyTorch {torch.__version__}" if self._engine is None else self._engine.name

    @torch.no_grad()
    def __call__(self, patches: Patches) -> Logits | Embeddings:
        """Compute what the network computes.

        Args:
            patches: As the network takes them.

        Returns:
            Logits of shape (batch,) or embeddings of shape (batch, features), float32.
        """
        if self._engine is not None:
            return self._engine(patches)
        on_cpu = patches.device.type == "cpu"
        # Symmetries multiply what a pass holds in memory, which on a CPU also makes it slower.
        parts = torch.split(patches, max(1, CPU_VIEWS // self._views)) if on_cpu and self._views > 1 else [patches]
        with torch.autocast(patches.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return torch.cat([self.network(part).float() for part in parts])


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16; without, PyTorch computes in it all the same, but slowly."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.15 has it
    return bool(capabilities.get("amx_bf16"))


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
        "Expected a processor with instructions for bfloat16 (AMX), but this one has none: scores in "
        "bfloat16 are right but computed slowly; 32-true is faster here."
    )
