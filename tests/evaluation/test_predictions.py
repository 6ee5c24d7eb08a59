"""Files of predictions: what was written is what is read, and a damaged one is named."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions

LOGITS = np.array([0.1, 1 / 3, -7.7, 1e-42, -0.0, 3.4e38, 17.000002], np.float32)
"""Among them a subnormal number, minus zero, and one next to the largest."""

WRITTEN = Predictions(
    ids=["-1", "007", "1e3", "NA", "a, b", 'c "d"', "e\nf"],
    labels=np.array([0, 1, 1, 0, 1, 0, 0], np.uint8),
    logits=LOGITS,
    groups=["12", "0012", "1e10", "nan", "5", "5", "true"],
    slides=["", "01", "NULL", "1.50", " x ", "", "2"],
)


def check_equal(first: Predictions, second: Predictions) -> None:
    assert (first.ids, first.groups, first.slides) == (second.ids, second.groups, second.slides)
    assert (first.labels.dtype, first.labels.tolist()) == (second.labels.dtype, second.labels.tolist())
    assert first.logits.dtype == second.logits.dtype
    assert first.logits.tobytes() == second.logits.tobytes()


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.csv.gz"])
@pytest.mark.parametrize("slides", [WRITTEN.slides, None])
def test_what_was_written_is_read_bit_for_bit(name: str, slides: list[str] | None, tmp_path: Path) -> None:
    written = Predictions(WRITTEN.ids, WRITTEN.labels, WRITTEN.logits, WRITTEN.groups, slides)
    written.write(tmp_path / name)
    check_equal(Predictions.read(tmp_path / name), written)


def test_rows_are_in_the_order_of_the_ids(tmp_path: Path) -> None:
    replace(WRITTEN, ids=WRITTEN.ids[::-1]).write(tmp_path / "predictions.csv")
    assert Predictions.read(tmp_path / "predictions.csv").ids == WRITTEN.ids


def test_every_float32_survives(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(2**32, size=20_000, dtype=np.uint32)
    logits = bits.view(np.float32)
    logits = logits[np.isfinite(logits)]
    names = [f"{index:05d}" for index in range(len(logits))]
    written = Predictions(names, np.zeros(len(logits), np.uint8), logits, names)
    written.write(tmp_path / "all.csv.gz")
    check_equal(Predictions.read(tmp_path / "all.csv.gz"), written)


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.csv.gz", "another.csv.gz"):
        WRITTEN.write(tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "another.csv.gz").read_bytes()


def test_a_folder_or_a_named_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(UserError, match=r"Expected predictions in .* cannot be read \(it is no file\)"):
            Predictions.read(path)


def test_a_compressed_file_that_is_cut_anywhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    WRITTEN.write(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"Expected predictions in .*cut\.csv\.gz .*; copy or write the file again"):
            Predictions.read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "its last line has no end"),
        (b"\n", "No columns to parse"),
        (b"id,label,logit,group\na,0,0.12", "its last line has no end"),
        (b"id,label,logit,group\na,0\n", "could not convert string to float"),
        (b"id,label,group\na,0,b\n", "it has no column logit"),
        (b"id,score\na,0.5\n", "it has no column label and no column logit and no column group"),
        (b"id,label,logit,group\na,2,0.5,b\n", "it has labels other than 0 and 1"),
        (b"id,label,logit,group\na,1,high,b\n", "could not convert string to float: .*high"),
        (b"id,label,logit,group\na,1,1,b,c,d\nb,1,1,b,c,d,e,f\n", "Expected 6 fields"),
        (b"id,label,logit,group\na,1,1,b,c\n", "its rows have more fields than its header"),
        (gzip.compress(b"id,label,logit,group\n", mtime=0), "its last line has no end"),
    ],
)
def test_a_file_that_is_none_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"Expected predictions in .*predictions\.csv .*{reason}"):
        Predictions.read(path)
