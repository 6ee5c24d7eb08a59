"""A classifier as a file for other programs, and the proof that it answers as the checkpoint does."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcam.extras import import_extra
from pcam.options import AxisOrder
from pcam.patches import PATCH_SIZE, PatchArray

INPUT_SHAPES: Final[dict[AxisOrder, tuple[int, int, int]]] = {
    "NHWC": (PATCH_SIZE, PATCH_SIZE, 3),
    "NCHW": (3, PATCH_SIZE, PATCH_SIZE),
}
"""Shape of one patch in each layout."""

Score = Callable[[PatchArray], NDArray[np.float32]]
"""From patches as they lie on disk to their scores."""


class ScoringNetwork(nn.Module):
    """A network with what its users need round it: patches as they lie on disk in, scores out.

    Args:
        network: Patches in, logits out.
        layout: Of the patches: NHWC (batch, 96, 96, 3), as image files are decoded, or NCHW (batch, 3, 96, 96).
    """

    def __init__(self, network: nn.Module, layout: AxisOrder) -> None:
        super().__init__()
        self.network = network
        self.layout = layout

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Score.

        Args:
            patches: uint8, any number of them.

        Returns:
            The scores and the logits, each of shape (batch,), float32.
        """
        logits = self.network(patches.permute(0, 3, 1, 2) if self.layout == "NHWC" else patches)
        return logits.sigmoid(), logits


def write_onnx(network: nn.Module, layout: AxisOrder, path: Path) -> Score:
    """Write an ONNX model: input `patches` (uint8, any number), outputs `scores` and `logits`.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        layout: Of the patches.
        path: The file.

    Returns:
        What the file answers in onnxruntime.
    """
    for package in ("onnx", "onnxscript"):  # what torch.onnx needs
        import_extra(package, "export")
    onnxruntime = import_extra("onnxruntime", "export")
    # Two patches: torch.export takes a batch of one for a constant.
    example = torch.zeros(2, *INPUT_SHAPES[layout], dtype=torch.uint8)
    torch.onnx.export(
        ScoringNetwork(network, layout).eval(),
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
        ordered = patches if layout == "NHWC" else np.ascontiguousarray(patches.transpose(0, 3, 1, 2))
        scores: NDArray[np.float32] = session.run(["scores"], {"patches": ordered})[0]
        return scores

    return score


def write_safetensors(network: nn.Module, path: Path) -> Score:
    """Write the state dict of a network, its normalisation included.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.
        path: The file.

    Returns:
        What a network that is loaded from the file answers.
    """
    safetensors = import_extra("safetensors.torch", "export")
    # Copies: the format refuses tensors that share memory, as the weights of one network at several sizes do.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()
    }
    path.write_bytes(safetensors.save(tensors))
    loaded = copy.deepcopy(network)
    loaded.load_state_dict(safetensors.load_file(path))
    return checkpoint_score(loaded)


def checkpoint_score(network: nn.Module) -> Score:
    """What a network answers in PyTorch.

    Args:
        network: Patches in, logits out; on the CPU, in evaluation mode.

    Returns:
        From patches to scores.
    """

    @torch.inference_mode()
    def score(patches: PatchArray) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = ScoringNetwork(network, "NHWC")(torch.from_numpy(patches))[0].numpy()
        return scores

    return score


def largest_difference(patches: PatchArray, first: Score, second: Score) -> float:
    """Compare two answers.

    Args:
        patches: Shape (count, 96, 96, 3); classified in batches of several sizes.
        first: From patches to scores.
        second: The same.

    Returns:
        The largest difference between two scores of a patch, 0..1; NaN if a score is.
    """
    # Sizes that no model was made for: a batch size that has become a constant shows.
    batches = np.split(patches, [1, 8, *range(72, len(patches), 64)])
    differences = [np.abs(first(batch) - second(batch)) for batch in batches if len(batch)]
    return float(np.concatenate(differences).max())


def card_markdown(card: Mapping[str, Any]) -> str:
    """A model card for readers.

    Args:
        card: The card as it lies beside the model in JSON.

    Returns:
        The same in Markdown.
    """
    normal, tumour = card["classes"]
    mean, std = (card["normalization"][name] for name in ("mean", "std"))
    parity, fingerprints = card["parity"], card["data_fingerprints"] or {"all splits": "not known"}
    ports = [
        [kind, port["name"], port["type"], f"({', '.join(map(str, port['shape']))})", port["meaning"]]
        for kind, port in [("in", card["input"]), *(("out", port) for port in card["outputs"])]
    ]
    class_name = card["network"]["class_path"].rpartition(".")[2]
    options = ", ".join(f"{name}={value!r}" for name, value in card["network"]["init_args"].items())
    usage = {
        "onnx": f"""\
session = onnxruntime.InferenceSession("{card["file"]}")
scores, logits = session.run(None, {{"patches": patches}})""",
        "safetensors": f"""\
network = pcam.models.{class_name}({options}).eval()
network.load_state_dict(safetensors.torch.load_file("{card["file"]}"))
scores = network(patches).sigmoid()""",
    }
    return f"""\
# {card["file"]}

Finds metastases in patches of lymph-node sections (PatchCamelyon): whether the centre 32x32 of 96x96 pixels has tumour.
For research; not a medical device.

- Run: `{card["run"]}`, {card["checkpoint"]} checkpoint, step {card["step"]:,}
- Network: `{card["network"]["class_path"]}`, trained from {card["trained_from"]}
- File: {card["bytes"]:,} bytes, SHA-256 `{card["sha256"]}`
- Made with: {", ".join(f"{name} {number}" for name, number in card["versions"].items())}

## In and out

| | name | type | shape | meaning |
| --- | --- | --- | --- | --- |
{_rows(ports)}

Class 0 is {normal}, class 1 is {tumour}. A pixel has {card["micrometres_per_pixel"]} um. Normalisation is inside:
(value / 255 - mean) / std with mean {mean} and std {std} of red, green and blue.

```python
{usage[card["format"]]}
```

## Chosen on the valid split

{_choices(card["chosen_on_valid"])}

## Agreement with the checkpoint

On {parity["patches"]:,} patches of the valid split (fingerprint `{parity["data_fingerprint"]}`) the scores differ by
{parity["largest_difference"]:.1e} at most; {parity["allowed"]} is allowed.

## Fingerprints of the data that it was trained on

| split | SHA-256 |
| --- | --- |
{_rows([split, f"`{fingerprint}`"] for split, fingerprint in fingerprints.items())}
"""


def _choices(choices: Mapping[str, Any] | None) -> str:
    if choices is None:
        return "Not known: `scripts/evaluate.py` chooses thresholds and temperature, and an export after it has them."
    temperature = choices["temperature"]
    calibration = (
        "undefined" if temperature is None else f"{temperature:.4f}; calibrated is sigmoid(logit / temperature)"
    )
    return f"""\
| operating point | tumour if the score (not calibrated) is above |
| --- | --- |
{_rows([name, f"{threshold:.6f}"] for name, threshold in choices["thresholds"].items())}

Temperature: {calibration}.

| metric | on valid |
| --- | --- |
{_rows([name, f"{value:.4f}"] for name, value in choices["metrics"].items())}"""


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
