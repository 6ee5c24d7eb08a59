"""Write a run's classifier as a file for other programs, with a model card."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pcam.atomic import atomic_path
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import AxisOrder, CheckpointName, FormatName, Precision
from pcam.outputs import JSON, MARKDOWN, ONNX, SAFETENSORS, TORCHSCRIPT, Kind, check_output
from pcam.run_folder import RunFolder

PACKAGES: Final[dict[FormatName, tuple[str, ...]]] = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
    "torchscript": ("torch",),
}
"""The packages whose versions a card lists."""

TORCHSCRIPT_NAME: Final = "torchscript_model.pt"
"""The name that WSInfer's extension of QuPath looks for, in a folder with a config.json."""

NAMES: Final[dict[FormatName, str]] = {
    "onnx": "model.onnx", "safetensors": "model.safetensors", "torchscript": f"torchscript/{TORCHSCRIPT_NAME}",
}  # fmt: skip
"""Where each file lies in the folder export of a run."""

KINDS: Final[dict[FormatName, Kind]] = {"onnx": ONNX, "safetensors": SAFETENSORS, "torchscript": TORCHSCRIPT}


def export(
    run: Path,
    file_format: FormatName = "onnx",
    output: Path | None = None,
    axis_order: AxisOrder = "NHWC",
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    precision: Precision = "32-true",
    reestimate_bn: bool = False,
    enlarged_sizes: list[int] | None = None,
    root: Path | None = None,
) -> Path:
    """Write a classifier as one file, and beside it a model card in Markdown and JSON.

    The file is kept only if its scores of up to 1,000 patches of the valid split (125 with --tta) are those of the
    checkpoint.

    Args:
        run: The run folder.
        file_format: "onnx", a model that takes uint8 patches, normalises them itself and gives scores;
            "safetensors", the weights alone; or "torchscript", a model that WSInfer's extension of QuPath runs, in a
            folder with the config.json that it reads.
        output: The file; null is `RUN/export/model.onnx`, `model.safetensors` or `torchscript/torchscript_model.pt`.
        axis_order: The shape of the patches that an ONNX model takes: NHWC (any number, 96, 96, 3), as image files are
            decoded, or NCHW (any number, 3, 96, 96).
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Have an ONNX or TorchScript model score each patch by the mean over the eight symmetries of the square
            (test-time augmentation), at eight times the cost.
        precision: "32-true" is the only precision of an exported file; "bf16-mixed", which evaluate and predict take,
            is refused.
        reestimate_bn: Estimate batch norm's running statistics again before exporting, on 10,000 un-augmented training
            patches.
        enlarged_sizes: The sizes in pixels, besides 96, that patches are evaluated at: some of those that the network
            was trained with, such as "[128]", or "[]" for 96 pixels only; null is all of them.
        root: The folder with the data; null is the folder that the run was trained on.

    Returns:
        The file.

    Raises:
        UserError: If the run or its data cannot be used, if the format cannot hold what is asked for, or if the file
            gives other scores than the checkpoint.
    """
    if tta and file_format == "safetensors":
        raise UserError(
            "Expected --format onnx with --tta, but found safetensors, which holds weights alone and no symmetries; "
            "choose onnx, or leave out --tta and average the scores of the eight symmetries where the weights are used."
        )
    if precision != "32-true":
        raise UserError(
            f"Expected --precision 32-true for a file, but found {precision}: onnxruntime has no convolution in "
            f"bfloat16 for a CPU, and weights are stored in float32; leave it out."
        )
    folder = RunFolder.find(Path(run))
    final = output or folder.path / "export" / NAMES[file_format]
    if file_format == "torchscript" and final.name != TORCHSCRIPT_NAME:
        raise UserError(
            f"Expected --output to be named {TORCHSCRIPT_NAME}, which is what WSInfer's extension looks for, but found "
            f"{final}; name a folder of its own, and this file in it."
        )
    places = [final, *(final.with_name(f"{final.name}.{ending}") for ending in ("json", "md"))]
    config = [final.with_name("config.json")] if file_format == "torchscript" else []
    for place, kind in zip(
        [*places, *config], [KINDS[file_format], JSON, MARKDOWN, *[JSON] * len(config)], strict=True
    ):
        check_output(place, kind)
    import hashlib
    from dataclasses import replace
    from importlib.metadata import version

    from pcam.evaluation.export import (
        ALLOWED_DIFFERENCE,
        PARITY_PATCHES,
        checkpoint_score,
        largest_difference,
        write_onnx,
        write_safetensors,
        write_torchscript,
        wsinfer_config,
    )
    from pcam.evaluation.model_card import card_markdown, chosen_on_valid, network_facts, ports
    from pcam.trained import TrainedRun

    trained = TrainedRun.load(
        folder.path, checkpoint, root=root, tta=tta, reestimate_bn=reestimate_bn, enlarged_sizes=enlarged_sizes
    )
    settings = trained.settings
    store = trained.data.packed("valid")
    # With symmetries each patch is eight: so many passes through the network are enough. A copy, as PyTorch wants
    # memory that it may write to.
    patches = store.patches[: PARITY_PATCHES // (8 if tta else 1)].copy()
    network = settings.network(trained.network.cpu()).eval()
    with ExitStack() as stack:
        path, json_path, markdown_path = (stack.enter_context(atomic_path(place)) for place in places)
        if file_format == "onnx":
            score = write_onnx(network, axis_order, path)
        else:
            score = (write_safetensors if file_format == "safetensors" else write_torchscript)(network, path)
        difference = largest_difference(patches, checkpoint_score(network), score)
        if not difference <= ALLOWED_DIFFERENCE:
            raise UserError(
                f"Expected the scores of {final.name} to differ from the checkpoint's by {ALLOWED_DIFFERENCE:.0e} at "
                f"most, but found {difference:.1e} on {len(patches):,} patches of the valid split; nothing is left of "
                f"it: use the checkpoint, or other versions of {', '.join(PACKAGES[file_format])}."
            )
        card = {
            "file": final.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "format": file_format,
            **network_facts(
                folder,
                checkpoint,
                trained.step,
                trained.config,
                replace(settings, tta=False).network(trained.network),
                settings,
            ),
            "chosen_on_valid": chosen_on_valid(folder, settings, checkpoint, trained.step, store.fingerprint),
            **ports(file_format, axis_order),
            "parity": {
                "patches": len(patches),
                "data_fingerprint": store.fingerprint,
                "largest_difference": difference,
                "allowed": ALLOWED_DIFFERENCE,
            },
            "versions": {package: version(package) for package in PACKAGES[file_format]},
        }
        for place in config:
            contents = wsinfer_config(type(trained.network).__name__, card["run"])
            stack.enter_context(atomic_path(place)).write_text(json.dumps(contents, indent=2) + "\n")
        json_path.write_text(json.dumps(card, indent=2) + "\n")
        markdown_path.write_text(card_markdown(card))
    print(f"Largest difference from the checkpoint's scores on {len(patches):,} patches: {difference:.1e}")
    print("Model and card:", *places, *config, sep="\n  ")
    return final


@front_door
def main(args: Arguments = None) -> None:
    """Write a run's classifier as a file.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(export, args, {"run": "RUN", "file_format": "--format", "root": "--data.root"})
