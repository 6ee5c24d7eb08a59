"""Who takes part in the races over embeddings: `pcam embed`, its network alone, and the fit of a probe."""

from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from torch import nn

from pcam.benchmark.race import Stopwatch
from pcam.data import PCamDataModule
from pcam.device import find_device
from pcam.memory import keep_freed_memory
from pcam.models import MobileNetV2, TimmNetwork
from pcam.models.batch_norm import has_learning_layers, reestimate_batch_norm
from pcam.models.embedding import Embedder
from pcam.models.inference import InferenceNetwork
from pcam.options import Dtype, Precision
from pcam.probe.linear import ROWS, fit_lbfgs
from pcam.probe.store import EmbeddedSplit, Embedding


@dataclass(frozen=True)
class EmbeddingWork:
    """The valid split, to be embedded by a network with random weights.

    Args:
        root: Folder with the patches, in any form.
        cache_dir: Folder for the packed stores.
        name: timm's name of the network; None is MobileNetV2.
        image_size: Side in pixels that patches are enlarged to, for a network of timm; None is the network's own.
        batch_size: Number of patches in a batch.
        precision: What is computed in.
        rounds: Number of turns that each contestant takes.
    """

    root: Path
    cache_dir: Path
    name: str | None
    image_size: int | None
    batch_size: int
    precision: Precision
    rounds: int

    def data(self) -> PCamDataModule:
        """Open the patches."""
        return PCamDataModule(self.root, self.batch_size, cache_dir=self.cache_dir)

    def network(self) -> nn.Module:
        """Build the network, with weights that nobody else has, so that no embeddings in the cache are of them."""
        torch.seed()
        network: nn.Module = (
            MobileNetV2(weights=None, dropout=0.0)
            if self.name is None
            else TimmNetwork(self.name, weights=None, image_size=self.image_size)
        )
        if has_learning_layers(network, network):  # else values fade to subnormal numbers, which are slow
            reestimate_batch_norm(network, self.data().training_patches(4 * self.batch_size, torch.device("cpu")))
        return network


def embed_ours(work: EmbeddingWork, stopwatch: Stopwatch) -> None:
    """Embed the split as the command `embed` does, from the packed store to a file that is whole.

    Args:
        work: What is to be embedded.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    embedding = Embedding(work.network(), work.data(), find_device(), precision=work.precision)
    for number in range(work.rounds + 1):  # the first does not count
        began = process_time()
        if number:
            stopwatch.start()
        embedded = embedding.open("valid")
        for path in embedded.path.parent.glob(f"{embedded.path.stem}.*"):
            path.unlink()  # within the turn, as nothing is done after the last
        if number:
            stopwatch.stop(len(embedded.labels), processor_seconds=process_time() - began)


def embed_resident(work: EmbeddingWork, engine: bool, stopwatch: Stopwatch) -> None:
    """Compute the same embeddings of patches that lie in the device's memory, and keep none: the machine's limit.

    Args:
        work: What is to be embedded.
        engine: Whether OpenVINO may compute, as it does for `embed`; else PyTorch does.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    device = find_device()
    embedder = InferenceNetwork(Embedder(work.network()), work.precision, engine=engine, device=device)
    batches = [batch.patches.to(device) for batch in work.data().loader("valid")]
    for number in range(work.rounds + 1):  # the first does not count
        began = process_time()
        if number:
            stopwatch.start()
        with torch.inference_mode():
            for patches in batches:
                embedder(patches)
        if number:
            stopwatch.stop(sum(map(len, batches)), processor_seconds=process_time() - began)


SIGNAL: Final = 2.0
"""How far apart the classes of made-up embeddings lie: a probe reaches an AUROC of .92 on them."""


def write_embeddings(folder: Path, patches: int, features: int, dtype: Dtype) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    """Write made-up embeddings whose features are correlated, as those of networks are.

    Their principal components have variances that fall as 1 / number, and each says as much of the class.

    Args:
        folder: Where to.
        patches: Number of training patches; valid has an eighth of them, as PatchCamelyon has.
        features: Values of an embedding.
        dtype: What they are stored in.

    Returns:
        Those of train and of valid.
    """
    rng = np.random.default_rng(0)
    scales = (1 / np.sqrt(np.arange(1, features + 1))).astype(np.float32)
    direction = (rng.choice([-1, 1], features) * SIGNAL / np.sqrt(features)).astype(np.float32)
    splits = []
    for split, count in (("train", patches), ("valid", max(patches // 8, 2))):
        path = folder / f"{split}.npy"
        values: NDArray[Any] = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (count, features))
        labels = rng.permutation(np.arange(count) % 2).astype(np.uint8)
        for start in range(0, count, ROWS):
            sides = labels[start : start + ROWS, None] - np.float32(0.5)
            components = (rng.standard_normal((len(sides), features), np.float32) + sides * direction) * scales
            values[start : start + ROWS] = dct(components, norm="ortho")  # a rotation: each is in all features
        del values  # written
        splits.append(EmbeddedSplit(path, np.load(path, mmap_mode="r"), labels, 0.0, 0))
    return splits[0], splits[1]


def fit_probe(folder: Path, patches: int, features: int, dtype: Dtype, rounds: int, stopwatch: Stopwatch) -> None:
    """Fit the probe that the command `probe` fits by default, with the choice of its penalty.

    Args:
        folder: Where embeddings are written.
        patches: As for `write_embeddings`, as are the next two.
        features: Values of an embedding.
        dtype: What they are stored in.
        rounds: Number of turns.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    train, valid = write_embeddings(folder, patches, features, dtype)
    for _ in range(rounds):
        stopwatch.start()
        found = fit_lbfgs(train, valid)
        chosen = next(row for row in found.rows if row["step"] == found.step)
        stopwatch.stop(patches, auroc=chosen["val/auroc"], iterations=found.rows[-1]["step"])
