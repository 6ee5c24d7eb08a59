"""Made-up H&E patches that follow PatchCamelyon's label rule, for tests and for a first run without a download.

The patches of both classes are painted in the same way, tumour cells in the outer ring included; then, in patches of
class 1 only, tumour cells take the place of ordinary cells inside the centre. So nothing but the centre tells the
classes apart, and stain, density, fat and grain are the nuisances that they are on real slides.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from pcam.atomic import atomic_folder
from pcam.data.painting import draw_patch
from pcam.errors import UserError
from pcam.options import SPLIT_NAMES, SplitName
from pcam.patches import CLASS_NAMES, PATCH_SIZE, PatchArray


def synthesize(count: int, *, seed: int, stream: int = 0) -> tuple[PatchArray, NDArray[np.uint8]]:
    """Make synthetic patches.

    A patch is a function of `seed`, `stream` and its number alone: the first patches of a long run are those of a
    short one. Takes about 2.5 ms a patch on one core.

    Args:
        count: How many patches; 27,648 bytes each.
        seed: At least 0; another seed gives another data set.
        stream: At least 0; another stream of one seed shares no random numbers with this one (one for each split).

    Returns:
        The patches, shape (count, 96, 96, 3), and their labels, shape (count,): 0 and 1 in turn.
    """
    patches = np.empty((count, PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.uint8)
    for index, (patch, label) in enumerate(iterate_patches(count, seed=seed, stream=stream)):
        patches[index], labels[index] = patch, label
    return patches, labels


def iterate_patches(count: int, *, seed: int, stream: int = 0) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Make the patches of `synthesize` one at a time.

    Args:
        count: How many patches.
        seed: At least 0.
        stream: At least 0.

    Yields:
        A patch, shape (96, 96, 3), and its label.
    """
    for index in range(count):
        label = index % len(CLASS_NAMES)
        sequence = np.random.SeedSequence(seed, spawn_key=(stream, index))
        patch, _ = draw_patch(np.random.Generator(np.random.PCG64(sequence)), label)
        yield patch, label


def write_class_folders(output: Path, counts: Mapping[SplitName, int], seed: int) -> None:
    """Write a synthetic data set as class folders, `output/{train,valid,test}/{0,1}/patch0000000.png`.

    The folder appears under its name only when it is whole. Shows a progress bar for each split.

    Args:
        output: The folder to make.
        counts: Patches in each split, at least 2: half of them of each class. The number in a file's name is the
            patch's number in its split.
        seed: At least 0.

    Raises:
        UserError: If `output` exists and is not an empty folder, or a count or the seed is too small.
    """
    for name, count in counts.items():
        if count < len(CLASS_NAMES):
            raise UserError(
                f"Expected at least {len(CLASS_NAMES)} patches, one of each class, in the split '{name}', "
                f"but got {count}; ask for more."
            )
    if seed < 0:
        raise UserError(f"Expected a seed of at least 0, but got {seed}; choose another.")
    with atomic_folder(output, "for the patches") as temporary:
        for name, count in counts.items():
            for label in range(len(CLASS_NAMES)):
                (temporary / name / str(label)).mkdir(parents=True)
            patches = iterate_patches(count, seed=seed, stream=SPLIT_NAMES.index(name))
            for index, (patch, label) in enumerate(track(patches, f"Painting {name}", total=count)):
                # The lightest compression: grain hardly compresses, and the default takes longer than the painting.
                path = temporary / name / str(label) / f"patch{index:07d}.png"
                Image.fromarray(patch).save(path, compress_level=1)
