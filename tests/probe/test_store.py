"""Embeddings on disk: computed once, resumed by blocks, and never taken for those of other weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcam.data import PCamDataModule
from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2, TimmNetwork
from pcam.models.embedding import Embedder
from pcam.probe import store
from pcam.probe.store import Embedding

CPU = torch.device("cpu")


@pytest.fixture
def data(patch_root: Path, tmp_path: Path) -> PCamDataModule:
    return PCamDataModule(patch_root, batch_size=8, cache_dir=tmp_path / "cache")


@pytest.fixture(scope="module")
def network() -> TimmNetwork:
    torch.manual_seed(0)
    return TimmNetwork("test_resnet", None, image_size=96)


def test_they_are_what_the_network_makes_of_each_patch(data: PCamDataModule, network: TimmNetwork) -> None:
    found = Embedding(network, data, CPU).open("valid")
    patches = torch.from_numpy(data.packed("valid").patches.copy()).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.eval().embed(patches).numpy()
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == data.packed("valid").labels.tolist()
    assert found.computed == len(expected)
    halves = Embedding(network, data, CPU, dtype="float16").open("valid")
    assert halves.matrix.dtype == np.float16
    np.testing.assert_allclose(halves.matrix, expected, rtol=1e-3, atol=1e-3)


def test_symmetries_are_averaged(data: PCamDataModule, network: TimmNetwork) -> None:
    found = Embedding(network, data, CPU, tta=True).open("valid").matrix
    patches = torch.from_numpy(data.packed("valid").patches[:2].copy()).permute(0, 3, 1, 2)
    views = [torch.rot90(view, turns, (2, 3)) for view in (patches, patches.flip(3)) for turns in range(4)]
    with torch.no_grad():
        expected = torch.stack([network.eval().embed(view) for view in views]).mean(dim=0)
    np.testing.assert_allclose(found[:2], expected.numpy(), rtol=1e-3, atol=1e-5)


def test_the_file_changes_with_whatever_changes_an_embedding(data: PCamDataModule, network: TimmNetwork) -> None:
    def name(**options: Any) -> str:
        return Embedding(options.pop("network", network), data, CPU, **options).path("valid").name

    def changed(**options: Any) -> TimmNetwork:
        torch.manual_seed(0)
        return TimmNetwork("test_resnet", None, **{"image_size": 96, **options})

    other = changed()
    with torch.no_grad():
        other.features.backbone.conv1[0].weight[0, 0, 0, 0] += 1e-6
    names = [
        name(), name(dtype="float16"), name(tta=True), name(precision="bf16-mixed"), name(network=other),
        name(network=changed(image_size=64)), name(network=changed(mean=[0.1, 0.2, 0.3])),
        Embedding(network, data, CPU).path("train").name,
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name(network=changed()) == names[0]
    with torch.no_grad():
        network.head[1].weight += 1  # plays no part in an embedding
    assert name() == names[0]


def test_a_split_is_embedded_whole_also_where_a_probe_learns_from_a_part(
    data: PCamDataModule, network: TimmNetwork
) -> None:
    some = PCamDataModule(data.root, batch_size=8, cache_dir=data.cache_dir, train_patches=20)
    whole, part = Embedding(network, data, CPU), Embedding(network, some, CPU)
    assert whole.path("train") == part.path("train")
    embedded = part.open("train")
    assert len(embedded.matrix) == len(data.packed("train"))
    assert embedded.matrix.any(axis=1).all()
    rows = some.rows("train")
    chosen = embedded.chosen(rows)
    assert len(rows) == 20
    patches = torch.from_numpy(data.packed("train").patches[rows]).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(chosen.matrix, network.eval().embed(patches).numpy(), rtol=1e-4, atol=1e-5)
    assert chosen.labels.tolist() == data.packed("train").labels[rows].tolist()


class Counting:
    """An embedder that counts the patches that it has seen, and fails after some."""

    name = "counting"

    def __init__(self, fails_after: int = 1000) -> None:
        self.seen = 0
        self.fails_after = fails_after

    def __call__(self, patches: Tensor) -> Tensor:
        self.seen += len(patches)
        if self.seen > self.fails_after:
            raise KeyboardInterrupt
        return patches.float().mean(dim=(2, 3))


@pytest.mark.parametrize("batch_size", [8, 5])
def test_an_interrupted_job_goes_on_from_its_last_block(
    batch_size: int, data: PCamDataModule, network: TimmNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", 20)
    whole = data.packed("train").patches.astype(np.float32).mean(axis=(1, 2))
    embedding = Embedding(network, data, CPU)
    embedding._embedder = Counting(fails_after=50)
    with pytest.raises(KeyboardInterrupt):
        embedding.open("train")
    assert not embedding.path("train").exists()
    data.batch_size = batch_size
    embedding._embedder = counting = Counting()
    found = embedding.open("train")
    np.testing.assert_allclose(found.matrix, whole, rtol=1e-5)
    assert counting.seen == found.computed < len(whole)
    embedding.open("train")
    assert counting.seen == found.computed  # what is there is not computed again
    assert {path.suffix for path in found.path.parent.iterdir()} == {".npy", ".json", ".lock"}


def test_a_damaged_file_is_refused(data: PCamDataModule, network: TimmNetwork) -> None:
    embedding = Embedding(network, data, CPU)
    path = embedding.open("valid").path
    content = path.read_bytes()
    for damaged in (content[:-5], content[:40], np.zeros((3, 2), np.float32)):
        if isinstance(damaged, bytes):
            path.write_bytes(damaged)
        else:
            np.save(path, damaged)
        with pytest.raises(UserError, match=r"the embeddings of 25 patches in .*delete it, and they are computed"):
            embedding.open("valid")


def test_what_is_not_finite_is_refused(
    data: PCamDataModule, network: TimmNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = Embedding(network, data, CPU, dtype="float16")
    monkeypatch.setattr(Counting, "__call__", lambda self, patches: torch.full((len(patches), 2), 1e6))
    embedding._embedder = Counting()
    with np.errstate(over="ignore"), pytest.raises(UserError, match="finite in float16, but patch 0 or one after it"):
        embedding.open("valid")


def test_a_full_disk_says_so(data: PCamDataModule, network: TimmNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Iterator[Tensor]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Embedding, "_batches", refuse)
    with pytest.raises(UserError, match=r"Expected room for embeddings in .*No space left"):
        Embedding(network, data, CPU).open("valid")


def test_a_network_without_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match="BaselineCNN has no method embed with a head behind it"):
        Embedder(BaselineCNN())
    with pytest.raises(UserError, match="one embedding of a patch, but found enlarged_sizes"):
        Embedder(MobileNetV2(None, 0.0, enlarged_sizes=[128]))
