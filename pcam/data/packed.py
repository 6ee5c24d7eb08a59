"""The packed store: one split in one HDF5 file, whose patches are memory-mapped.

HDF5 provides the header with the version, and notices a truncated file. Its dataset of patches is contiguous and not
compressed, so that the patches can be mapped from their offset in the file and read without HDF5. So a store of any
size opens at once, all processes share its pages, forked workers share no HDF5 handle, and any HDF5 tool can look into
it.
"""

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from pcam.atomic import atomic_path
from pcam.data.layouts import Portion, Split, SplitFiles, pixel_hash
from pcam.data.layouts.hdf5 import find_array
from pcam.data.locks import only_one
from pcam.data.threads import TASK_PATCHES, in_threads
from pcam.errors import NO_ROOM, UserError
from pcam.messages import inform
from pcam.options import ORIGINS, Origin
from pcam.patches import PATCH_SHAPE, PATCH_SIZE, PatchArray, PatchBatch
from pcam.terminal import printable

FORMAT: Final = b"pcam-packed"
VERSION: Final = 2
CHUNK: Final = 256
"""Patches that are read from a store or written to it together; 256 are 7 MB."""

PATCH_BYTES: Final = PATCH_SIZE * PATCH_SIZE * 3

DELETE: Final = "delete it, and the next run packs it again"


class PackedSplit:
    """One split, memory-mapped; its rows are in the order of the SHA-1 of their pixels.

    This order mixes the classes, puts identical patches side by side, and is the same whatever form the patches came
    in. Indexing with an array of row numbers gives a batch, so that a store is a map-style data set for a loader whose
    sampler yields whole batches.

    Attributes:
        path: The HDF5 file.
        labels: Shape (patches,), 0 or 1.
        fingerprint: SHA-256 over the SHA-1 and the label of every row, so the same patches have the same fingerprint in
            any form.
        signature: The signature of the files it was packed from.
        repeats_dropped: Patches that were left out because one with identical pixels is there.
        conflicts_dropped: Patches that were left out because identical pixels carried both labels.
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
            if os.path.lexists(path) and not path.is_file():  # to open a named pipe would wait for ever
                raise ValueError("it is no file, but a folder, a device, a named pipe or a link to nothing")
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                    raise ValueError(f"it has no mark '{FORMAT.decode()}', version {VERSION}")
                patches, labels = _held(file, "patches"), _held(file, "labels")
                if labels.dtype != np.uint8 or labels.ndim != 1:
                    raise ValueError(f"it holds labels as {labels.dtype} of shape {labels.shape}")
                shape, offset = patches.shape, patches.id.get_offset()
                if patches.dtype != np.uint8 or shape != (len(labels), *PATCH_SHAPE) or offset is None:
                    raise ValueError(
                        f"it holds an array of shape {shape} and type {patches.dtype} for {len(labels)} labels"
                    )
                self.labels: NDArray[np.uint8] = labels[:]
                if not np.isin(self.labels, (0, 1)).all():
                    raise ValueError(f"it holds the label {self.labels.max()}")
                self.fingerprint: str = file.attrs["fingerprint"].decode()
                self.signature: str = file.attrs["signature"].decode()
                self.repeats_dropped = int(file.attrs["repeats_dropped"])
                self.conflicts_dropped = int(file.attrs["conflicts_dropped"])
            with path.open("rb") as opened:
                self._pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.offset: int = offset
            """Bytes of the file before the first patch."""
            self.patches: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._pages, offset)
        # What h5py and NumPy raise for damage; an attribute of another type lacks a method or is no number.
        except (OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            raise _unusable(path, error) from error

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

    def announce(self, rows: NDArray[np.int64]) -> None:
        """Have the system read rows from the disk before they are asked for; returns at once.

        Args:
            rows: Shape (batch,), row numbers.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):  # not every system takes such advice
            return
        for start in (self.offset + rows * PATCH_BYTES).tolist():
            page = start - start % mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_WILLNEED, page, start + PATCH_BYTES - page)

    def ids(self) -> list[str]:
        """Read the name that each row had in the data set that it was packed from."""
        return [os.fsdecode(name) for name in self._column("ids")]

    def slides(self) -> list[str] | None:
        """Read the name of the slide that each row is from; None if the data set does not tell."""
        return self.origins().get("slide")

    def origins(self) -> dict[Origin, list[str]]:
        """Read where each row is from: the names of slides, patients and hospitals, as far as the data set tells."""
        held = self._held_columns()
        found = {
            origin: [os.fsdecode(name) for name in self._column(f"{origin}s")]
            for origin in ORIGINS
            if f"{origin}s" in held
        }
        return {origin: names for origin, names in found.items() if any(names)}

    def pixel_hashes(self) -> list[str]:
        """Read the SHA-1 of the pixels of each row, in hexadecimal; identical pixels have the same one."""
        return [digest.tobytes().hex() for digest in self._column("sha1")]

    def is_of(self, files: SplitFiles, deduplicate: bool) -> bool:
        """Say whether a store was packed from the files as they are now.

        Args:
            files: The files of the split.
            deduplicate: Whether repeats should have been dropped.

        Returns:
            Whether it was; if not, it has to be packed again.
        """
        return self.signature == _signature(files, deduplicate)

    def verify(self) -> None:
        """Hash all patches again, and compare the hashes, labels and names with what was packed.

        Raises:
            UserError: If a patch, a label or a name is not what was packed.
        """
        chunks = (self.patches[start : start + CHUNK] for start in range(0, len(self), CHUNK))
        hashes = np.concatenate(list(in_threads(_hash, chunks, len(self), f"Verifying {self.path.name}")))
        altered = np.flatnonzero((hashes != self._column("sha1")).any(axis=1))
        found = None
        if len(altered):
            found = f"other pixels in {len(altered):,} of {len(self):,} rows, the first row {altered[0]}"
        elif _fingerprint(np.column_stack([hashes, self.labels])) != self.fingerprint:
            found = "other labels"
        if found:
            raise UserError(f"Expected in {self.path} what was packed, but found {found}; {DELETE}.")
        for name in self._held_columns() & {"ids", *(f"{origin}s" for origin in ORIGINS)}:  # HDF5 compares checksums
            self._column(name)

    def _held_columns(self) -> set[str]:
        with h5py.File(self.path, "r") as file:
            return set(file)

    def _column(self, name: str) -> NDArray[np.uint8]:
        try:
            with h5py.File(self.path, "r") as file:
                is_same = [file.attrs[key].decode() for key in ("fingerprint", "signature")]
                if is_same != [self.fingerprint, self.signature]:  # the patches are still those of the earlier file
                    raise UserError(
                        f"Expected {self.path} as this process opened it, but another process has packed it again, as "
                        f"its files have changed; start again."
                    )
                column: NDArray[np.uint8] = file[name][:]
                if len(column) != len(self):
                    raise ValueError(f"it holds {len(column)} '{name}' for {len(self)} patches")
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise _unusable(self.path, error) from error
        return column


def pack(files: SplitFiles, path: Path, description: str, *, deduplicate: bool = False) -> PackedSplit:
    """Open the store of a split, packing it first if it is not there or its files have changed.

    Packing decodes on all cores, holds a few hundred patches in memory at a time, and needs free disk space for twice
    the patches. Several processes may call this at once: one packs, the others wait and say so. A process that is
    killed leaves no store behind.

    Args:
        files: The files of the split.
        path: The file of the store.
        description: What the progress bar says.
        deduplicate: Whether to keep only one patch of each group with identical pixels, and none of a group that
            carries both labels, as nothing tells which of the two is right.

    Returns:
        The store, open.

    Raises:
        UserError: If a patch cannot be read, the disk has no room, or another file is in the store's place.
    """
    if path.exists():
        store = PackedSplit(path)
        if store.is_of(files, deduplicate):
            return store
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"Expected a folder for packed stores at {path.parent}, but found a file there; choose another place with "
            f"--data.cache_dir."
        ) from error
    with only_one(path.with_name(f"{path.name}.lock"), lambda: _who_packs(path), inform):
        if path.exists():
            store = PackedSplit(path)
            if store.is_of(files, deduplicate):  # another process has packed it meanwhile
                return store
            inform(printable(f"The files behind {path} have changed since it was packed: packing them again."))
        for stale in path.parent.glob(f".{path.name}.*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            _pack(files, path, description, deduplicate)
        except OSError as error:  # of writing, which does not say where
            if error.errno not in NO_ROOM:
                raise
            raise UserError(
                f"Expected room to pack into {path.parent}, but the system refused ({error.strerror}); make room, or "
                f"choose another disk with --data.cache_dir."
            ) from error
    return PackedSplit(path)


def _pack(files: SplitFiles, path: Path, description: str, deduplicate: bool) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent) as folder:
        unsorted = Path(folder) / "unsorted"
        with files.open(Path(folder)) as split:
            # Once unsorted and once sorted; what opening has unpacked goes before the sorted one is written.
            unpacked = sum(file.stat().st_size for file in Path(folder).iterdir())
            _require_space(path.parent, 2 * len(split.ids) * PATCH_BYTES - unpacked)
            hashes = _write_unsorted(split, unsorted, description)
        with atomic_path(path) as temporary, unsorted.open("rb") as patches:
            _write_sorted(temporary, split, hashes, patches, _signature(files, deduplicate), deduplicate)


@dataclass(frozen=True)
class _Decoded:
    patches: PatchArray
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.patches)


def _who_packs(path: Path) -> str:
    """Say who packs a store: the number of that process is in the name of its temporary folder."""
    start = f".{path.name}."
    numbers = [found.name.removeprefix(start).split(".")[0] for found in path.parent.glob(f"{start}*.*")]
    return f"packs {path}" + "".join(f" (number {number})" for number in numbers[:1])


def _held(file: h5py.File, key: str) -> h5py.Dataset:
    try:
        return find_array(file, key)
    except ValueError as error:
        raise ValueError(f"as '{key}' it has {error}") from error


def _signature(files: SplitFiles, deduplicate: bool) -> str:
    return f"{files.signature} deduplicated" if deduplicate else files.signature


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"Expected {needed / 1e9:.1f} GB of free disk space to pack into {folder}, but found {free / 1e9:.1f} GB; "
            f"make room, or choose another disk with --data.cache_dir."
        )


def _unusable(path: Path, error: Exception) -> UserError:
    return UserError(f"Expected a packed split in {path}, but it cannot be used ({error}); {DELETE}.")


def _hash(patches: PatchArray) -> NDArray[np.uint8]:
    """The SHA-1 of each patch, shape (patches, 20)."""
    return np.frombuffer(b"".join(map(pixel_hash, patches)), dtype=np.uint8).reshape(-1, 20)


def _fingerprint(keys: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(keys).data).hexdigest()


def _decode(portion: Portion) -> _Decoded:
    patches = portion.decode()
    return _Decoded(patches, _hash(patches))


def _write_unsorted(split: Split, unsorted: Path, description: str) -> NDArray[np.uint8]:
    """Write all patches to a file, in the order in which they are listed; return their SHA-1, shape (patches, 20)."""
    hashes = []
    # A plain file: the pages of a mapped one would count as this process's memory.
    with unsorted.open("wb") as file:
        for decoded in in_threads(_decode, split.portions(TASK_PATCHES), len(split.ids), description):
            file.write(np.ascontiguousarray(decoded.patches).data)
            hashes.append(decoded.hashes)
    return np.concatenate(hashes)


def _write_sorted(
    path: Path, split: Split, hashes: NDArray[np.uint8], unsorted: BufferedReader, signature: str, deduplicate: bool
) -> None:
    """Write the store, in the order of (SHA-1, label)."""
    labels = np.asarray(split.labels, dtype=np.uint8)
    keys = np.ascontiguousarray(np.column_stack([hashes, labels]))
    order = np.argsort(keys.view(f"S{keys.shape[1]}").ravel(), kind="stable")
    repeats = conflicts = 0
    if deduplicate:
        order, repeats, conflicts = _without_repeats(order, hashes, labels)
    # From version 1.10 on, HDF5 has checksums for its own records; attributes are among them if of fixed length.
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = VERSION
        file.attrs["signature"] = np.bytes_(signature.encode())
        file.attrs["fingerprint"] = np.bytes_(_fingerprint(keys[order]).encode())
        file.attrs["repeats_dropped"] = repeats
        file.attrs["conflicts_dropped"] = conflicts
        slides = [""] * len(labels) if split.slides is None else split.slides
        columns = {"labels": labels, "sha1": hashes, "ids": _encoded(split.ids), "slides": _encoded(slides)}
        known = {"patients": split.patients, "hospitals": split.hospitals}
        columns |= {name: _encoded(names) for name, names in known.items() if names is not None}
        for name, values in columns.items():
            file.create_dataset(name, data=values[order], fletcher32=True)
        patches = file.create_dataset("patches", shape=(len(order), *PATCH_SHAPE), dtype=np.uint8)
        chunk = np.empty((CHUNK, *PATCH_SHAPE), dtype=np.uint8)
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            for place, row in enumerate(rows):
                unsorted.seek(row * PATCH_BYTES)
                unsorted.readinto(chunk[place].data)
            patches[start : start + CHUNK] = chunk[: len(rows)]


def _without_repeats(
    order: NDArray[np.int64], hashes: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], int, int]:
    """Keep the first of each group with the same hash, and none of a group with both labels.

    Returns:
        The rows that are kept, in order; the number of repeats dropped; the number of patches in conflict dropped.
    """
    is_first = np.append(True, (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1))
    group = np.cumsum(is_first) - 1
    sizes, tumours = np.bincount(group), np.bincount(group, labels[order])
    in_conflict = (tumours > 0) & (tumours < sizes)
    kept = order[is_first & ~in_conflict[group]]
    return kept, int((sizes - 1)[~in_conflict].sum()), int(sizes[in_conflict].sum())


def _encoded(names: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([os.fsencode(name) for name in names])
