"""Show where in a patch a classifier finds evidence, and measure how much of it is in the centre."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from pcam.atomic import atomic_path
from pcam.commands.options import warn_of_bfloat16
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.options import CheckpointName, Precision, SplitName
from pcam.outputs import PNG, check_output
from pcam.run_folder import RunFolder, run_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pcam.evaluation.explain import CentreShare
    from pcam.patches import PatchArray
    from pcam.trained import TrainedRun


def explain(
    runs: list[Path],
    inputs: list[Path] | None = None,
    output: Path | None = None,
    split: SplitName = "valid",
    shown: PositiveInt = 32,
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    precision: Precision = "32-true",
    reestimate_bn: bool = False,
    enlarged_sizes: list[int] | None = None,
    root: Path | None = None,
) -> list[Path]:
    """Draw where in patches a network finds evidence; without --input, also measure how much of it is in the centre.

    The attribution is HiResCAM, which for MobileNetV2 is the same as Grad-CAM, with both signs: for tumour and against
    it. What is measured is the mean share of it in the centre 32x32 pixels, which decide the label; by chance it would
    be 1/9. It is printed, and written with the sheet of patches to `explanation.json` and `explanation.png` in
    `RUN/evaluation/<split>/`, or in `<split>_tta/` and so on.

    Args:
        runs: The run folders, or published runs: those that come with the package by their names, such as best, folders
            that `pcam export --format hub` wrote, or hf://owner/name.
        inputs: Patches to draw instead of measuring over a split: a folder with its subfolders, image files, or HDF5
            files with the key x. The label is shown if the folder of a file is called 0 or 1.
        output: The PNG file for the sheet of --input; null is explanation.png.
        split: The split to measure over, without --input. The test split is read only if you ask for it.
        shown: The number of patches in a sheet, at least 1: the first of --input, or half of them of each class, drawn
            at random from the split.
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Explain the mean score over the eight symmetries of the square (test-time augmentation), at eight times
            the cost.
        precision: "32-true", or "bf16-mixed" to compute the convolutions of the shown scores in bfloat16; the
            attribution is always computed in float32.
        reestimate_bn: Estimate batch norm's running statistics again before explaining, on 10,000 un-augmented
            training patches.
        enlarged_sizes: The sizes in pixels, besides 96, that patches are evaluated at: some of those that the network
            was trained with, such as "[128]", or "[]" for 96 pixels only; null is all of them. The attribution is that
            of the features at 96 pixels.
        root: The folder with the data; null is the folder that each run was trained on.

    Returns:
        The sheets, one for each run.

    Raises:
        UserError: If a run, its data or an image cannot be used, or the network has no convolutional features.
    """
    folders = [RunFolder.find(Path(run)) for run in runs]
    if inputs is None and output is not None:
        raise UserError("Expected --output with --input only, but found it without; a split's sheet has its place.")
    if inputs is not None and len(folders) != 1:
        raise UserError(f"Expected one run with --input, but found {len(folders)}; explain them one by one.")

    def load(folder: RunFolder) -> "TrainedRun":
        from pcam.trained import TrainedRun

        return TrainedRun.load(
            folder,
            checkpoint,
            root=root,
            tta=tta,
            precision=precision,
            reestimate_bn=reestimate_bn,
            enlarged_sizes=enlarged_sizes,
        )

    if inputs is not None:
        output = output or Path("explanation.png")
        check_output(output, PNG, inputs)
        _explain_inputs(lambda: load(folders[0]), inputs, shown, output)
        return [output]
    from pcam.evaluation.tables import print_centre_shares
    from pcam.trained import check_same_patches

    loaded = [load(folder) for folder in folders]
    check_same_patches(loaded, [split])
    warn_of_bfloat16(loaded[0])
    shares = {
        name: _explain_split(name, run, split, shown) for name, run in zip(run_names(folders), loaded, strict=True)
    }
    print_centre_shares(shares, split)
    return [_output(run, split) / "explanation.png" for run in loaded]


def _explain_inputs(load: "Callable[[], TrainedRun]", inputs: list[Path], shown: int, output: Path) -> None:
    """Draw a sheet of the first patches of the inputs."""
    from pcam.data.inputs import count_inputs, read_inputs

    count = count_inputs(inputs)
    batch = next(read_inputs(inputs, shown))
    if batch.unreadable:
        raise UserError(batch.unreadable[0][1])
    class_folders = [(inputs[0] / name).parent.name for name in batch.ids]  # an id is below the folder, or a whole path
    labels = [int(folder) if folder in ("0", "1") else None for folder in class_folders]
    run = load()
    warn_of_bfloat16(run)
    _save(_draw(run_names([run.folder])[0], run, batch.patches, labels, batch.ids), output)
    print(f"{len(batch.ids):,} of {count:,} patches explained: {output}")


def _explain_split(name: str, run: "TrainedRun", split: SplitName, shown: int) -> "dict[str, CentreShare]":
    """Measure over a split, and write the centre share of each class and a sheet."""
    import numpy as np

    from pcam.evaluation.explain import CHANCE, centre_shares

    store = run.data.packed(split)
    shares = centre_shares(store, run.attributions, f"Explaining {run.folder.path}")
    record = {
        "split": split,
        "checkpoint": run.checkpoint,
        "step": run.step,
        "data_fingerprint": store.fingerprint,
        "attribution": "HiResCAM of the last convolutional features, for the logit",
        "chance": CHANCE,
        "centre_share": {class_name: _record(share) for class_name, share in shares.items()},
    }
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(store.labels == label))[: -(-shown // 2)] for label in (1, 0)]
    sample = np.concatenate(drawn)
    ids = store.ids()
    figure = _draw(
        f"{name} on {split}",
        run,
        store.patches[sample],
        store.labels[sample].tolist(),
        [ids[row] for row in sample],
    )
    output = _output(run, split)
    _save(figure, output / "explanation.png")
    with atomic_path(output / "explanation.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"Explanation: {output / 'explanation.json'}, {output / 'explanation.png'}")
    return shares


def _output(run: "TrainedRun", split: SplitName) -> Path:
    return run.folder.evaluation(split, run.settings.suffix)


def _record(share: "CentreShare") -> dict[str, int | float | list[float] | None]:
    defined = not math.isnan(share.mean)
    return {
        "patches": share.patches,
        "without_evidence": share.without_evidence,
        "mean": share.mean if defined else None,
        "interval": list(share.interval) if defined else None,
    }


def _draw(
    name: str, run: "TrainedRun", patches: "PatchArray", labels: Sequence[int | None], ids: Sequence[str]
) -> "Figure":
    from pcam.evaluation.sheets import overlay_sheet

    attributions, _ = run.attributions(patches)
    title = "Evidence for and against tumour: " + ", ".join([name, *run.settings.words])
    return overlay_sheet(patches, attributions, run.scores(patches), labels, ids, title)


def _save(figure: "Figure", path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


@front_door
def main(args: Arguments = None) -> None:
    """Show where in a patch a classifier finds evidence.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(explain, args, {"runs": "RUN", "inputs": "--input", "root": "--data.root"})
