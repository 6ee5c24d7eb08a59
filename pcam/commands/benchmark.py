"""Measure speed against what others do. Contestants take turns, as machines are noisy and ratios are less so."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from jsonargparse.typing import PositiveInt

from pcam.benchmark.options import SYNTHETIC, MeasuredPatches
from pcam.commands.benchmark_embeddings import benchmark_embed, benchmark_probe
from pcam.commands.benchmark_runs import benchmark_adaptation, benchmark_slide
from pcam.door import Arguments, front_door, run_subcommand
from pcam.errors import UserError
from pcam.options import Precision

if TYPE_CHECKING:
    from pcam.benchmark.race import Contestant
    from pcam.benchmark.workload import Workload
    from pcam.data import PCamDataModule

Device = Literal["auto", "cpu", "cuda"]

MEMORY_BATCH: Final = 32
"""Number of patches in a batch where memory is measured."""


def benchmark_data(
    data: MeasuredPatches = SYNTHETIC,
    patches: PositiveInt = 5120,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_data.json"),
) -> None:
    """Measure how fast one process reads shuffled batches of 256 training patches as uint8.

    Compares the packed store with torchvision's ImageFolder over the same files, and with torchvision's PCAM over an
    HDF5 file of the same patches.

    Args:
        data: The patches that are measured on.
        patches: Number of patches that each reader reads in a round, at least 1; all patches if there are fewer.
        rounds: Number of rounds that count, at least 1, after one that does not.
        output: JSON file for the results.
    """
    from pcam.benchmark.patches import open_patches
    from pcam.benchmark.reading import READ_BATCH, make_loaders, time_loaders
    from pcam.benchmark.results import report_race

    with open_patches(data.root, data.cache_dir) as (found, folder):
        count = min(patches, len(found.packed("train")))
        turns = time_loaders(make_loaders(found, folder, count), count, rounds)
    report_race(f"Shuffled batches of {READ_BATCH} patches as uint8, one process", turns, output)


def benchmark_train(
    data: MeasuredPatches = SYNTHETIC,
    device: Device = "auto",
    batch_size: PositiveInt = 32,
    steps: PositiveInt = 20,
    rounds: PositiveInt = 5,
    precision: Precision = "32-true",
    compile: bool = False,  # noqa: A002  # the name of the option, as in train.py
    keras: bool = False,
    output: Path = Path("benchmark_train.json"),
) -> None:
    """Measure how fast MobileNetV2 trains.

    Compares the command train as it is with a plain LightningModule on torchvision's ImageFolder, and with the
    ceiling: the same network and optimizer on one batch that never moves.

    Args:
        data: The patches that are measured on.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        batch_size: Number of patches in a batch, at least 1; batch norm needs at least 2.
        steps: Number of training steps in a round, at least 1.
        rounds: Number of rounds, at least 1, after some steps that do not count.
        precision: What ours and the ceiling compute in: "32-true" (float32), or "bf16-mixed" (convolutions in
            bfloat16); the plain module always computes in float32.
        compile: Whether to measure ours and the ceiling with torch.compile as well.
        keras: Whether to measure Keras as well, as the published study used it, on the CPU; needs pip install
            'pcam[keras]'.
        output: JSON file for the results.
    """
    import torch

    from pcam.benchmark.contestants import train_ceiling, train_ours, train_plain
    from pcam.benchmark.keras import train_keras
    from pcam.benchmark.patches import open_workload
    from pcam.models.inference import bfloat16_warning

    with open_workload(data.root, data.cache_dir, "train", device, batch_size, steps, rounds, precision) as workload:
        if precision == "bf16-mixed":
            warning = bfloat16_warning(torch.device(workload.accelerator))
            if warning is not None:
                print(warning)
        contestants: dict[str, Contestant] = {
            "ours": partial(train_ours, workload, False),
            "plain": partial(train_plain, workload),
            "ceiling": partial(train_ceiling, workload, False),
        }
        if compile:
            contestants["ours, compiled"] = partial(train_ours, workload, True)
            contestants["ceiling, compiled"] = partial(train_ceiling, workload, True)
        if keras:
            contestants["Keras"] = partial(train_keras, replace(workload, accelerator="cpu"))
        _race(f"Training of MobileNetV2, batches of {batch_size}", contestants, workload, output)


def benchmark_evaluate(
    data: MeasuredPatches = SYNTHETIC,
    run: Path | None = None,
    device: Device = "auto",
    batch_size: PositiveInt = 32,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_evaluate.json"),
) -> None:
    """Measure how fast MobileNetV2 is evaluated on the valid split, from files to AUROC.

    Compares what the command evaluate does, in float32 and in bfloat16, with a plain LightningModule on torchvision's
    ImageFolder. Each round is the whole split. On a processor without instructions for bfloat16, which computes in it
    slowly, only float32 is measured.

    Args:
        data: The patches that are measured on.
        run: A run folder of MobileNetV2, whose best checkpoint is evaluated; null evaluates random weights.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        batch_size: Number of patches in a batch, at least 1.
        rounds: Number of rounds, at least 1, after one that does not count.
        output: JSON file for the results.
    """
    import torch

    from pcam.benchmark.contestants import evaluate_ours, evaluate_plain, random_network, trained_network
    from pcam.benchmark.patches import open_workload
    from pcam.models.inference import bfloat16_warning

    with open_workload(data.root, data.cache_dir, "valid", device, batch_size, 0, rounds) as prepared:
        network = random_network(prepared) if run is None else trained_network(run)
        workload = replace(prepared, weights=prepared.folder / "network.pt")
        torch.save(network.state_dict(), prepared.folder / "network.pt")
        contestants: dict[str, Contestant] = {"ours": partial(evaluate_ours, workload)}
        warning = bfloat16_warning(torch.device(workload.accelerator))
        if warning is None:
            contestants["ours, bfloat16"] = partial(evaluate_ours, replace(workload, precision="bf16-mixed"))
        else:
            print(f"Evaluation in bfloat16 is not measured. {warning}")
        contestants["plain"] = partial(evaluate_plain, workload)
        _race(f"Evaluation of MobileNetV2, batches of {batch_size}", contestants, workload, output)


def benchmark_predict(
    run: Path,
    data: MeasuredPatches = SYNTHETIC,
    patches: PositiveInt = 1000,
    tta: bool = False,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_predict.json"),
) -> None:
    """Measure the whole command predict, from its start to its end, on image files.

    Compares it with a plain script on torchvision, on the CPU, in float32.

    Args:
        run: A run folder of MobileNetV2 at 96 pixels only, whose best checkpoint is used.
        data: The patches that are measured on, of the valid split.
        patches: Number of files, at least 1; the patches are repeated until there are as many.
        tta: Whether both score each patch by the mean over its eight symmetries.
        rounds: Number of rounds that count, at least 1, after one that does not.
        output: JSON file for the results.
    """
    import torch

    from pcam.benchmark.contestants import plain_weights, trained_network
    from pcam.benchmark.patches import class_folders, open_patches
    from pcam.benchmark.results import report_race
    from pcam.benchmark.whole import copy_patches, race_commands

    with open_patches(data.root, data.cache_dir) as (found, folder):
        images = copy_patches(class_folders(found, folder / "images", "valid") / "valid", folder / "links", patches)
        weights = folder / "network.pt"
        torch.save(plain_weights(trained_network(run).state_dict()), weights)
        option = ["--tta"] if tta else []
        ours, plain = str(folder / "ours.csv"), str(folder / "plain.csv")
        commands = {
            "ours": ["pcam", "predict", str(run), "--input", str(images), "--output", ours, *option],
            "plain": ["pcam.benchmark.plain", str(weights), str(images), plain, *option],
        }
        turns = race_commands(commands, patches, rounds)
    report_race(f"Prediction of {patches:,} files by whole commands{', with symmetries' if tta else ''}", turns, output)


def benchmark_start(
    data: MeasuredPatches = SYNTHETIC,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_start.json"),
) -> None:
    """Measure how long commands take that have little to do, from the start of their process to its end.

    Args:
        data: The patches that are measured on.
        rounds: Number of rounds that count, at least 1, after one that does not.
        output: JSON file for the results.
    """
    from pcam.benchmark.patches import class_folders, open_patches
    from pcam.benchmark.results import report_commands
    from pcam.benchmark.whole import copy_patches, race_commands

    with open_patches(data.root, data.cache_dir) as (found, folder):
        images = copy_patches(class_folders(found, folder / "images", "valid") / "valid", folder / "links", 10)
        place = [f"--data.root={found.root}", f"--data.cache_dir={found.cache_dir}"]
        run, scores = _trained_once(found, folder), str(folder / "scores.csv")
        train = ["pcam", "train", "--config=cnn", *place, "--trainer.max_steps=1", f"--runs_dir={folder / 'runs'}"]
        commands = {
            "train --help": ["pcam", "train", "--help"],
            "a wrong option": ["pcam", "train", "--config=cnn", "--data.rot=DIR"],
            "train, a missing root": ["pcam", "train", "--config=cnn", f"--data.root={folder / 'missing'}"],
            "evaluate, a missing run": ["pcam", "evaluate", str(folder / "missing")],
            "train, one step": [*train, "--trainer.limit_val_batches=0"],
            "predict, ten patches": ["pcam", "predict", str(run), "--input", str(images), "--output", scores],
        }
        exit_codes = {"a wrong option": 2, "train, a missing root": 1, "evaluate, a missing run": 1}
        turns = race_commands(commands, 1, rounds, exit_codes)
    report_commands("Start of commands", turns, output)


def benchmark_memory(
    of: Literal["train", "predict"] = "train",
    counts: tuple[PositiveInt, PositiveInt] = (2000, 200_000),
    steps: PositiveInt = 20,
    rounds: PositiveInt = 3,
    output: Path = Path("benchmark_memory.json"),
) -> None:
    """Measure how much memory training or prediction takes with few patches and with many.

    Counts anonymous memory: what the process has allocated itself, without memory-mapped files. The patches are
    synthetic ones, repeated as often as needed; for training they take 55 kB a patch of temporary disk space.

    Args:
        of: "train", training of MobileNetV2; or "predict", the whole command predict on an HDF5 file, with the
            baseline CNN, which is the fastest.
        counts: The two numbers of patches, for training each at least 32, the size of a batch.
        steps: Number of training steps in a round, at least 1; prediction does not use it.
        rounds: Number of rounds, at least 1; of training, after some steps that do not count.
        output: JSON file for the results.

    Raises:
        UserError: If there are to be fewer patches than a batch has.
    """
    from pcam.benchmark.contestants import train_ours
    from pcam.benchmark.patches import open_patches, repeat_patches, write_official_files
    from pcam.benchmark.results import report_race
    from pcam.benchmark.whole import run_command
    from pcam.benchmark.workload import Workload

    if of == "train" and min(counts) < MEMORY_BATCH:
        raise UserError(
            f"Expected at least {MEMORY_BATCH} training patches, which are one batch, but found {min(counts)} in "
            f"counts; raise it."
        )
    with open_patches(None, None) as (few, folder):
        if of == "predict":
            run = _trained_once(few, folder)
            turns = {}
            for count in counts:
                patches, scores = folder / f"{count}.h5", folder / f"{count}.csv"
                repeat_patches(few.packed("train"), patches, count)
                command = ["pcam", "predict", str(run), "--input", str(patches), "--output", str(scores)]
                turns[f"{count:,} patches"] = [run_command(command, count, 0) for _ in range(rounds)]
            report_race("Memory of prediction with the baseline CNN, whole commands", turns, output)
            return
        contestants: dict[str, Contestant] = {}
        for count in counts:
            place = folder / str(count)
            place.mkdir(exist_ok=True)
            write_official_files(few.packed("train"), place, "train", count)
            write_official_files(few.packed("valid"), place, "valid", len(few.packed("valid")))
            workload = Workload(place, place, few.cache_dir, place, "cpu", MEMORY_BATCH, steps, rounds)
            contestants[f"{count:,} patches"] = partial(train_ours, workload, False)
        _race(f"Memory of training MobileNetV2, batches of {MEMORY_BATCH}", contestants, workload, output)


def _trained_once(data: "PCamDataModule", folder: Path) -> Path:
    """Train the baseline CNN for one step, and return the run folder."""
    from pcam.benchmark.whole import run_command

    place = [f"--data.root={data.root}", f"--data.cache_dir={data.cache_dir}", f"--runs_dir={folder / 'runs'}"]
    steps = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    run_command(["pcam", "train", "--config=cnn", "--experiment=one", *place, *steps], 1, 0)
    return folder / "runs" / "one" / "version_0"


def _race(title: str, contestants: "dict[str, Contestant]", workload: "Workload", output: Path) -> None:
    import torch

    from pcam.benchmark.race import race
    from pcam.benchmark.results import report_race

    turns = race(contestants, workload.rounds, torch.device(workload.accelerator), workload.folder)
    report_race(title, turns, output)


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "data": benchmark_data,
    "train": benchmark_train,
    "evaluate": benchmark_evaluate,
    "predict": benchmark_predict,
    "start": benchmark_start,
    "memory": benchmark_memory,
    "slide": benchmark_slide,
    "embed": benchmark_embed,
    "probe": benchmark_probe,
    "adaptation": benchmark_adaptation,
}
"""The benchmarks, by the name of their command."""

_SPELLED: Final = {
    "predict": {"run": "RUN"},
    "slide": {"run": "RUN"},
    "adaptation": {"run": "RUN", "root": "--data.root"},
}


@front_door
def main(args: Arguments = None) -> None:
    """Run one of the benchmarks.

    Args:
        args: The command line; None takes the process's own.
    """
    run_subcommand("Measure speed against what others do.", COMMANDS, args, _SPELLED)
