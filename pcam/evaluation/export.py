"""A classifier as a file for other programs, and the check that its scores are those of the checkpoint."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcam.extras import import_extra
from pcam.options import AxisOrder
from pcam.patches import CLASS_NAMES, MICROMETRES_PER_PIXEL, PATCH_SIZE, PatchArray

INPUT_SHAPES: Final[dict[AxisOrder, tuple[int, int, int]]] = {
    "NHWC": (PATCH_SIZE, PATCH_SIZE, 3),
    "NCHW": (3, PATCH_SIZE, PATCH_SIZE),
}
"""The shape of one patch in each axis order."""

PARITY_PATCHES: Final = 1000
"""The number of patches of the valid split, at most, on which the scores of a file and of the checkpoint are compared.
The packed store has its patches in the order of a hash, so the first ones are a random sample."""

ALLOWED_DIFFERENCE: Final = 1e-4
"""The largest difference between the two scores of a patch that is allowed: no figure or table shows as little."""

Score = Callable[[PatchArray], NDArray[np.float32]]
"""A function from patches, as they lie on disk, to their scores."""


class ScoringNetwork(nn.Module):
    """A network that takes patches as they lie on disk, and gives scores.

    Args:
        network: Patches in, logits out.
        axis_order: The shape that patches have: NHWC (batch, 96, 96, 3), as image files are decoded, or NCHW (batch,
            3, 96, 96).
    """

    def __init__(self, network: nn.Module, axis_order: AxisOrder) -> None:
        super().__init__()
        self.network = network
        self.axis_order = axis_order

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and logits.

        Args:
            patches: uint8, values 0..255, any number of patches.

        Returns:
            The scores and the logits, each of shape (batch,), float32.
        """
        logits = self.network(patches.permute(0, 3, 1, 2) if self.axis_order == "NHWC" else patches)
        return logits.sigmoid(), logits


def write_onnx(network: nn.Module, path: Path, axis_order: AxisOrder) -> Score:
    """Write an ONNX model: input `patches` (uint8, any number), outputs `scores` and `logits`.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        path: The file.
        axis_order: The axis order of the input.

    Returns:
        A function that computes scores with the file in onnxruntime.
    """
    for package in ("onnx", "onnxscript"):  # torch.onnx needs them
        import_extra(package, "export")
    onnxruntime = import_extra("onnxruntime", "export")
    # Two patches: torch.export takes a batch of one for a constant.
    example = torch.zeros(2, *INPUT_SHAPES[axis_order], dtype=torch.uint8)
    torch.onnx.export(
        ScoringNetwork(network, axis_order).eval(),
        (example,),
        path,
        input_names=["patches"],
        output_names=["scores", "logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def score(patches: PatchArray) -> NDArray[np.float32]:
        ordered = patches if axis_order == "NHWC" else np.ascontiguousarray(patches.transpose(0, 3, 1, 2))
        scores: NDArray[np.float32] = session.run(["scores"], {"patches": ordered})[0]
        return scores

    return score


def write_safetensors(network: nn.Module, path: Path) -> Score:
    """Write the weights and buffers of a network, its normalisation included.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        path: The file.

    Returns:
        A function that computes scores with a network that was loaded from the file.
    """
    # Copies: the format refuses tensors that share memory, as the weights of one network at several sizes do.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()
    }
    path.write_bytes(safetensors.torch.save(tensors))
    loaded = copy.deepcopy(network)
    loaded.load_state_dict(safetensors.torch.load_file(path))
    return checkpoint_score(loaded)


class TwoLogits(nn.Module):
    """A network as WSInfer's extension of QuPath calls one, which applies a softmax to what it gives.

    Args:
        network: Patches in, logits out.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        """Compute two logits.

        Args:
            patches: Shape (batch, 3, 96, 96), values 0..1.

        Returns:
            Shape (batch, 2): 0 for normal, and the logit for tumour. The softmax of these is the sigmoid of the logit.
        """
        logits = self.network(255 * patches)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


def write_torchscript(network: nn.Module, path: Path) -> Score:
    """Write a TorchScript model: patches of 0..1 in, two logits out.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        path: The file.

    Returns:
        A function that computes scores with the file.
    """
    with torch.inference_mode(), warnings.catch_warnings():
        # QuPath's extension reads nothing else, whatever PyTorch advises; and shapes that are constants warn.
        warnings.simplefilter("ignore")
        example = torch.zeros(2, *INPUT_SHAPES["NCHW"])
        traced = torch.jit.trace(TwoLogits(network).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
        loaded = torch.jit.load(path)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def score(patches: PatchArray) -> NDArray[np.float32]:
        scaled = torch.from_numpy(np.ascontiguousarray(patches.transpose(0, 3, 1, 2))) / 255
        scores: NDArray[np.float32] = loaded(scaled).softmax(dim=1)[:, 1].numpy()
        return scores

    return score


def wsinfer_config(network_name: str, run_name: str) -> dict[str, Any]:
    """The `config.json` that WSInfer's extension of QuPath reads beside a TorchScript model.

    Args:
        network_name: The class of the network.
        run_name: The run.

    Returns:
        Its contents. Normalisation is inside the model.

    Source: wsinfer-zoo, schemas/model-config.schema.json, version 1.0.
    """
    return {
        "spec_version": "1.0",
        "architecture": network_name,
        "num_classes": len(CLASS_NAMES),
        "class_names": list(CLASS_NAMES),
        "name": run_name,
        "patch_size_pixels": PATCH_SIZE,
        "spacing_um_px": MICROMETRES_PER_PIXEL,
        "transform": [{"name": "ToTensor"}],
    }


def checkpoint_score(network: nn.Module) -> Score:
    """Make the function that computes scores with a network in PyTorch.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.

    Returns:
        The function.
    """

    @torch.inference_mode()
    def score(patches: PatchArray) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = ScoringNetwork(network, "NHWC")(torch.from_numpy(patches))[0].numpy()
        return scores

    return score


def largest_difference(patches: PatchArray, first: Score, second: Score) -> float:
    """Find the largest difference between two scores of a patch.

    Args:
        patches: Shape (count, 96, 96, 3). They are scored in batches of several sizes, so that a batch size which has
            become a constant in a file is noticed.
        first: From patches to scores.
        second: From patches to scores.

    Returns:
        The largest difference, 0..1; NaN if a score is NaN.
    """
    batches = np.split(patches, [1, 8, *range(24, len(patches), 16)])
    differences = [np.abs(first(batch) - second(batch)) for batch in batches if len(batch)]
    return float(np.concatenate(differences).max())
