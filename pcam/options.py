"""The words that options take, such as the names of splits and checkpoints, and the endings of files.

They are apart from what uses them, so that a command line can be read before PyTorch is imported, which takes seconds.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

SplitName = Literal["train", "valid", "test"]
SPLIT_NAMES: Final[tuple[SplitName, ...]] = get_args(SplitName)

CheckpointName = Literal["best", "last", "previous"]
"""The checkpoints of a run: the best by its `monitor`, the last, and the one before the last."""

ResumeName = Literal["last", "previous"]
"""The checkpoints that training can resume from."""

Monitor = Literal["val/loss", "val/accuracy", "val/auroc", "val/average_precision"]
"""What the best checkpoint of a run can be best in."""
MONITORS: Final[tuple[Monitor, ...]] = get_args(Monitor)

Precision = Literal["32-true", "bf16-mixed"]
"""What a network is evaluated in, as a trainer spells it: float32, or convolutions in bfloat16."""

ThresholdName = Literal["0.5", "youden", "sensitivity_95", "specificity_95"]
"""The thresholds of a score: a fixed one, and those that are chosen on the valid split."""

Dtype = Literal["float16", "float32"]
"""What embeddings are stored in."""

ProbeMethod = Literal["lbfgs", "eva"]
"""How a probe learns: logistic regression by L-BFGS, or by the protocol of eva's leaderboard."""

FormatName = Literal["onnx", "safetensors", "torchscript", "hub"]
"""What a classifier is exported as: a kind of file, or the folder that the Hugging Face hub takes."""

AdaptationUnit = Literal["all", "slide", "hospital"]
"""What a network is adapted to: all patches together, the patches of each slide, or those of each hospital."""

AdaptationMethod = Literal["stains", "batch_norm", "both"]
"""How a network is adapted: what it sees is brought to the staining of the training patches, its first layers of batch
norm take the statistics of the patches, or both, one after the other."""

ADAPTED_LAYERS: Final = 8
"""Layers of batch norm that are adapted unless said otherwise; docs/shift.md says why."""

Origin = Literal["slide", "patient", "hospital"]
"""Where a patch may be known to come from."""
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)


@dataclass(frozen=True)
class Adaptation:
    """How a trained network is adapted, without labels, to the staining of the patches that it scores.

    Args:
        unit: The patches that are adapted to together.
        method: "stains", "batch_norm" or "both".
        layers: How many layers of batch norm are adapted, counted from the first, at least 1.
        weight: The share of the patches' own statistics of batch norm, above 0 to 1; the rest is those of training.
    """

    unit: AdaptationUnit
    method: AdaptationMethod = "stains"
    layers: int = ADAPTED_LAYERS
    weight: float = 1.0

    @property
    def suffix(self) -> str:
        """What the folder of results has after the split's name."""
        blend = "" if self.weight == 1 else f"_{self.weight:g}"
        method = {"stains": "stains", "batch_norm": f"bn_{self.layers}", "both": f"stains_bn_{self.layers}"}
        return f"_adapted_{self.unit}_{method[self.method]}" + ("" if self.method == "stains" else blend)

    def __str__(self) -> str:
        units = {"all": "all patches", "slide": "each slide", "hospital": "each hospital"}[self.unit]
        blend = "" if self.weight == 1 else f" by {self.weight:g}"
        layers = f"first {self.layers} bn layers"
        parts = {"stains": "stains", "batch_norm": f"{layers}{blend}", "both": f"stains and {layers}{blend}"}
        return f"{parts[self.method]} adapted to {units}"


AxisOrder = Literal["NHWC", "NCHW"]
"""The order of the axes of a batch of patches: channels last, as image files are decoded, or channels first."""

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
"""The endings of image files, in lower case."""
