"""Where a command may write: never over its own input, over a part of a run, or over a file of another kind."""

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pcam.atomic import is_stream
from pcam.errors import UserError
from pcam.options import IMAGE_SUFFIXES

INPUT_SUFFIXES: Final = IMAGE_SUFFIXES | {".h5", ".hdf5"}
"""Endings of files that a folder of inputs is searched for, or that hold inputs."""

OPEN_PARTS: Final = ("evaluation", "export")
"""Folders in a run folder that results are written to."""


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command writes.

    Args:
        name: What messages call it: "a CSV of scores".
        starts: What a file of this kind begins with; one of them.
        offset: Bytes before that.
    """

    name: str
    starts: Sequence[bytes]
    offset: int = 0

    def is_of(self, path: Path) -> bool:
        """Whether a file is of this kind, or empty."""
        with path.open("rb") as file:
            head = file.read(self.offset + max(map(len, self.starts)))
        return not head or head[self.offset :].startswith(tuple(self.starts))


SCORES_CSV: Final = Kind("a CSV of scores", [b"id,logit,score", b"id,label"])
ERRORS_CSV: Final = Kind("a CSV of what could not be read", [b"id,reason"])
PNG: Final = Kind("a PNG picture", [b"\x89PNG\r\n"])
TIFF: Final = Kind("a TIFF image", [b"II*\0", b"MM\0*"])
ONNX: Final = Kind("an ONNX model", [b"\x08"])
SAFETENSORS: Final = Kind("a file of safetensors", [b"{"], offset=8)
JSON: Final = Kind("a JSON file", [b"{", b"["])
SLIDES_CSV: Final = Kind("a table of slides", [b"slide,"])
TORCHSCRIPT: Final = Kind("a TorchScript model", [b"PK"])
MARKDOWN: Final = Kind("a page in Markdown", [b"# "])


def check_output(output: Path, kind: Kind, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a file where something else would be lost.

    A path that is no regular file, as /dev/stdout, is written to and loses nothing.

    Args:
        output: Where a command is going to write.
        kind: What it is going to write.
        inputs: What it reads: files, or folders of files.

    Raises:
        UserError: If `output` is an input, would be an input the next time, belongs to a run, or is a file of another
            kind.
    """
    if is_stream(output):
        return
    place = output.resolve()
    there = _identity(output)
    for path in inputs:
        found = _identity(path)
        if found is None:
            continue
        among = found.is_folder and output.suffix.lower() in INPUT_SUFFIXES and path.resolve() in place.parents
        if among or (there is not None and found == there):
            raise UserError(
                f"Expected an output apart from what is read, but {output} is {path} or lies among its images; choose "
                f"another place with --output."
            )
    for folder in place.parents:
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            if place.relative_to(folder).parts[0] not in OPEN_PARTS:
                raise UserError(
                    f"Expected an output apart from the parts of a run, but {output} lies in the run folder {folder}; "
                    f"choose another place with --output, such as its folder export."
                )
            break
    if output.is_file() and not kind.is_of(output):
        raise UserError(
            f"Expected to write {kind.name} to {output}, but found a file of another kind there; move it away, or "
            f"choose another place with --output."
        )


class _Identity(NamedTuple):
    """What tells a file from all others, by whatever names it is called."""

    device: int
    number: int
    is_folder: bool


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Identity(status.st_dev, status.st_ino, stat.S_ISDIR(status.st_mode))
