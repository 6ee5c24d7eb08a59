#!/usr/bin/env python
"""Measure speed against what others do, alternating in one run: machines are noisy, ratios less so.

python scripts/benchmark.py data --data.root DIR
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import PCAM, ImageFolder
from torchvision.transforms import PILToTensor

from pcam.atomic import atomic_path
from pcam.cli import Arguments, front_door, run_subcommand
from pcam.data import PCamDataModule
from pcam.data.loader import Batches, BatchLoader
from pcam.data.packed import PackedSplit

BATCH_SIZE = 256


@dataclass(frozen=True)
class DataPlace:
    """Where the patches are.

    Args:
        root: Folder with the data, in any form. ImageFolder can be measured on class folders alone.
        cache_dir: Folder for the packed stores; null is the user's cache folder.
    """

    root: Path
    cache_dir: Path | None = None


def benchmark_data(
    data: DataPlace, patches: int = 5120, rounds: int = 5, output: Path = Path("benchmark_data.json")
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
    store = PCamDataModule(data.root, cache_dir=data.cache_dir).packed("train")
    count = min(patches, len(store))
    with tempfile.TemporaryDirectory() as folder:
        readers: dict[str, Iterable[Any]] = {
            "packed store": BatchLoader(store, Batches(count, BATCH_SIZE, shuffle_seed=0), num_workers=0)
        }
        if (data.root / "train" / "0").is_dir():
            readers["torchvision ImageFolder"] = _plain_loader(
                ImageFolder(str(data.root / "train"), transform=PILToTensor()), count
            )
        readers["torchvision PCAM"] = _plain_loader(_as_pcam(store, Path(folder), count), count)
        report("Shuffled batches of 256 patches as uint8, one process", _alternate(readers, count, rounds), output)


def _plain_loader(dataset: ImageFolder | PCAM, count: int) -> DataLoader[Any]:
    return DataLoader(dataset, BATCH_SIZE, sampler=RandomSampler(range(len(dataset)), num_samples=count))


def _as_pcam(store: PackedSplit, root: Path, count: int) -> PCAM:
    """Write the first patches of a store as the official HDF5 files, and open them as torchvision does."""
    folder = root / "pcam"
    folder.mkdir()
    stem = "camelyonpatch_level_2_split_train"
    with h5py.File(folder / f"{stem}_x.h5", "w") as x, h5py.File(folder / f"{stem}_y.h5", "w") as y:
        x["x"] = store.patches[:count]
        y["y"] = store.labels[:count].reshape(-1, 1, 1, 1)
    return PCAM(str(root), "train", transform=PILToTensor())


def _alternate(readers: dict[str, Iterable[Any]], count: int, rounds: int) -> dict[str, list[float]]:
    """Patches per second of each reader in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for number in track(range(rounds + 1), "Measuring"):
        for name, reader in readers.items():
            start = time.perf_counter()
            for _ in reader:
                pass
            if number > 0:  # the first round fills the page cache
                speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def report(title: str, speeds: dict[str, list[float]], output: Path) -> None:
    """Print a table and write a JSON file.

    Args:
        title: What was measured.
        speeds: Patches per second of each contestant in each round; ours first.
        output: The JSON file.
    """
    ours = next(iter(speeds.values()))
    table = Table(title=title)
    for column in ("", "patches/s (median)", "slowest to fastest", "ours is"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {}
    for name, values in speeds.items():
        # A ratio of medians: the rounds alternate, so a slow moment of the machine meets all of them.
        ratio = statistics.median(ours) / statistics.median(values)
        rows[name] = {"patches_per_second": values, "ours_is_times_faster": ratio}
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        table.add_row(name, f"{statistics.median(values):,.0f}", spread, f"{ratio:.1f} x")
    Console().print(table)
    record = {"title": title, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


@front_door
def main(args: Arguments = None) -> None:
    """Run one of the benchmarks.

    Args:
        args: The command line; None takes the process's own.
    """
    run_subcommand("Measure speed against what others do.", {"data": benchmark_data}, args)


if __name__ == "__main__":
    main()
