"""Batches: every row once, a seeded order, shares for several processes, a position that survives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pcam.data import PCamDataModule
from pcam.data.augment import augment
from pcam.data.loader import Batches
from pcam.data.packed import PackedSplit
from pcam.data.stain import StainShift, jitter_stains
from pcam.errors import UserError
from tests.conftest import COUNTS


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("count", [1, 8, 83])
def test_one_process_sees_every_row_once(count: int, seed: int | None) -> None:
    batches = Batches(count, 8, seed)
    rows = list(batches)
    assert len(rows) == len(batches) == -(-count // 8)
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))


@pytest.mark.parametrize("count", [16, 17, 83, 95])
def test_processes_share_the_evaluation_without_repeats(count: int) -> None:
    shares = [list(Batches(count, 8, None, rank, 3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1  # else one process would wait for the others for ever
    assert sorted(np.concatenate([rows for share in shares for rows in share]).tolist()) == list(range(count))


def test_processes_share_each_training_batch() -> None:
    alone = list(Batches(83, 24, 7))
    shares = [list(Batches(83, 8, 7, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    for batch, *parts in zip(alone, *shares, strict=True):
        together = np.concatenate(parts).tolist()
        assert together == batch.tolist()[: len(together)]
        assert len(batch) - len(together) < 3


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(50, 8, seed)
        batches.set_epoch(epoch)
        return np.concatenate(list(batches)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.fixture
def datamodule(patch_root: Path, cache_dir: Path) -> PCamDataModule:
    return PCamDataModule(patch_root, batch_size=8, cache_dir=cache_dir)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_it_was_saved(num_workers: int, patch_root: Path, cache_dir: Path) -> None:
    datamodule = PCamDataModule(patch_root, batch_size=8, num_workers=num_workers, cache_dir=cache_dir)
    whole = [batch.indices.tolist() for batch in datamodule.train_dataloader()]
    first = datamodule.train_dataloader()
    iterator = iter(first)
    for _ in range(4):
        next(iterator)
    second = datamodule.train_dataloader()
    second.load_state_dict(first.state_dict())
    assert [batch.indices.tolist() for batch in second] == whole[4:]
    assert [batch.indices.tolist() for batch in second] == whole  # the position was for one pass


def test_the_position_after_the_last_batch_is_the_start(datamodule: PCamDataModule) -> None:
    loader = datamodule.train_dataloader()
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    assert loader.state_dict() == {"epoch": 0, "batches_given": 0}


def test_an_epoch_that_ended_early_leaves_the_next_one_whole(datamodule: PCamDataModule) -> None:
    first = datamodule.train_dataloader()
    first.sampler.set_epoch(3)
    iterator = iter(first)
    for _ in range(4):
        next(iterator)
    second = datamodule.train_dataloader()
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(4)
    assert len(list(second)) == len(second)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(3)
    assert len(list(second)) == len(second) - 4


def test_batches_leave_as_uint8_channels_last(datamodule: PCamDataModule) -> None:
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.patches.shape == (8, 3, 96, 96)
    assert batch.patches.dtype == torch.uint8
    assert batch.patches.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64


def test_the_splits_are_not_swapped(datamodule: PCamDataModule) -> None:
    for split, (negatives, positives) in COUNTS.items():
        store = datamodule.packed(split)
        assert (len(store), store.labels.sum()) == (negatives + positives, positives)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_batches_without_a_trainer_leaves_the_global_random_state(
    num_workers: int, patch_root: Path, cache_dir: Path
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data = PCamDataModule(
        patch_root, batch_size=8, num_workers=num_workers, cache_dir=cache_dir, augmentation="d4", stain_jitter=0.1,
        stain_shifts=[StainShift(eosin=1.1)],
    )  # fmt: skip
    data.prepare_data()
    for loader in (data.train_dataloader(), *data.val_dataloader()):
        for batch in loader:
            data.on_after_batch_transfer(batch, 0)
    list(data.training_patches(16, torch.device("cpu")))
    batch = next(iter(data.train_dataloader()))
    chance = {"seed": 1, "epoch": 0}
    jitter_stains(augment(batch.patches, batch.indices, "d4", **chance), batch.indices, 0.1, **chance)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_without_a_trainer_do_not_depend_on_the_global_random_state(datamodule: PCamDataModule) -> None:
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append([batch.indices.tolist() for batch in datamodule.train_dataloader()])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"Expected data\.batch_size to be at least 1, but found 0"),
        ({"num_workers": -1}, r"Expected data\.num_workers to be at least 0, but found -1"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, int], message: str, patch_root: Path) -> None:
    with pytest.raises(UserError, match=message):
        PCamDataModule(patch_root, **options)


def test_each_batch_is_announced_while_the_one_before_it_is_used(
    datamodule: PCamDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    announce = PackedSplit.announce

    def record(self: PackedSplit, rows: NDArray[np.int64]) -> None:
        announced.append(rows.tolist())
        announce(self, rows)

    monkeypatch.setattr(PackedSplit, "announce", record)
    taken = []
    for batch in datamodule.train_dataloader():
        taken.append(batch.indices.tolist())
        assert announced == [*taken[1:], *announced[len(taken) - 1 :]]
        assert len(announced) == min(len(taken), len(datamodule.train_dataloader()) - 1)
    assert announced == taken[1:]
