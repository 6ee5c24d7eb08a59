"""The packed store: one split as one HDF5 file whose patches are memory-mapped.

HDF5 gives the header, the version check and the notice of a truncated file; its contiguous, uncompressed dataset
gives an offset at which `numpy.memmap` reads without HDF5 in between. So a store opens at once at any size, every
process shares its pages, forked workers share no HDF5 handle, and any HDF5 tool can look into it.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcam.atomic import atomic_path
from pcam.data.layouts import Split
from pcam.errors import UserError
from pcam.patches import PATCH_SIZE, PatchArray, PatchBatch

FORMAT: Final = "pcam-packed"
VERSION: Final = 1
CHUNK: Final = 256
"""Patches that are decoded, hashed and written together; 256 are 7 MB."""

PATCH_BYTES: Final = PATCH_SIZE * PATCH_SIZE * 3


class PackedSplit:
    """One split, memory-mapped; rows are in the order of the SHA-1 of their pixels.

    That order mixes the classes, puts identical patches side by side, and is the same whatever form the patches came
    in. Indexing with row numbers gives a batch, so it serves as a map-style data set for a loader whose sampler
    yields whole batches.

    Attributes:
        path: The HDF5 file.
        labels: Shape (patches,), 0 or 1.
        fingerprint: SHA-256 over the SHA-1 and label of every row: the same patches give the same one in any form.
        signature: The signature of the files it was packed from.
    """

    def __init__(self, path: Path) -> None:
        """Open a store.

        Args:
            path: A file that `pack` wrote.

        Raises:
            UserError: If the file is missing, truncated, or not a packed split of this version.
        """
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                    raise KeyError(f"no mark '{FORMAT}', version {VERSION}")
                patches = file["patches"]
                self.labels: NDArray[np.uint8] = file["labels"][:]
                self.fingerprint = str(file.attrs["fingerprint"])
                self.signature = str(file.attrs["signature"])
                shape, offset = patches.shape, patches.id.get_offset()
        except (OSError, KeyError) as error:
            raise UserError(
                f"Expected a packed split in {path}, but it cannot be used ({error}); "
                f"delete it, and the next run packs it again."
            ) from error
        self.patches: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)

    def __reduce__(self) -> tuple[type["PackedSplit"], tuple[Path]]:
        """Travel to a loader's worker as a path: a pickled memmap would carry every patch."""
        return PackedSplit, (self.path,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.int64]) -> PatchBatch:
        """Read a batch.

        Args:
            rows: Shape (batch,), row numbers.

        Returns:
            The patches (uint8, channels last in memory), labels and row numbers.
        """
        return PatchBatch(
            patches=torch.from_numpy(self.patches[rows]).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows].astype(np.int64)),
            indices=torch.from_numpy(rows),
        )

    def ids(self) -> list[str]:
        """The name that each row had in the data set it was packed from."""
        with h5py.File(self.path, "r") as file:
            return [os.fsdecode(name) for name in file["ids"][:]]

    def pixel_hashes(self) -> list[str]:
        """The SHA-1 of each row's 27,648 RGB bytes, in hexadecimal; equal for identical pixels."""
        with h5py.File(self.path, "r") as file:
            return [digest.tobytes().hex() for digest in file["sha1"][:]]


def pack(split: Split, path: Path, description: str) -> PackedSplit:
    """Open the store of a split, packing it first if it is not there or its files have changed.

    Decodes on all cores, holds a few hundred patches in memory at a time, and needs free disk space for the patches
    twice while it works. Several processes may call it at once: one packs, the others wait. A process that is killed
    leaves no store behind.

    Args:
        split: What to pack.
        path: Where the store belongs.
        description: What the progress bar says.

    Returns:
        The store, open.

    Raises:
        UserError: If a patch cannot be read, or the disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            store = PackedSplit(path)
            if store.signature == split.signature:
                return store
            rank_zero_info(f"The files behind {path} have changed since it was packed: packing them again.")
        for stale in path.parent.glob(f".{path.name}.*.tmp*"):  # of a process that was killed: we hold the lock
            stale.unlink()
        needed = 2 * len(split.ids) * PATCH_BYTES
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise UserError(
                f"Expected {needed / 1e9:.1f} GB of free disk space to pack into {path.parent}, but found "
                f"{free / 1e9:.1f} GB; make room, or choose another disk with --data.cache_dir."
            )
        with atomic_path(path) as temporary:
            spool = temporary.with_name(temporary.name + ".unsorted")
            try:
                shape = (len(split.ids), PATCH_SIZE, PATCH_SIZE, 3)
                unsorted: PatchArray = np.memmap(spool, dtype=np.uint8, mode="w+", shape=shape)
                hashes = _decode(split, unsorted, description)
                _write_sorted(temporary, split, unsorted, hashes)
            finally:
                spool.unlink(missing_ok=True)
    return PackedSplit(path)


def _decode(split: Split, unsorted: PatchArray, description: str) -> NDArray[np.uint8]:
    """Write all patches in the order in which they are listed; return their SHA-1, shape (patches, 20)."""
    count = len(unsorted)
    hashes = np.empty((count, 20), dtype=np.uint8)

    def decode(start: int) -> int:
        patches = split.read(start, min(start + CHUNK, count))
        for row, patch in enumerate(patches, start):
            unsorted[row] = patch
            hashes[row] = np.frombuffer(hashlib.sha1(patch, usedforsecurity=False).digest(), dtype=np.uint8)
        return len(patches)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Threads, not processes: the image decoders and SHA-1 release the interpreter's lock.
    with Progress(*columns) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        task = progress.add_task(description, total=count)
        try:
            for done in pool.map(decode, range(0, count, CHUNK)):
                progress.advance(task, done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return hashes


def _write_sorted(path: Path, split: Split, unsorted: PatchArray, hashes: NDArray[np.uint8]) -> None:
    """Write the store, in the order of (SHA-1, label)."""
    labels = np.asarray(split.labels, dtype=np.uint8)
    keys = np.ascontiguousarray(np.column_stack([hashes, labels]))
    order = np.argsort(keys.view(f"S{keys.shape[1]}").ravel(), kind="stable")
    ids = np.array([os.fsencode(name) for name in split.ids])
    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["signature"] = split.signature
        file.attrs["fingerprint"] = hashlib.sha256(keys[order].tobytes()).hexdigest()
        file["labels"] = labels[order]
        file["sha1"] = hashes[order]
        file["ids"] = ids[order]
        patches = file.create_dataset("patches", shape=unsorted.shape, dtype=np.uint8)
        for start in range(0, len(order), CHUNK):
            patches[start : start + CHUNK] = unsorted[order[start : start + CHUNK]]
