"""How fast patches are read: the packed store against torchvision's data sets."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.progress import track
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import PCAM, ImageFolder
from torchvision.transforms import PILToTensor

from pcam.benchmark.patches import class_folders, write_official_files
from pcam.benchmark.race import Turn
from pcam.data import PCamDataModule
from pcam.data.loader import Batches, BatchLoader

READ_BATCH: Final = 256
"""Number of patches in a batch where reading alone is measured."""


def make_loaders(data: PCamDataModule, folder: Path, count: int) -> dict[str, Iterable[Any]]:
    """Make loaders of shuffled batches of training patches as uint8, each of which reads in this process.

    Args:
        data: The data.
        folder: A temporary folder, for the same patches in the forms that torchvision reads.
        count: Number of patches in one pass over a loader; at most the number in the train split.

    Returns:
        The loaders by name: the packed store, torchvision's ImageFolder, and torchvision's PCAM.
    """
    store = data.packed("train")
    images = class_folders(data, folder / "images", "train") / "train"
    official = folder / "pcam"  # the name that torchvision looks for
    official.mkdir()
    write_official_files(store, official, "train", count)
    return {
        "packed store": BatchLoader(store, Batches(count, READ_BATCH, shuffle_seed=0), num_workers=0),
        "torchvision ImageFolder": _torchvision_loader(ImageFolder(str(images), PILToTensor()), count),
        "torchvision PCAM": _torchvision_loader(PCAM(str(folder), "train", transform=PILToTensor()), count),
    }


def _torchvision_loader(dataset: ImageFolder | PCAM, count: int) -> DataLoader[Any]:
    return DataLoader(dataset, READ_BATCH, sampler=RandomSampler(range(len(dataset)), num_samples=count))


def time_loaders(loaders: Mapping[str, Iterable[Any]], count: int, rounds: int) -> dict[str, list[Turn]]:
    """Let loaders take turns in this process; a turn is one pass over a loader.

    Args:
        loaders: The loaders by name.
        count: Number of patches in one pass.
        rounds: Number of turns of each loader that are counted, after one that is not, as it fills the page cache.

    Returns:
        The turns of each loader, by name.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in loaders}
    for number in track(range(rounds + 1), "Measuring"):
        for name, loader in loaders.items():
            start = time.perf_counter()
            for _ in loader:
                pass
            if number > 0:
                turns[name].append(Turn(count, time.perf_counter() - start))
    return turns
