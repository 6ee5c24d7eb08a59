"""Write a run's classifier for other programs and other people, with a model card."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pcam.atomic import atomic_folder, atomic_path
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import AxisOrder, CheckpointName, FormatName, Precision
from pcam.outputs import JSON, MARKDOWN, ONNX, SAFETENSORS, check_output
from pcam.published import WEIGHTS_FILE
from pcam.run_folder import RunFolder

if TYPE_CHECKING:
    from pcam.patches import PatchArray
    from pcam.trained import TrainedRun

PACKAGES: Final[dict[FormatName, tuple[str, ...]]] = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
    "hub": ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"),
}
"""The packages whose versions a card lists."""


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
        run: The run folder, or the name of a published run, such as best.
        file_format: "onnx", a model that takes uint8 patches, normalises them itself and gives scores; "safetensors",
            the weights alone; or "hub", a folder in the form of the Hugging Face hub, which every command takes as a
            run, with config, weights (the large ones as float16 if that moves no score by more than .001), an ONNX
            model, what was measured and a model card.
        output: The file or the folder; null is `RUN/export/model.onnx`, `model.safetensors` or `hub`.
        axis_order: The shape of the patches that an ONNX model takes: NHWC (any number, 96, 96, 3), as image files are
            decoded, or NCHW (any number, 3, 96, 96).
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Have an ONNX model score each patch by the mean over the eight symmetries of the square (test-time
            augmentation), at eight times the cost.
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
    if tta and file_format != "onnx":
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
    is_folder = file_format == "hub"
    final = output or folder.output / "export" / ("hub" if is_folder else f"model.{file_format}")
    places = [final] if is_folder else [final, *(final.with_name(f"{final.name}.{end}") for end in ("json", "md"))]
    for place, kind in zip(places, (ONNX if file_format == "onnx" else SAFETENSORS, JSON, MARKDOWN), strict=False):
        if not is_folder:
            check_output(place, kind)
    from pcam.evaluation.export import (
        ALLOWED_DIFFERENCE,
        checkpoint_score,
        largest_difference,
        write_onnx,
        write_safetensors,
    )
    from pcam.evaluation.model_card import card_markdown
    from pcam.evaluation.publishing import HALF_DIFFERENCE, write_record, write_weights
    from pcam.trained import TrainedRun

    trained = TrainedRun.load(
        run, checkpoint, root=root, tta=tta, reestimate_bn=reestimate_bn, enlarged_sizes=enlarged_sizes
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
        if is_folder:
            temporary = stack.enter_context(atomic_folder(final, "for the published run"))
            stored, difference = write_weights(network, temporary / WEIGHTS_FILE, trained.step, patches)
            parity = check(WEIGHTS_FILE, difference, HALF_DIFFERENCE)
            score = write_onnx(stored, axis_order, temporary / "model.onnx")
            check("model.onnx", largest_difference(patches, checkpoint_score(stored), score), ALLOWED_DIFFERENCE)
            card = _card(trained, file_format, axis_order, temporary / WEIGHTS_FILE, WEIGHTS_FILE, parity)
            write_record(folder, temporary, checkpoint, card, trained.config)
        else:
            path, json_path, markdown_path = (stack.enter_context(atomic_path(place)) for place in places)
            score = write_onnx(network, axis_order, path) if file_format == "onnx" else write_safetensors(network, path)
            difference = largest_difference(patches, checkpoint_score(network), score)
            parity = check(final.name, difference, ALLOWED_DIFFERENCE)
            card = _card(trained, file_format, axis_order, path, final.name, parity)
            json_path.write_text(json.dumps(card, indent=2) + "\n")
            markdown_path.write_text(card_markdown(card))
    print("Model and card:", *places, sep="\n  ")
    return final


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
