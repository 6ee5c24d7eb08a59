"""Score whole-slide images: a map of each, and the files that QuPath opens."""

from pathlib import Path
from typing import Final, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from pcam.commands.options import BatchSize, warn_of_bfloat16
from pcam.door import Arguments, front_door, run_function
from pcam.options import ADAPTED_LAYERS, Adaptation, AdaptationMethod, CheckpointName, Precision, ThresholdName
from pcam.run_folder import RunFolder

OUTPUT: Final = Path("slides")
"""The folder of what is written, unless said otherwise."""


def slide(
    run: Path,
    slides: list[Path],
    output: Path = OUTPUT,
    mpp: PositiveFloat | None = None,
    tissue: Path | None = None,
    truth: Path | None = None,
    threshold: ThresholdName = "specificity_95",
    batch_size: BatchSize = 64,
    checkpoint: CheckpointName = "best",
    tta: bool = False,
    precision: Precision = "32-true",
    reestimate_bn: bool = False,
    enlarged_sizes: list[int] | None = None,
    adapt: Literal["all", "slide"] | None = None,
    adapt_by: AdaptationMethod = "stains",
    adapt_layers: PositiveInt = ADAPTED_LAYERS,
    root: Path | None = None,
) -> Path:
    """Score every 32x32 square of tissue of whole-slide images, each at 0.972 um per pixel in the centre of a window.

    A slide that was stopped is resumed, and one that is done is not scored again. A slide that cannot be read is
    named in the end, with exit code 1, and the others are scored.

    Args:
        run: The run folder, or a published run: one that comes with the package by its name, such as best, a folder
            that `pcam export --format hub` wrote, or hf://owner/name.
        slides: The slides: files of scanners (Aperio, Hamamatsu, Leica, Mirax, Philips, Sakura, Ventana, Zeiss, DICOM),
            images (PNG, JPEG, TIFF), or folders of these.
        output: The folder for slides.csv and, for each slide, a folder with scores.tif (the map), map.png, top.png,
            scores.geojson and regions.geojson (for QuPath) and slide.json.
        mpp: The micrometres per pixel of the slides, 0.01 to 10, instead of those that their files say.
        tissue: What is tissue: a file of GeoJSON, ASAP's XML or a mask, or a folder of files named as the slides; areas
            of the classes exclusion and Ignore* are cut out. Null finds it by PatchCamelyon's rule, without pen marks.
        truth: What is tumour, in the same forms, such as CAMELYON16's XML or masks: the scores are then evaluated, in
            metrics.json, froc.png and roc.png. A slide that the folder has no file for is normal.
        threshold: The threshold of regions and areas: one that was chosen on the valid split, or 0.5.
        batch_size: The number of windows that are classified at once, 1 to 65,536.
        checkpoint: The checkpoint that the weights are from: "best" by the experiment's `monitor`, "last", or
            "previous", the one before the last.
        tta: Score each window by the mean over the eight symmetries of the square (test-time augmentation), at eight
            times the cost.
        precision: "32-true", or "bf16-mixed" to compute convolutions in bfloat16, which is meant for GPUs and changes
            scores in their third digit.
        reestimate_bn: Estimate batch norm's running statistics again before scoring, on 10,000 un-augmented training
            patches.
        enlarged_sizes: The sizes in pixels, besides 96, that windows are evaluated at: some of those that the network
            was trained with, such as "[128]", or "[]" for 96 pixels only; null is all of them.
        adapt: Adapt the network before scoring, without labels, to the tissue of each "slide", or of "all" slides
            together, which should then be from one hospital. docs/shift.md says when it helps and when it may harm.
        adapt_by: How: "stains" brings the tissue to the staining of the training patches, "batch_norm" gives the first
            layers of batch norm the statistics of the tissue, "both" does one after the other.
        adapt_layers: How many layers of batch norm are adapted, counted from the first.
        root: The folder with the training data, which only a threshold that is not known yet, --reestimate_bn and
            --adapt read; null is the folder that the run was trained on.

    Returns:
        The folder.

    Raises:
        UserError: If the run cannot be used, or a slide cannot be read.
    """
    folder = RunFolder.find(Path(run))
    from pcam.slides.many import find_slides, score_slides
    from pcam.trained import TrainedRun

    found = find_slides(slides, output)
    trained = TrainedRun.load(
        folder,
        checkpoint,
        root=root,
        tta=tta,
        precision=precision,
        reestimate_bn=reestimate_bn,
        enlarged_sizes=enlarged_sizes,
    )
    warn_of_bfloat16(trained)
    score_slides(trained, found, output, mpp=mpp, tissue=tissue, truth=truth, threshold=threshold,
                 adaptation=None if adapt is None else Adaptation(adapt, adapt_by, adapt_layers),
                 batch_size=batch_size)  # fmt: skip
    return output


@front_door
def main(args: Arguments = None) -> None:
    """Score slides.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(slide, args, {"run": "RUN", "slides": "SLIDE", "root": "--data.root"})
