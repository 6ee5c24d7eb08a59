#!/usr/bin/env python
"""Measure speed against what others do, alternating in one run: machines are noisy, ratios less so.

python scripts/benchmark.py data --data.root DIR
python scripts/benchmark.py train --data.root DIR --compile
python scripts/benchmark.py evaluate --data.root DIR --run lightning_logs/imagenet_dropout/version_0
python scripts/benchmark.py memory
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import PCAM, ImageFolder
from torchvision.transforms import PILToTensor

from pcam.atomic import atomic_path
from pcam.benchmark.contestants import (
    evaluate_ours,
    evaluate_plain,
    train_ceiling,
    train_ours,
    train_plain,
)
from pcam.benchmark.course import DROPOUT, Course
from pcam.benchmark.keras import train_keras
from pcam.benchmark.race import Round, Stopwatch, race
from pcam.cli import Arguments, front_door, load_run, run_subcommand
from pcam.data import PCamDataModule
from pcam.data.loader import Batches, BatchLoader
from pcam.data.packed import PackedSplit
from pcam.data.synthetic import write_class_folders
from pcam.errors import UserError
from pcam.models import MobileNetV2
from pcam.models.batch_norm import reestimate_batch_norm
from pcam.options import Precision, SplitName
from pcam.run_folder import RunFolder

READ_BATCH: Final = 256
"""Patches a batch where reading alone is measured."""

SYNTHETIC_COUNTS: Final[dict[SplitName, int]] = {"train": 1024, "valid": 512, "test": 2}
"""Synthetic patches that are measured on if no folder is named."""

MOST_IMAGES: Final = 2048
"""Patches that are written as PNG files for what reads nothing but class folders."""

MEGABYTE: Final = 1e6

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class DataPlace:
    """Where the patches are.

    Args:
        root: Folder with the data, in any form; null paints synthetic patches first.
        cache_dir: Folder for the packed stores; null is the user's cache folder.
    """

    root: Path | None = None
    cache_dir: Path | None = None


SYNTHETIC: Final = DataPlace()
"""Synthetic patches."""


def benchmark_data(
    data: DataPlace = SYNTHETIC,
    patches: PositiveInt = 5120,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_data.json"),
) -> None:
    """Measure how fast one process reads shuffled batches of 256 patches as uint8.

    Compares the packed store with torchvision's ImageFolder over the same files, and with torchvision's PCAM over an
    HDF5 file of the same patches.

    Args:
        data: Where the patches are; the train split is read.
        patches: Patches a reader reads in a round; fewer if there are not as many.
        rounds: Rounds that count, after one that does not.
        output: JSON file for the figures.
    """
    with _patches(data) as (found, folder):
        store = found.packed("train")
        count = min(patches, len(store))
        images = _class_folders(found, folder, "train")
        readers: dict[str, Iterable[Any]] = {
            "packed store": BatchLoader(store, Batches(count, READ_BATCH, shuffle_seed=0), num_workers=0),
            "torchvision ImageFolder": _plain_loader(ImageFolder(str(images / "train"), PILToTensor()), count),
            "torchvision PCAM": _plain_loader(_as_pcam(store, folder, count), count),
        }
        report("Shuffled batches of 256 patches as uint8, one process", _read(readers, count, rounds), output)


def benchmark_train(
    data: DataPlace = SYNTHETIC,
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

    Compares scripts/train.py as it is with a plain LightningModule on torchvision's ImageFolder, and with the ceiling:
    the same network and optimizer on one batch that never moves.

    Args:
        data: Where the patches are; the train split is read.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        batch_size: Patches a batch.
        steps: Steps a round.
        rounds: Rounds, after some steps that do not count.
        precision: What ours and the ceiling compute in; plain code computes in float32.
        compile: Whether ours and the ceiling are measured with torch.compile as well.
        keras: Whether to measure Keras too, as the study used it (pip install 'pcam[keras]'); on a CPU.
        output: JSON file for the figures.
    """
    with _course(data, "train", device, batch_size, steps, rounds, precision) as course:
        contestants: dict[str, Callable[[Stopwatch], None]] = {
            "ours": partial(train_ours, course, False),
            "plain": partial(train_plain, course),
            "ceiling": partial(train_ceiling, course, False),
        }
        if compile:
            contestants["ours, compiled"] = partial(train_ours, course, True)
            contestants["ceiling, compiled"] = partial(train_ceiling, course, True)
        if keras:
            contestants["Keras"] = partial(train_keras, replace(course, accelerator="cpu"))
        _race(f"Training of MobileNetV2, batches of {batch_size}", contestants, course, output)


def benchmark_evaluate(
    data: DataPlace = SYNTHETIC,
    run: Path | None = None,
    device: Device = "auto",
    batch_size: PositiveInt = 32,
    rounds: PositiveInt = 5,
    output: Path = Path("benchmark_evaluate.json"),
) -> None:
    """Measure how fast MobileNetV2 is evaluated on the valid split, from files to AUROC.

    Compares scripts/evaluate.py's way, in float32 and in bfloat16, with a plain LightningModule on torchvision's
    ImageFolder. A round is the whole split.

    Args:
        data: Where the patches are; the valid split is read.
        run: A run folder whose best checkpoint is evaluated; null is random weights.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        batch_size: Patches a batch.
        rounds: Rounds, after one that does not count.
        output: JSON file for the figures.
    """
    with _course(data, "valid", device, batch_size, 0, rounds, "32-true") as bare:
        network = _random_network(bare) if run is None else _trained_network(run)
        course = replace(bare, weights=bare.folder / "network.pt")
        torch.save(network.state_dict(), bare.folder / "network.pt")
        contestants: dict[str, Callable[[Stopwatch], None]] = {
            "ours": partial(evaluate_ours, course),
            "ours, bfloat16": partial(evaluate_ours, replace(course, precision="bf16-mixed")),
            "plain": partial(evaluate_plain, course),
        }
        _race(f"Evaluation of MobileNetV2, batches of {batch_size}", contestants, course, output)


def benchmark_memory(
    counts: tuple[PositiveInt, PositiveInt] = (2000, 200_000),
    steps: PositiveInt = 20,
    rounds: PositiveInt = 3,
    output: Path = Path("benchmark_memory.json"),
) -> None:
    """Measure how much anonymous memory training takes with few patches and with many.

    Repeats synthetic patches as often as it takes; 55 kB of temporary disk space a patch.

    Args:
        counts: Numbers of training patches.
        steps: Steps a round.
        rounds: Rounds, after some steps that do not count.
        output: JSON file for the figures.
    """
    with _patches(SYNTHETIC) as (few, folder):
        contestants: dict[str, Callable[[Stopwatch], None]] = {}
        for count in counts:
            place = folder / str(count)
            place.mkdir()
            for split, size in (("train", count), ("valid", len(few.packed("valid")))):
                _write_official(few.packed("train" if split == "train" else "valid"), place, split, size)
            course = Course(place, place, few.cache_dir, place, "cpu", 32, steps, rounds)
            contestants[f"{count:,} patches"] = partial(train_ours, course, False)
        _race("Memory of training MobileNetV2, batches of 32", contestants, course, output)


@contextmanager
def _patches(place: DataPlace) -> Iterator[tuple[PCamDataModule, Path]]:
    """The patches, and a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if place.root is not None:
            yield PCamDataModule(place.root, cache_dir=place.cache_dir), folder
            return
        write_class_folders(folder / "synthetic", SYNTHETIC_COUNTS, seed=1)
        yield PCamDataModule(folder / "synthetic", cache_dir=folder / "cache"), folder


@contextmanager
def _course(
    place: DataPlace,
    split: SplitName,
    device: Device,
    batch_size: int,
    steps: int,
    rounds: int,
    precision: Precision,
) -> Iterator[Course]:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("Expected a GPU for --device cuda, but PyTorch finds none; take --device cpu.")
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    with _patches(place) as (data, folder):
        data.prepare_data()
        images = _class_folders(data, folder, split)
        yield Course(data.root, images, data.cache_dir, folder, accelerator, batch_size, steps, rounds, precision)


def _race(title: str, contestants: Mapping[str, Callable[[Stopwatch], None]], course: Course, output: Path) -> None:
    report(title, race(contestants, course.rounds, torch.device(course.accelerator), course.folder), output)


def _random_network(course: Course) -> MobileNetV2:
    """A network from random weights whose logits differ, as those of a trained one do."""
    network = MobileNetV2(weights=None, dropout=DROPOUT)
    patches = PCamDataModule(course.root, course.batch_size, cache_dir=course.cache_dir)
    reestimate_batch_norm(network, patches.training_patches(4 * course.batch_size, torch.device("cpu")))
    return network


def _trained_network(run: Path) -> MobileNetV2:
    network = load_run(RunFolder.find(run), "best").model.network
    if not isinstance(network, MobileNetV2):
        raise UserError(f"Expected a run of MobileNetV2, but {run} is one of {type(network).__name__}; name another.")
    return network


def _class_folders(data: PCamDataModule, folder: Path, split: SplitName) -> Path:
    """A split's patches in class folders: the user's, or the first ones written anew."""
    if (data.root / split / "0").is_dir():
        return data.root
    store = data.packed(split)
    count = min(MOST_IMAGES, len(store)) if split == "train" else len(store)
    for row in track(range(count), f"Writing {split} as PNG files"):
        path = folder / "images" / split / str(store.labels[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(store.patches[row]).save(path)
    return folder / "images"


def _plain_loader(dataset: ImageFolder | PCAM, count: int) -> DataLoader[Any]:
    return DataLoader(dataset, READ_BATCH, sampler=RandomSampler(range(len(dataset)), num_samples=count))


def _as_pcam(store: PackedSplit, root: Path, count: int) -> PCAM:
    """Write the first patches of a store as the official HDF5 files, and open them as torchvision does."""
    (root / "pcam").mkdir()
    _write_official(store, root / "pcam", "train", count)
    return PCAM(str(root), "train", transform=PILToTensor())


def _write_official(store: PackedSplit, folder: Path, split: str, count: int) -> None:
    """Write patches of a store as the official HDF5 files, from the first on again where there are not as many."""
    stem = f"camelyonpatch_level_2_split_{split}"
    with h5py.File(folder / f"{stem}_x.h5", "w") as x, h5py.File(folder / f"{stem}_y.h5", "w") as y:
        patches = x.create_dataset("x", (count, *store.patches.shape[1:]), np.uint8)
        labels = y.create_dataset("y", (count, 1, 1, 1), np.uint8)
        for start in range(0, count, len(store)):
            stop = min(start + len(store), count)
            patches[start:stop] = store.patches[: stop - start]
            labels[start:stop] = store.labels[: stop - start].reshape(-1, 1, 1, 1)


def _read(readers: Mapping[str, Iterable[Any]], count: int, rounds: int) -> dict[str, list[Round]]:
    """Let readers take turns."""
    found: dict[str, list[Round]] = {name: [] for name in readers}
    for number in track(range(rounds + 1), "Measuring"):
        for name, reader in readers.items():
            start = time.perf_counter()
            for _ in reader:
                pass
            if number > 0:  # the first round fills the page cache
                found[name].append(Round(count, time.perf_counter() - start))
    return found


def report(title: str, found: Mapping[str, Sequence[Round]], output: Path) -> None:
    """Print a table and write a JSON file.

    Args:
        title: What was measured.
        found: The rounds of each contestant; ours first.
        output: The JSON file.
    """
    speeds = {name: [turn.patches / turn.seconds for turn in turns] for name, turns in found.items()}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, dict[str, str]] = {}
    for name, turns in found.items():
        # A ratio of medians: the rounds alternate, so a slow moment of the machine meets all of them.
        ratio = next(iter(medians.values())) / medians[name]
        memory = {
            "anonymous_bytes": _most([turn.anonymous_bytes for turn in turns]),
            "device_bytes": _most([turn.device_bytes for turn in turns]),
        }
        rows[name] = {"patches_per_second": speeds[name], "ours_is_times_faster": ratio, **memory}
        rows[name]["rounds"] = [asdict(turn) for turn in turns]
        lines[name] = {
            "patches/s (median)": f"{medians[name]:,.0f}",
            "slowest to fastest": f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}",
            "ours is": f"{ratio:.2f} x",
        }
        for most, heading in zip(memory.values(), ("anonymous MB", "GPU MB"), strict=True):
            if most is not None:
                lines[name][heading] = f"{most / MEGABYTE:,.0f}"
        for fact in turns[0].facts:
            lines[name][fact.replace("_", " ")] = f"{statistics.median(turn.facts[fact] for turn in turns):.5f}"
    headings = list(dict.fromkeys(heading for line in lines.values() for heading in line))
    table = Table("", *(Column(heading, justify="right") for heading in headings), title=title)
    for name, line in lines.items():
        table.add_row(name, *(line.get(heading, "") for heading in headings))
    Console().print(table)
    record = {
        "title": title,
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


@front_door
def main(args: Arguments = None) -> None:
    """Run one of the benchmarks.

    Args:
        args: The command line; None takes the process's own.
    """
    run_subcommand(
        "Measure speed against what others do.",
        {
            "data": benchmark_data,
            "train": benchmark_train,
            "evaluate": benchmark_evaluate,
            "memory": benchmark_memory,
        },
        args,
    )


if __name__ == "__main__":
    main()
