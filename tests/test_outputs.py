"""Where a command may not write."""

import os
from pathlib import Path

import pytest

from pcam.errors import UserError
from pcam.outputs import ERRORS_CSV, ONNX, PNG, SAFETENSORS, SCORES_CSV, TIFF, Kind, check_output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of inputs, and a run folder beside it."""
    (tmp_path / "inputs" / "deep").mkdir(parents=True)
    (tmp_path / "inputs" / "patch.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("experiment: x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "kind", "inputs"),
    [
        ("x.h5", SCORES_CSV, ["x.h5"]),
        ("inputs/patch.png", PNG, ["inputs/patch.png"]),
        ("inputs/patch.png", PNG, ["inputs"]),
        ("inputs/deep/new.png", PNG, ["inputs"]),
        ("inputs/map.TIF", TIFF, ["inputs"]),
        ("inputs/../x.h5", SCORES_CSV, ["x.h5"]),
        ("link", SCORES_CSV, ["x.h5"]),
        ("hard", SCORES_CSV, ["x.h5"]),
    ],
)
def test_an_output_is_never_an_input(output: str, kind: Kind, inputs: list[str], folder: Path) -> None:
    (folder / "link").symlink_to(folder / "x.h5")
    os.link(folder / "x.h5", folder / "hard")
    with pytest.raises(UserError, match="Expected an output apart from what is read"):
        check_output(folder / output, kind, [folder / path for path in inputs])


@pytest.mark.parametrize("output", ["config.yaml", "checkpoints/best.ckpt", "checkpoints/new.csv", "metrics.csv", "a"])
def test_an_output_is_no_part_of_a_run(output: str, folder: Path) -> None:
    with pytest.raises(UserError, match="Expected an output apart from the parts of a run"):
        check_output(folder / "run" / output, SCORES_CSV)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"my,own,table\n", SCORES_CSV),
        (b"id,logit,score\n", ERRORS_CSV),
        (b"\x89HDF\r\n\x1a\n", SCORES_CSV),
        (b"PK\x03\x04", ONNX),
        (b"id,reason\n", PNG),
        (b"PK\x03\x04PK\x03\x04PK", SAFETENSORS),
    ],
)
def test_a_file_of_another_kind_is_not_replaced(content: bytes, kind: Kind, folder: Path) -> None:
    (folder / "output").write_bytes(content)
    with pytest.raises(UserError, match=f"Expected to write {kind.name} to .* a file of another kind"):
        check_output(folder / "output", kind)


@pytest.mark.parametrize(
    ("output", "content", "kind"),
    [
        ("new.csv", None, SCORES_CSV),
        ("old.csv", b"id,logit,score\n1,2,3\n", SCORES_CSV),
        ("empty", b"", ONNX),
        ("inputs/scores.csv", None, SCORES_CSV),
        ("run/export/model.onnx", b"\x08\x0a", ONNX),
        ("run/evaluation/valid/explanation.png", b"\x89PNG\r\n\x1a\n", PNG),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", SAFETENSORS),
    ],
)
def test_what_loses_nothing_is_written(output: str, content: bytes | None, kind: Kind, folder: Path) -> None:
    path = folder / output
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    check_output(path, kind, [folder / "inputs", folder / "x.h5"])


def test_a_stream_loses_nothing(folder: Path) -> None:
    check_output(Path("/dev/null"), SCORES_CSV, [folder / "inputs"])
