"""Write a run's classifier for other programs and other people, with a model card."""

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pcam.atomic import atomic_folder, atomic_path
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import AxisOrder, CheckpointName, FormatName, Precision
from pcam.outputs import JSON, MARKDOWN, ONNX, SAFETENSORS, TORCHSCRIPT, Kind, check_output
from pcam.published import WEIGHTS_FILE
from pcam.run_folder import RunFolder

if TYPE_CHECKING:
    from pcam.data.stain import Staining
    from pcam.patches import PatchArray
    from pcam.trained import TrainedRun

PACKAGES: Final[dict[FormatName, tuple[str, ...]]] = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
    "torchscript": ("torch",),
    "hub": ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"),
}
"""The packages whose versions a card lists."""

TORCHSCRIPT_NAME: Final = "torchscript_model.pt"
"""The name that WSInfer's extension of QuPath looks for, in a folder with a config.json."""

NAMES: Final[dict[FormatName, str]] = {
    "onnx": "model.onnx",
    "safetensors": "model.safetensors",
    "torchscript": f"torchscript/{TORCHSCRIPT_NAME}",
    "hub": "hub",
}
"""Where each file lies in the folder export of a run."""

KINDS: Final[dict[FormatName, Kind]] = {"onnx": ONNX, "safetensors": SAFETENSORS, "torchscript": TORCHSCRIPT}
"""The kind of each file."""


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
    """Write a classifier as one file with a model card beside it in Markdown and JSON, or as a folder to publish.

    The file is kept only if its scores of up to 1,000 patches of the valid split (125 with --tta) are those of the
    checkpoint. Where the run's data are not at hand, synthetic patches take their place.

    Args:
        run: The run folder, or a published run: one that comes with the package by its name, such as best, a folder
            that this command wrote with --format hub, or hf://owner/name.
        file_format: "onnx", a model that takes uint8 patches, normalises them itself and gives scores; "safetensors",
            the weights alone; "torchscript", a model that WSInfer's extension of QuPath runs, in a folder with the
            config.json that it reads; or "hub", a folder in the form of the Hugging Face hub, which every command takes
            as a run, with config, weights (the large ones as float16 if that moves no score by more than .001), an
            ONNX model, what was measured and a model card.
        output: The file or the folder; null is `RUN/export/model.onnx`, `model.safetensors`,
            `torchscript/torchscript_model.pt` or `hub`.
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
        The file or the folder.

    Raises:
        UserError: If the run or its data cannot be used, if the format cannot hold what is asked for, or if the file
            gives other scores than the checkpoint.
    """
    if tta and file_format in ("safetensors", "hub"):
        raise UserError(
            f"Expected --format onnx with --tta, but found {file_format}, which holds weights alone and no symmetries; "
            "choose onnx, or leave out --tta and average the scores of the eight symmetries where the weights are used."
        )
    if precision != "32-true":
        raise UserError(
            f"Expected --precision 32-true for a file, but found {precision}: onnxruntime has no convolution in "
            f"bfloat16 for a CPU, and weights are stored in float32; leave it out."
        )
    folder = RunFolder.find(Path(run))
    final = output or folder.output / "export" / NAMES[file_format]
    places = _places(final, file_format)
    from pcam.evaluation.export import (
        ALLOWED_DIFFERENCE,
        checkpoint_score,
        largest_difference,
        write_onnx,
        write_safetensors,
        write_torchscript,
        wsinfer_config,
    )
    from pcam.evaluation.model_card import card_markdown
    from pcam.evaluation.publishing import HALF_DIFFERENCE, write_record, write_weights
    from pcam.trained import TrainedRun

    trained = TrainedRun.load(
        folder, checkpoint, root=root, tta=tta, reestimate_bn=reestimate_bn, enlarged_sizes=enlarged_sizes
    )
    patches, fingerprint = _parity_patches(trained, is_root_given=root is not None)
    network = trained.settings.network(trained.network.cpu()).eval()

    def check(name: str, difference: float, allowed: float) -> dict[str, Any]:
        if not difference <= allowed:
            raise UserError(
                f"Expected the scores of {name} to differ from the checkpoint's by {allowed:.0e} at most, but found "
                f"{difference:.1e} on {len(patches):,} {_patches_in_words(fingerprint)}; nothing is left of it: use "
                f"the checkpoint, or other versions of {', '.join(PACKAGES[file_format])}."
            )
        print(f"Largest difference from the checkpoint's scores on {len(patches):,} patches: {difference:.1e} ({name})")
        return {
            "patches": len(patches),
            "of": _patches_in_words(fingerprint),
            "data_fingerprint": fingerprint,
            "largest_difference": difference,
            "allowed": allowed,
        }

    with ExitStack() as stack:
        if file_format == "hub":
            temporary = stack.enter_context(atomic_folder(final, "for the published run"))
            stored, difference = write_weights(network, temporary / WEIGHTS_FILE, trained.step, patches)
            parity = check(WEIGHTS_FILE, difference, HALF_DIFFERENCE)
            score = write_onnx(stored, temporary / "model.onnx", axis_order)
            check("model.onnx", largest_difference(patches, checkpoint_score(stored), score), ALLOWED_DIFFERENCE)
            card = _card(trained, file_format, axis_order, temporary / WEIGHTS_FILE, WEIGHTS_FILE, parity)
            write_record(folder, temporary, checkpoint, card, trained.config, _staining(trained))
        else:
            path, *others = (stack.enter_context(atomic_path(place)) for place in places)
            writers = {"safetensors": write_safetensors, "torchscript": write_torchscript}
            score = writers.get(file_format, partial(write_onnx, axis_order=axis_order))(network, path)
            difference = largest_difference(patches, checkpoint_score(network), score)
            parity = check(final.name, difference, ALLOWED_DIFFERENCE)
            card = _card(trained, file_format, axis_order, path, final.name, parity)
            contents = [json.dumps(card, indent=2) + "\n", card_markdown(card)]
            if file_format == "torchscript":
                contents += [json.dumps(wsinfer_config(type(trained.network).__name__, card["run"]), indent=2) + "\n"]
            for other, content in zip(others, contents, strict=True):
                other.write_text(content, encoding="utf-8")
    print("Model and card:", *places, sep="\n  ")
    return final


def _places(final: Path, file_format: FormatName) -> list[Path]:
    """List the files that are written, the exported one first, once nothing else would be lost there.

    Raises:
        UserError: If something else is there, or WSInfer would not find the file.
    """
    if file_format == "hub":
        return [final]
    if file_format == "torchscript" and final.name != TORCHSCRIPT_NAME:
        raise UserError(
            f"Expected --output to be named {TORCHSCRIPT_NAME}, which is what WSInfer's extension looks for, but found "
            f"{final}; name a folder of its own, and this file in it."
        )
    places = {
        final: KINDS[file_format],
        final.with_name(f"{final.name}.json"): JSON,
        final.with_name(f"{final.name}.md"): MARKDOWN,
    }
    if file_format == "torchscript":
        places |= {final.with_name("config.json"): JSON}
    for place, kind in places.items():
        check_output(place, kind)
    return list(places)


def _parity_patches(run: "TrainedRun", *, is_root_given: bool) -> "tuple[PatchArray, str | None]":
    """The patches that scores are compared on, and the fingerprint of their split; None where synthetic ones stand in.

    A run whose data are not on this machine, as a published one, can be exported as well.
    """
    from pcam.data.synthetic import synthesize
    from pcam.evaluation.export import PARITY_PATCHES

    # With symmetries each patch is eight: so many passes through the network are enough.
    count = PARITY_PATCHES // (8 if run.settings.tta else 1)
    if not is_root_given and not run.data.root.exists():
        return synthesize(count // 4, seed=0)[0], None
    store = run.data.packed("valid")
    return store.patches[:count].copy(), store.fingerprint  # a copy, as PyTorch wants memory that it may write to


def _patches_in_words(fingerprint: str | None) -> str:
    return "synthetic patches" if fingerprint is None else "patches of the valid split"


def _staining(run: "TrainedRun") -> "Staining | None":
    """Find the staining of the training patches, where these can be read."""
    try:
        return run.training_staining()
    except UserError:
        return None


def _card(
    run: "TrainedRun", file_format: FormatName, axis_order: AxisOrder, path: Path, name: str, parity: dict[str, Any]
) -> dict[str, Any]:
    """Collect what the card of a file says.

    Args:
        run: The run, with its network on the CPU.
        file_format: The format of the file.
        axis_order: The axis order of the input.
        path: Where the file is now.
        name: What it will be called.
        parity: How its scores compare with the checkpoint's.

    Returns:
        The card as it lies in JSON.
    """
    import hashlib
    from importlib.metadata import version

    from pcam.evaluation.model_card import chosen_on_valid, network_facts, ports

    plain = replace(run.settings, tta=False).network(run.network)
    facts = network_facts(run.folder, run.checkpoint, run.step, run.config, plain, run.settings)
    # Where the data are not at hand, the split that the run was trained beside is the one that was evaluated.
    fingerprint = parity["data_fingerprint"] or (facts["data_fingerprints"] or {}).get("valid", "")
    return {
        "file": name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": file_format,
        **facts,
        "chosen_on_valid": chosen_on_valid(run.folder, run.settings, run.checkpoint, run.step, fingerprint),
        **ports(file_format, axis_order),
        "parity": parity,
        "versions": {package: version(package) for package in PACKAGES[file_format]},
    }


@front_door
def main(args: Arguments = None) -> None:
    """Write a run's classifier as a file.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(export, args, {"run": "RUN", "file_format": "--format", "root": "--data.root"})
