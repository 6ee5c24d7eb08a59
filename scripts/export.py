#!/usr/bin/env python
"""Write a run's classifier as a file for other programs, with a model card.

python scripts/export.py lightning_logs/imagenet_dropout/version_0 --format onnx
"""

import hashlib
import json
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

from pcam.atomic import atomic_path
from pcam.cli import AS_TRAINED, Arguments, DataPlace, Parser, PCamCLI, front_door, load_run
from pcam.errors import UserError
from pcam.evaluation.export import (
    INPUT_SHAPES,
    card_markdown,
    checkpoint_score,
    largest_difference,
    write_onnx,
    write_safetensors,
)
from pcam.options import AxisOrder, CheckpointName, FormatName
from pcam.patches import CLASS_NAMES, MICROMETRES_PER_PIXEL
from pcam.run_folder import RunFolder, run_names

PARITY_PATCHES: Final = 1000
"""Patches of the valid split, at most, on which a file must answer as the checkpoint does. Their order in the packed
store is that of a hash, so the first ones are a random sample."""

ALLOWED_DIFFERENCE: Final = 1e-4
"""Between a file's score of a patch and the checkpoint's: no figure or table shows as much."""

PACKAGES: Final[dict[FormatName, tuple[str, ...]]] = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
}
"""Whose versions the card has."""


def export(
    run: Path,
    file_format: FormatName,
    output: Path | None = None,
    layout: AxisOrder = "NHWC",
    checkpoint: CheckpointName = "best",
    data: DataPlace = AS_TRAINED,
) -> None:
    """Write a classifier as one file, and beside it a model card in Markdown and JSON.

    The file is kept only if its scores of up to 1,000 patches of the valid split are the checkpoint's.

    Args:
        run: The run folder.
        file_format: onnx, a model that takes uint8 patches, normalises them itself and gives scores; or safetensors,
            the weights alone.
        output: The file; null is `RUN/export/model.onnx` or `model.safetensors`.
        layout: How an ONNX model takes patches: NHWC (any number, 96, 96, 3), as image files are decoded, or NCHW (any
            number, 3, 96, 96).
        checkpoint: Which weights: the best by the experiment's `monitor`, or the last.
        data: Where the patches are.
    """
    folder = RunFolder.find(run)
    cli = load_run(folder, checkpoint, data.root)
    store = cli.datamodule.packed("valid")
    patches = store.patches[:PARITY_PATCHES].copy()  # PyTorch wants memory it may write to
    network = cli.model.network.cpu().eval()
    final = output or run / "export" / f"model.{file_format}"
    places = [final, *(final.with_name(f"{final.name}.{ending}") for ending in ("json", "md"))]
    with ExitStack() as stack:
        path, json_path, markdown_path = (stack.enter_context(atomic_path(place)) for place in places)
        score = write_onnx(network, layout, path) if file_format == "onnx" else write_safetensors(network, path)
        difference = largest_difference(patches, checkpoint_score(network), score)
        if not difference <= ALLOWED_DIFFERENCE:
            raise UserError(
                f"Expected the scores of {final.name} to differ from the checkpoint's by {ALLOWED_DIFFERENCE:.0e} at "
                f"most, but found {difference:.1e} on {len(patches):,} patches of the valid split; nothing is left of "
                f"it: use the checkpoint, or other versions of {', '.join(PACKAGES[file_format])}."
            )
        parity = {
            "patches": len(patches),
            "data_fingerprint": store.fingerprint,
            "largest_difference": difference,
            "allowed": ALLOWED_DIFFERENCE,
        }
        card = {
            "file": final.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "format": file_format,
            **_network_facts(folder, checkpoint, cli),
            "chosen_on_valid": _chosen_on_valid(folder, checkpoint, cli.checkpoint_step, store.fingerprint),
            **_ports(file_format, layout),
            "parity": parity,
            "versions": {package: version(package) for package in PACKAGES[file_format]},
        }
        json_path.write_text(json.dumps(card, indent=2) + "\n")
        markdown_path.write_text(card_markdown(card))
    print(f"Largest difference from the checkpoint's scores on {len(patches):,} patches: {difference:.1e}")
    print("Model and card:", *places, sep="\n  ")


def _network_facts(run: RunFolder, checkpoint: CheckpointName, cli: PCamCLI) -> dict[str, Any]:
    network = cli.config.model.network
    trained_from = yaml.safe_load(run.config.read_text())["model"]["network"]["init_args"].get("weights")
    normalization = cli.model.network.normalization
    environment = run.path / "environment.json"
    return {
        "run": run_names([run])[0],
        "checkpoint": checkpoint,
        "step": cli.checkpoint_step,
        "network": {"class_path": network.class_path, "init_args": network.init_args.as_dict()},
        "trained_from": "random weights" if trained_from is None else Path(trained_from).name,
        "classes": list(CLASS_NAMES),
        "normalization": {
            name: [round(value / 255, 6) for value in getattr(normalization, name).flatten().tolist()]
            for name in ("mean", "std")
        },
        "micrometres_per_pixel": MICROMETRES_PER_PIXEL,
        "data_fingerprints": json.loads(environment.read_text())["data_fingerprints"] if environment.exists() else None,
    }


def _chosen_on_valid(
    run: RunFolder, checkpoint: CheckpointName, step: int, data_fingerprint: str
) -> dict[str, Any] | None:
    """What evaluation chose for these weights on this valid split; None if it has not seen both."""
    path = run.evaluation("valid") / "metrics.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    found = [record.get(key) for key in ("checkpoint", "step", "data_fingerprint")]
    if found != [checkpoint, step, data_fingerprint] or "operating_points" not in record:
        return None
    return {
        "temperature": record["calibration"]["temperature"],
        "thresholds": {name: point["threshold"] for name, point in record["operating_points"].items()},
        "metrics": {name: value for name, value in record["metrics"].items() if value is not None},
    }


def _ports(file_format: FormatName, layout: AxisOrder) -> dict[str, Any]:
    """What goes in and what comes out."""
    scores = {"name": "scores", "type": "float32", "shape": ["any"], "meaning": "probability of class 1, 0..1"}
    logits = {"name": "logits", "type": "float32", "shape": ["any"], "meaning": "log-odds of class 1"}
    # The weights alone are for the network in this package, which takes NCHW and gives logits.
    shape = ["any", *INPUT_SHAPES[layout if file_format == "onnx" else "NCHW"]]
    return {
        "input": {"name": "patches", "type": "uint8", "shape": shape, "meaning": "RGB, 0..255"},
        "outputs": [scores, logits] if file_format == "onnx" else [logits],
    }


@front_door
def main(args: Arguments = None) -> None:
    """Write a run's classifier as a file.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Write a run's classifier as a file for other programs, with a model card.")
    parser.add_argument("run", type=Path, metavar="RUN", help="The run folder.")
    parser.add_argument(
        "--format", type=FormatName, default="onnx", help="onnx, a whole model, or safetensors, its weights alone."
    )
    parser.add_function(export, skip={"run", "file_format"})
    options = parser.instantiate(parser.parse_args(args))
    export(file_format=options.pop("format"), **options)


if __name__ == "__main__":
    main()
