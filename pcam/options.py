"""The words that options take, such as the names of splits and checkpoints, and the endings of files.

They are apart from what uses them, so that a command line can be read before PyTorch is imported, which takes seconds.
"""

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

Dtype = Literal["float16", "float32"]
"""What embeddings are stored in."""

ProbeMethod = Literal["lbfgs", "eva"]
"""How a probe learns: logistic regression by L-BFGS, or by the protocol of eva's leaderboard."""

FormatName = Literal["onnx", "safetensors"]
"""The kinds of file that a classifier is exported to."""

AxisOrder = Literal["NHWC", "NCHW"]
"""The order of the axes of a batch of patches: channels last, as image files are decoded, or channels first."""

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
"""The endings of image files, in lower case."""
