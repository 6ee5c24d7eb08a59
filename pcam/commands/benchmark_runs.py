"""The benchmarks of what is done with a trained run: slides, and adaptation to another hospital."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from pcam.benchmark.options import SYNTHETIC, MeasuredPatches
from pcam.errors import UserError
from pcam.options import AdaptationMethod, SplitName

if TYPE_CHECKING:
    from pcam.benchmark.race import Contestant


def benchmark_slide(
    run: Path,
    data: MeasuredPatches = SYNTHETIC,
    side: PositiveInt = 5000,
    large_side: PositiveInt = 50_000,
    batch_size: PositiveInt = 64,
    rounds: PositiveInt = 3,
    output: Path = Path("benchmark_slide.json"),
) -> None:
    """Measure how fast a slide is scored, on the CPU, and in how much memory.

    Compares the command slide with the ceiling, its network on windows that lie in memory, and with a plain loop that
    reads and classifies one window after the other. The slides are pyramidal TIFFs of 0.243 um per pixel, made of
    patches; a large one has as much tissue, in white.

    Args:
        run: The run folder, whose best checkpoint is used.
        data: The patches that slides are made of.
        side: The width and height of the slide in pixels, at least 1,152, all of it tissue.
        large_side: The width and height of the slide that shows whether memory grows.
        batch_size: Number of windows in a batch, at least 1.
        rounds: Number of rounds, at least 1.
        output: JSON file for the results.

    Raises:
        UserError: If a slide is to be smaller than three patches, or the large one smaller than the other.
    """
    import torch

    from pcam.benchmark.patches import open_patches
    from pcam.benchmark.race import race
    from pcam.benchmark.results import report_race
    from pcam.benchmark.slides import slide_ceiling, slide_ours, slide_plain, write_slide
    from pcam.run_folder import RunFolder

    if not 3 * 4 * 96 <= side <= large_side:
        raise UserError(
            f"Expected a slide of at least 1,152 pixels, which are three patches, and a larger one, but found side "
            f"{side} and large_side {large_side}; correct them."
        )
    folder = RunFolder.find(run).path
    with open_patches(data.root, data.cache_dir) as (found, place):
        first, last = place / "slide.tif", place / "large.tif"
        for size, path in ((side, first), (large_side, last)):
            write_slide(found.packed("valid"), side, size, path)
        contestants: dict[str, Contestant] = {
            "ours": partial(slide_ours, folder, first, batch_size, rounds),
            "network alone": partial(slide_ceiling, folder, first, batch_size, rounds),
            "plain loop": partial(slide_plain, folder, first, rounds),
            f"ours, {large_side:,} pixels": partial(slide_ours, folder, last, batch_size, rounds),
        }
        turns = race(contestants, rounds, torch.device("cpu"), place)
    report_race(f"Windows of a slide of {side:,} pixels, batches of {batch_size}", turns, output)


def benchmark_adaptation(
    run: Path,
    split: SplitName = "valid",
    methods: list[AdaptationMethod] = ["stains", "batch_norm", "both"],  # noqa: B006
    layers: list[PositiveInt] = [1, 4, 8, 12, 16, 52],  # noqa: B006  # never changed; the help shows it
    weights: list[ClosedUnitInterval] = [1.0],  # noqa: B006
    shares: list[ClosedUnitInterval] = [0.5, 0.2, 0.1, 0.05, 0.01, 0.0],  # noqa: B006
    sizes: list[PositiveInt] = [16, 64, 256],  # noqa: B006
    scored: PositiveInt = 100,
    as_stained: bool = False,
    enlarged_sizes: list[int] | None = None,
    root: Path | None = None,
    output: Path = Path("benchmark_adaptation.json"),
) -> None:
    """Measure what adapting a network to patches without labels brings and costs, where the labels are known.

    A unit of patches is drawn in the staining of each of the run's `data.stain_shifts`, the network is adapted to it,
    and other patches of the same staining are scored. Loss and accuracy are weighted as if as many of these were tumour
    as in the unit.

    Args:
        run: The run folder.
        split: The split that all patches are drawn from.
        methods: How the network is adapted, as `--adapt_by` of evaluate.
        layers: How many layers of batch norm are adapted, where the method adapts any.
        weights: The shares of the unit's own statistics of batch norm in those that are used, 0 to 1.
        shares: The shares of tumour in the unit, 0 to 1.
        sizes: Numbers of patches in the unit; those that the split has too few patches for are left out.
        scored: The number of patches of each class that are scored in each staining.
        as_stained: Leave patches as they are stained, instead of shifting them: for a split of another hospital.
        enlarged_sizes: The sizes in pixels, besides 96, that patches are evaluated at, as for evaluate; null is all
            that the run was trained with.
        root: The folder with the data; null is the folder that the run was trained on.
        output: JSON file for the results.
    """
    from pcam.benchmark.adaptation import Grid, measure_adaptation, report_adaptation
    from pcam.trained import TrainedRun

    trained = TrainedRun.load(run, root=root, enlarged_sizes=enlarged_sizes)
    if as_stained:
        trained.data.stain_shifts = []
    readings = measure_adaptation(trained, split, Grid(methods, layers, weights, shares, sizes), scored, seed=0)
    report_adaptation(f"{run}, {split}", readings, output)
