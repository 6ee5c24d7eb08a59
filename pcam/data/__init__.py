"""From files on disk to batches of patches."""

from pcam.data.datamodule import PCamDataModule
from pcam.data.packed import PackedSplit

__all__ = ["PCamDataModule", "PackedSplit"]
