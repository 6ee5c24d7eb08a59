"""Stores with damage that nobody has thought of: each opens as what was packed, or is refused in a sentence."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcam.data import PCamDataModule
from pcam.data.packed import PackedSplit
from pcam.errors import UserError
from tests.conftest import write_patches


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store of five patches."""
    folder = tmp_path_factory.mktemp("store")
    write_patches(folder / "patches", {"train": (3, 2)})
    return PCamDataModule(folder / "patches", cache_dir=folder / "cache").packed("train").path.read_bytes()


def places(content: bytes) -> list[int]:
    """Where a store holds other things than pixels: its first and last 6 kB."""
    return [*range(6000), *range(len(content) - 6000, len(content))]


@settings(max_examples=int(os.environ.get("PCAM_FUZZ_EXAMPLES", "150")), deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 11_999), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_a_damaged_store_is_whole_or_refused(
    changes: list[tuple[int, int]], kept: float, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[places(content)[place]] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.h5"
    path.write_bytes(bytes(damaged[: int(kept * len(damaged))]))
    try:
        store = PackedSplit(path)
        batch = store[np.arange(len(store))]
        store.verify()
        sentence = f"{path}: {batch.patches.shape} {store.ids()} {store.slides()}"
    except UserError as error:
        sentence = str(error)
    assert str(path) in sentence
