"""From files on disk to batches of patches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcam.data.datamodule import PCamDataModule

__all__ = ["PCamDataModule"]


def __getattr__(name: str) -> Any:
    """Import `PCamDataModule` when it is first asked for: it needs Lightning, which the other modules here do not."""
    if name == "PCamDataModule":
        from pcam.data.datamodule import PCamDataModule  # noqa: PLC0415  # the point of this function

        return PCamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
