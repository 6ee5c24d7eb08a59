"""What all tests share: shape checks on the package, a tiny data set, and the scripts' front doors."""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

# Before the package is first imported: checks every shape where tensors cross from module to module.
TENSOR_MODULES = [
    "pcam.data.augment",
    "pcam.data.draws",
    "pcam.data.stain",
    "pcam.models",
    "pcam.training.classifier",
    "pcam.evaluation",
]
install_import_hook(TENSOR_MODULES, "beartype.beartype")
# Now, and not within a test: its log writes to the standard error of the moment when it is imported.
importlib.import_module("lightning.pytorch")

# What the tests were started from may ignore signals, as shells do for a command in the background, and nohup. The
# commands then ignore them too, and the processes that tests start inherit it.
for _number, _handler in {
    signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL
}.items():  # fmt: skip
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

REPOSITORY = Path(__file__).parent.parent
COUNTS = {"train": (44, 40), "valid": (14, 11), "test": (6, 9)}
"""Patches of class 0 and 1 a split; all differ, so that a swap of splits or classes cannot pass."""


def write_patches(root: Path, counts: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """Write class folders of noise whose centre is darker in class 1: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    for split, numbers in counts.items():
        for label, number in enumerate(numbers):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(number):
                patch = rng.integers(120, 256, (96, 96, 3), dtype=np.uint8)
                if label == 1:
                    patch[32:64, 32:64] //= 2
                Image.fromarray(patch).save(folder / f"patch{index:07d}.png", compress_level=0)


@pytest.fixture(scope="session")
def patch_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in class folders; nobody may write to it."""
    root = tmp_path_factory.mktemp("data") / "patches"
    write_patches(root, COUNTS)
    return root


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of packed stores for all tests that do not test packing."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir / "user"))
    monkeypatch.setattr(sys, "argv", ["pytest"])  # the scripts name themselves by it


@pytest.fixture(scope="module", autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Let what a file leaves unclosed fail in that file, and not wherever garbage is collected next."""
    gc.freeze()  # what was there before, such as all modules, need not be looked through each time
    yield
    gc.collect()
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real patches and weights, for tests marked `real_data`."""
    folder = os.environ.get("PCAM_REAL_DATA")
    if not folder:
        pytest.skip("PCAM_REAL_DATA names no folder with real patches")
    return Path(folder)
