#!/usr/bin/env python
"""Show where in a patch a classifier looks, and measure how much of that is the centre, where the label lives.

python scripts/explain.py lightning_logs/imagenet_dropout/version_0 --input DIR
python scripts/explain.py lightning_logs/*/version_0 --split valid
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import expit

from pcam.atomic import atomic_path
from pcam.cli import AS_TRAINED, Arguments, DataPlace, Parser, PCamCLI, check_same_patches, front_door, load_run
from pcam.data.inputs import count_inputs, read_inputs
from pcam.errors import UserError
from pcam.evaluation.explain import CHANCE, Attributions, CentreShare, centre_share, explain, overlay_sheet
from pcam.evaluation.figures import interval_words
from pcam.evaluation.predictions import check_finite
from pcam.evaluation.statistics import independent_units
from pcam.options import CheckpointName, SplitName
from pcam.patches import CLASS_NAMES, Logits, PatchArray
from pcam.run_folder import RunFolder, run_names

BATCH_SIZE: Final = 128


def explain_runs(
    runs: list[Path],
    inputs: list[Path] | None = None,
    output: Path | None = None,
    split: SplitName = "valid",
    shown: PositiveInt = 32,
    checkpoint: CheckpointName = "best",
    data: DataPlace = AS_TRAINED,
) -> None:
    """Draw over patches where a network looks; without --input, also measure how much of that lies in the centre.

    The attribution is HiResCAM, which for MobileNetV2 is the same as Grad-CAM, with both signs: for tumour and against
    it. The measure is the mean share of it in the centre 32x32 pixels, which decide the label; chance is 1/9.
    It is printed, and written with the sheet to `RUN/evaluation/<split>/explanation.json` and `explanation.png`.

    Args:
        runs: The run folders.
        inputs: Patches to draw: a folder with its subfolders, image files, or HDF5 files with the key x. The label is
            shown where it is the name of a file's folder, 0 or 1.
        output: PNG file for the sheet of --input; null is explanation.png.
        split: Which split to measure over, without --input. The test split is read only when asked for.
        shown: Patches in a sheet: the first of --input, or as many of each class drawn at random from the split.
        checkpoint: Which weights: the best by the experiment's `monitor`, or the last.
        data: Where the patches of the split are.
    """
    folders = [RunFolder.find(run) for run in runs]
    if inputs is None:
        if output is not None:
            raise UserError("Expected --output with --input only, but found it without; a split's sheet has its place.")
        loaded = [load_run(folder, checkpoint, data.root) for folder in folders]
        check_same_patches(folders, loaded, [split])
        measures = [
            _explain_split(folder, cli, checkpoint, split, shown) for folder, cli in zip(folders, loaded, strict=True)
        ]
        report(dict(zip(run_names(folders), measures, strict=True)), split)
    elif len(folders) == 1:
        _explain_inputs(folders[0], checkpoint, inputs, shown, output or Path("explanation.png"))
    else:
        raise UserError(f"Expected one run with --input, but found {len(folders)}; explain them one by one.")


def _explain_inputs(run: RunFolder, checkpoint: CheckpointName, inputs: list[Path], shown: int, output: Path) -> None:
    count = count_inputs(inputs)
    batch = next(read_inputs(inputs, shown))
    if batch.unreadable:
        raise UserError(batch.unreadable[0][1])
    class_folders = [(inputs[0] / name).parent.name for name in batch.ids]  # an id is below the folder, or a whole path
    labels = [int(folder) if folder in ("0", "1") else None for folder in class_folders]
    _save(_draw(run, load_run(run, checkpoint), batch.patches, labels), output)
    print(f"{len(batch.ids):,} of {count:,} patches explained: {output}")


def _explain_split(
    run: RunFolder, cli: PCamCLI, checkpoint: CheckpointName, split: SplitName, shown: int
) -> dict[str, CentreShare]:
    """Measure over a split, and write the measure and a sheet; return the measure of each class."""
    store = cli.datamodule.packed(split)
    rows = np.arange(len(store))
    shares = np.concatenate(
        [
            centre_share(_explain(run, cli, store.patches[batch])[0]).double().numpy()
            for batch in track(np.split(rows, rows[BATCH_SIZE::BATCH_SIZE]), f"Explaining {run.path}")
        ]
    )
    units = np.array(independent_units(store.pixel_hashes(), store.slides()))
    measures = {
        name: CentreShare.measure(shares[store.labels == label], units[store.labels == label].tolist())
        for label, name in enumerate(CLASS_NAMES)
    }
    record = {
        "split": split,
        "checkpoint": checkpoint,
        "step": cli.checkpoint_step,
        "data_fingerprint": store.fingerprint,
        "attribution": "HiResCAM of the last convolutional features, for the logit",
        "chance": CHANCE,
        "centre_share": {name: _record(measure) for name, measure in measures.items()},
    }
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(rows[store.labels == label])[: -(-shown // 2)] for label in (1, 0)]
    sample = np.concatenate(drawn)
    figure = _draw(run, cli, store.patches[sample], store.labels[sample].tolist())
    output = run.evaluation(split)
    _save(figure, output / "explanation.png")
    with atomic_path(output / "explanation.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Explanation: {output / 'explanation.json'}, {output / 'explanation.png'}")
    return measures


def _record(measure: CentreShare) -> dict[str, int | float | list[float] | None]:
    defined = not math.isnan(measure.mean)
    return {
        "patches": measure.patches,
        "without_evidence": measure.without_evidence,
        "mean": measure.mean if defined else None,
        "interval": list(measure.interval) if defined else None,
    }


def _explain(run: RunFolder, cli: PCamCLI, patches: PatchArray) -> tuple[Attributions, Logits]:
    """Explain patches as they lie on disk, on the device that the trainer chose; answer on the CPU."""
    device = cli.trainer.strategy.root_device
    network = cli.model.network.to(device).eval()
    attributions, logits = explain(network, torch.from_numpy(patches).to(device).permute(0, 3, 1, 2))
    check_finite(logits.cpu().numpy(), str(run.path))
    return attributions.cpu(), logits.cpu()


def _draw(run: RunFolder, cli: PCamCLI, patches: PatchArray, labels: Sequence[int | None]) -> Figure:
    attributions, logits = _explain(run, cli, patches)
    return overlay_sheet(patches, attributions, expit(logits.double().numpy()), labels)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def report(runs: Mapping[str, Mapping[str, CentreShare]], split: SplitName) -> None:
    """Print how runs compare.

    Args:
        runs: The measure of each class, of each run.
        split: What was measured over.
    """
    table = Table(
        title=f"Mean share of HiResCAM in the centre, {split}, 95 % intervals; chance is {CHANCE:.4f}",
        caption="none: patches without evidence anywhere, which have no share",
    )
    table.add_column("run", overflow="fold")
    for name in CLASS_NAMES:
        table.add_column(f"label {name}", justify="right", no_wrap=True)
    for run, measures in runs.items():
        table.add_row(run, *(_words(measure) for measure in measures.values()))
    Console().print(table)


def _words(measure: CentreShare) -> str:
    none = f"none: {measure.without_evidence:,} of {measure.patches:,}"
    if math.isnan(measure.mean):
        return f"undefined\n{none}"
    return f"{measure.mean:.4f}\n{interval_words(measure.interval)}\n{none}"


@front_door
def main(args: Arguments = None) -> None:
    """Show where in a patch a classifier looks.

    Args:
        args: The command line; None takes the process's own.
    """
    parser = Parser(description="Show where in a patch a classifier looks, and measure how much of that is the centre.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Run folders.")
    parser.add_argument("--input", type=Path, nargs="+", help="Patches to draw, instead of measuring over a split.")
    parser.add_function(explain_runs, skip={"runs", "inputs"})
    options = parser.instantiate(parser.parse_args(args))
    explain_runs(inputs=options.pop("input"), **options)


if __name__ == "__main__":
    main()
