"""The embeddings of a split on disk: computed once, whole or not there, and never taken for those of other weights."""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from pcam.atomic import atomic_path, make_folder
from pcam.data import PCamDataModule
from pcam.data.locks import only_one
from pcam.errors import NO_ROOM, UserError
from pcam.messages import inform
from pcam.models.embedding import Embedder, backbone_fingerprint
from pcam.models.inference import InferenceNetwork
from pcam.options import Dtype, Precision, SplitName

BLOCK: Final = 4096
"""Patches after which what has been computed is safe on the disk, so that an interrupted job goes on from there."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """The embeddings of a split.

    Args:
        path: The file, a NumPy array of shape (patches, features) in the order of the packed store.
        matrix: The same, memory-mapped; or some of its rows, in memory.
        labels: The label of each patch, 0 or 1.
        seconds: How long computing them took, without what was read from an earlier, interrupted job.
        computed: How many patches those seconds were for.
    """

    path: Path
    matrix: NDArray[np.floating[Any]]
    labels: NDArray[np.uint8]
    seconds: float
    computed: int

    def chosen(self, rows: NDArray[np.int64]) -> "EmbeddedSplit":
        """Choose some of the patches.

        Args:
            rows: The rows of the patches, in the order of the packed store.

        Returns:
            The embeddings and labels of these alone, copied into memory; nothing is read or copied if they are all.
        """
        if len(rows) == len(self.labels):
            return self
        return replace(self, matrix=self.matrix[rows], labels=self.labels[rows])


class Embedding:
    """Computes the embeddings of whole splits, or opens those that are there.

    They lie beside the packed stores, under a name that changes with the weights, the patches, how patches enter, and
    each of the options below.

    Args:
        network: A network that makes embeddings; left as it is.
        data: The patches.
        device: Where they are computed.
        dtype: What they are stored in; float16 takes half the space, and leaves three digits.
        tta: Whether an embedding is the mean over the eight symmetries of the square (test-time augmentation).
        precision: "32-true", or "bf16-mixed" to compute in bfloat16.

    Raises:
        UserError: If the network makes no embeddings.
    """

    def __init__(
        self,
        network: nn.Module,
        data: PCamDataModule,
        device: torch.device,
        *,
        dtype: Dtype = "float32",
        tta: bool = False,
        precision: Precision = "32-true",
    ) -> None:
        self.data = data
        self.device = device
        self.dtype: Dtype = dtype
        self._facts = {"backbone": backbone_fingerprint(network), "dtype": dtype, "tta": tta, "precision": precision}
        self._embedder = InferenceNetwork(Embedder(network, tta=tta), precision, device=device)

    def path(self, split: SplitName) -> Path:
        """The file of a split's embeddings, whether it is there or not."""
        # In the first form, rows that data.train_patches had not chosen were 0.
        facts = {**self._facts, "form": 2, "patches": self.data.packed(split).fingerprint}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return self.data.store_path(split).parent / "embeddings" / f"{split}-{key}.npy"

    def open(self, split: SplitName) -> EmbeddedSplit:
        """Open a split's embeddings, computing them first if they are not there.

        Several processes may call this at once: one computes, the others wait. An interrupted job goes on from the
        last block that was finished.

        Args:
            split: "train", "valid" or "test".

        Returns:
            The embeddings.

        Raises:
            UserError: If an embedding is not finite, the disk has no room, or a file is damaged.
        """
        store = self.data.packed(split)
        path = self.path(split)
        make_folder(path.parent, f"a folder for embeddings at {path.parent}")
        if not path.exists():
            with only_one(path.with_suffix(".lock"), lambda: f"embeds {split}", inform):
                if not path.exists():
                    try:
                        self._compute(split, path)
                    except OSError as error:
                        if error.errno not in NO_ROOM:
                            raise
                        raise UserError(
                            f"Expected room for embeddings in {path.parent}, but the system refused "
                            f"({error.strerror}); make room, choose another disk with --data.cache_dir, or --dtype "
                            f"float16."
                        ) from error
        values = _open(path, len(store), self.dtype)
        measured = _read_json(path.with_suffix(".json"))
        return EmbeddedSplit(path, values, store.labels, measured.get("seconds", 0.0), measured.get("computed", 0))

    def _compute(self, split: SplitName, path: Path) -> None:
        """Write the embeddings of a split beside where they belong, block by block, and rename the file."""
        partial, note = path.with_suffix(".partial"), path.with_suffix(".progress")
        loader = self.data.loader(split)
        count = len(self.data.packed(split))
        values = _open_partial(partial, count)
        done = 0 if values is None else int(_read_json(note).get("patches", 0))
        # Whole batches alone can be skipped; those of now may be of another size than those of the interrupted job.
        sizes = list(itertools.accumulate(len(rows) for rows in loader.sampler))
        skipped = sum(size <= done for size in sizes)
        start = done = sizes[skipped - 1] if skipped else 0
        loader.load_state_dict({"epoch": 0, "batches_given": skipped})
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        started, safe = time.monotonic(), done
        with Progress(*columns) as progress:
            bar = progress.add_task(f"Embedding {split}", total=count, completed=done)
            for batch in self._batches(loader) if skipped < len(sizes) else ():
                if values is None:
                    shape = (count, batch.shape[1])
                    values = np.lib.format.open_memmap(partial, "w+", np.dtype(self.dtype), shape)
                found = batch.numpy().astype(self.dtype)
                if not np.isfinite(found).all():
                    raise UserError(
                        f"Expected embeddings that are finite in {self.dtype}, but patch {done} or one after it of "
                        f"{split} has one that is not; take --dtype float32, or other weights."
                    )
                values[done : done + len(found)] = found
                done += len(found)
                progress.update(bar, completed=done)
                if done - safe >= BLOCK or done == count:
                    values.flush()  # type: ignore[attr-defined]  # a memmap's
                    _write_json(note, {"patches": done})
                    safe = done
        seconds = time.monotonic() - started
        _write_json(
            path.with_suffix(".json"),
            {**self._facts, "engine": self._embedder.name, "seconds": seconds, "computed": count - start},
        )
        with atomic_path(path) as temporary:
            partial.rename(temporary)
        note.unlink(missing_ok=True)

    def _batches(self, loader: Any) -> Iterator[torch.Tensor]:
        """Embed batch after batch; the device computes one while the result of the last is copied."""
        last: torch.Tensor | None = None
        with torch.inference_mode():
            for batch in loader:
                embedded = self._embedder(batch.patches.to(self.device, non_blocking=True))
                if last is not None:
                    yield last.cpu()
                last = embedded
        assert last is not None
        yield last.cpu()


def _open_partial(path: Path, patches: int) -> NDArray[Any] | None:
    """Open what an interrupted job has left; None if there is nothing that could be gone on with."""
    with suppress(OSError, ValueError, EOFError):
        values: NDArray[Any] = np.load(path, mmap_mode="r+")
        if values.ndim == 2 and len(values) == patches:
            return values
    return None


def _open(path: Path, patches: int, dtype: Dtype) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r")
        if values.ndim != 2 or len(values) != patches or values.dtype != dtype:
            raise ValueError(f"it holds {values.dtype} of shape {values.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"Expected the embeddings of {patches:,} patches in {path}, but it cannot be used ({error}); delete it, "
            f"and they are computed again."
        ) from error
    return values


def _read_json(path: Path) -> Mapping[str, Any]:
    """Read a note that this module wrote; nothing if it is not there or damaged, which costs time and no more."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
