"""From files on disk to batches of patches."""

from pcam.data.datamodule import PCamDataModule

__all__ = ["PCamDataModule"]
