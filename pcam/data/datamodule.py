"""`PCamDataModule`: PatchCamelyon as loaders of whole batches."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from platformdirs import user_cache_path

from pcam.atomic import expanded
from pcam.data.augment import Augmentation, augment
from pcam.data.layouts import find_layout
from pcam.data.loader import Batches, BatchLoader
from pcam.data.packed import PackedSplit, pack
from pcam.data.stain import StainShift, jitter_stains, shift_stains
from pcam.errors import UserError
from pcam.messages import inform
from pcam.options import SplitName
from pcam.patches import PatchBatch, Patches
from pcam.terminal import printable


class PCamDataModule(LightningDataModule):
    """PatchCamelyon in batches, from any form it comes in.

    The form is recognised by looking at the folder. At first use each split is packed into a memory-mapped store;
    later uses open the store at once, and pack again only if the folder has changed.

    Args:
        root: Folder with the data in one of these forms, which is recognised: the official HDF5 files, Kaggle's, class
            folders, parquet files, TensorFlow Datasets', WILDS Camelyon17. What each looks like: the official
            `camelyonpatch_level_2_split_train_x.h5` and so on, or the same as `.h5.gz`, with the meta CSVs or without.
            Kaggle's `train_labels.csv` and `train/*.tif`: a tenth of them becomes the valid split, whole slides if a
            CSV of `id` and `slide`, or the official files of train with their meta CSV, lie beside them, else chosen
            by a hash of the id. Class folders `train`, `valid` (or `val`), `test`, each with `0` and `1`, or the
            course's `train+val/train` and `train+val/valid`: images are 96x96 RGB, as jpg, jpeg, png, tif or tiff.
            Parquet files `train*.parquet`, `valid*`, `test*`, here or in `data`, with the columns `image` and `label`.
            TensorFlow Datasets' `patch_camelyon-train.tfrecord-*` and so on. WILDS Camelyon17, its folder or the
            parquet files of its mirror, with hospital 1 as the valid split and hospital 2 as the test split.
        batch_size: Patches a batch, at least 1, in training and evaluation. Batch norm needs at least 2.
        augmentation: How training patches are changed: "none", or "d4", one of the eight symmetries of the square
            (flips and quarter turns), drawn for each patch and each epoch.
        stain_jitter: How strongly the amounts of haematoxylin, eosin and the rest are changed at random in training
            patches, for each patch and each epoch: from 0, which changes nothing, to below 1 (`jitter_stains`).
        stain_shifts: The staining of other laboratories, as factors of the amount of each stain. If there are any,
            validation also measures the valid split with each patch in the staining of one of them, in turn, as
            `val_shifted/loss` and so on: a classifier that overfits to the staining of its training slides is worse
            there.
        num_workers: Processes that read batches beside the training process. 0 reads in the training process, which
            is fastest on a CPU, where a batch of 32 is read in a fraction of a millisecond.
        cache_dir: Folder for the packed stores, which take 28 kB for each patch. Null is the user's cache folder
            ($XDG_CACHE_HOME/pcam or ~/.cache/pcam on Linux). Nothing is ever written below `root`.
        seed: Seed of the order of training patches and of their augmentation; the commands take it from
            `seed_everything`.
        deduplicate: Whether to keep, in each split, only one patch of each group with identical pixels, and none of a
            group that carries both labels, as nothing tells which is right. The official splits have 50,000 repeats;
            published numbers are measured on splits with their repeats.
        train_patches: How many patches of the train split to train on, chosen by `seed`; those of a smaller number are
            among those of a larger one. Null takes all of them.
        train_slides: The number of slides whose patches of the train split are trained on, chosen by `seed` before
            `train_patches` are chosen from them. Null takes all slides.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 32,
        augmentation: Augmentation = "none",
        stain_jitter: float = 0.0,
        stain_shifts: Sequence[StainShift] = (),
        num_workers: int = 0,
        cache_dir: Path | None = None,
        seed: int = 1,
        deduplicate: bool = False,
        train_patches: int | None = None,
        train_slides: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"Expected data.batch_size to be at least 1, but found {batch_size}.")
        if not 0 <= stain_jitter < 1:
            raise UserError(f"Expected data.stain_jitter to be at least 0 and below 1, but found {stain_jitter}.")
        if num_workers < 0:
            raise UserError(f"Expected data.num_workers to be at least 0, but found {num_workers}.")
        for name, number in {"train_patches": train_patches, "train_slides": train_slides}.items():
            if number is not None and number < 1:
                raise UserError(f"Expected data.{name} to be at least 1, but found {number}.")
        self.root = expanded(root, "root")
        self.batch_size = batch_size
        self.augmentation: Augmentation = augmentation
        self.stain_jitter = stain_jitter
        self.stain_shifts = stain_shifts
        self.num_workers = num_workers
        self.cache_dir = expanded(cache_dir, "cache_dir") if cache_dir else user_cache_path("pcam")
        self.seed = seed
        self.deduplicate = deduplicate
        self.train_patches = train_patches
        self.train_slides = train_slides
        self._stores: dict[SplitName, PackedSplit] = {}

    def packed(self, split: SplitName) -> PackedSplit:
        """Open a split's store, packing it first if need be.

        Args:
            split: "train", "valid" or "test".

        Returns:
            The store.

        Raises:
            UserError: If the data cannot be found or read; the message says what and where.
        """
        if split not in self._stores:
            self._check_cache()
            files = find_layout(self.root).split(split)
            if files.note is not None:
                inform(printable(files.note))
            store = pack(files, self.store_path(split), f"Packing {split}", deduplicate=self.deduplicate)
            if self.deduplicate:
                inform(
                    f"{split}: kept {len(store):,} patches, dropped {store.repeats_dropped:,} repeats of them and "
                    f"{store.conflicts_dropped:,} patches whose identical pixels carry both labels."
                )
            self._stores[split] = store
        return self._stores[split]

    def rows(self, split: SplitName) -> NDArray[np.int64]:
        """Number the rows of a split's store that are learned from, or measured on.

        Args:
            split: "train", "valid" or "test".

        Returns:
            All rows, or of train those that `train_slides` and `train_patches` choose.

        Raises:
            UserError: If the train split has fewer slides or patches than are asked for.
        """
        store = self.packed(split)
        rows = np.arange(len(store))
        if split != "train":
            return rows
        rng = np.random.default_rng(self.seed)
        if self.train_slides is not None:
            slides = np.array(store.slides() or [], dtype=object)
            names = sorted({slide for slide in slides if slide})
            _check_enough(self.train_slides, len(names), "slides", self.root)
            rows = rows[np.isin(slides, rng.permutation(names)[: self.train_slides])]
        if self.train_patches is not None:
            _check_enough(self.train_patches, len(rows), "patches", self.root)
            rows = np.sort(rng.permutation(rows)[: self.train_patches])
        return rows

    def _check_cache(self) -> None:
        """Refuse to write below the folder with the data."""
        # Not `Path.resolve`, which raises for links that lead round in a circle.
        root, cache = os.path.realpath(self.root), os.path.realpath(self.cache_dir)
        if Path(cache).is_relative_to(root):
            raise UserError(
                f"Expected cache_dir outside of the folder with the data, {self.root}, where nothing is written, but "
                f"found {self.cache_dir}; choose another with --data.cache_dir."
            )

    def store_path(self, split: SplitName) -> Path:
        """Give the file of a split's store in the cache, whether it is packed already or not.

        Args:
            split: "train", "valid" or "test".

        Returns:
            The path, which depends on `root`, `cache_dir` and `deduplicate`.
        """
        root = self.root.resolve()
        place = hashlib.sha256(bytes(root)).hexdigest()[:12]
        name = f"{split}-{'deduplicated' if self.deduplicate else 'all'}.h5"
        # A name may have 255 bytes: that of the root may already.
        stem = root.name.encode(errors="surrogateescape")[:128].decode(errors="ignore")
        return self.cache_dir / f"{stem}-{place}" / name

    def prepare_data(self) -> None:
        """Pack what training reads, before there are several processes."""
        self.packed("train")
        self.packed("valid")

    def loader(self, split: SplitName, *, shuffle: bool = False, shifted: bool = False) -> BatchLoader:
        """Make a loader of a split.

        Args:
            split: "train", "valid" or "test".
            shuffle: Whether patches come as training reads them: in another order in each epoch, and of train only
                those that `train_slides` and `train_patches` choose. Otherwise it is every patch, in the order of the
                store.
            shifted: Whether patches are given the staining of `stain_shifts`.

        Returns:
            A loader of `PatchBatch`.
        """
        store = self.packed(split)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = self.rows(split) if shuffle else np.arange(len(store))
        batches = Batches(len(rows), self.batch_size, self.seed if shuffle else None, rank, world_size, rows)
        change = partial(shift_stains, shifts=self.stain_shifts) if shifted else None
        return BatchLoader(store, batches, self.num_workers, change)

    def training_patches(self, count: int, device: torch.device) -> Iterator[Patches]:
        """Give training patches without augmentation; each call gives the same ones.

        Args:
            count: How many patches, at most. Whole batches are given, and at least one.
            device: The device that they are moved to.

        Yields:
            Batches, in the order of the first epoch.
        """
        batches = max(1, min(count, len(self.rows("train"))) // self.batch_size)
        for batch in islice(self.loader("train", shuffle=True), batches):
            yield batch.patches.to(device)

    def train_dataloader(self) -> BatchLoader:
        """Batches of the train split, shuffled."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> list[BatchLoader]:
        """Batches of the valid split, in order; then, if there are stain shifts, the same with them."""
        return [self.loader("valid", shifted=shifted) for shifted in ([False, True] if self.stain_shifts else [False])]

    def on_after_batch_transfer(self, batch: PatchBatch, dataloader_idx: int) -> PatchBatch:
        """Augment training batches on the device."""
        if self.trainer is None or not self.trainer.training:
            return batch
        chance = {"seed": self.seed, "epoch": self.trainer.current_epoch}
        patches = augment(batch.patches, batch.indices, self.augmentation, **chance)
        return batch._replace(patches=jitter_stains(patches, batch.indices, self.stain_jitter, **chance))


def _check_enough(asked: int, found: int, what: str, root: Path) -> None:
    if found < asked:
        raise UserError(
            f"Expected data.train_{what} to be at most the {found:,} {what} that are known of train in {root}, but "
            f"found {asked:,}; ask for fewer."
        )
