"""Stains: the arithmetic of optical density, and which patch gets what."""

import math

import numpy as np
import pytest
import torch

from pcam.data.draws import draw_uniform
from pcam.data.stain import STAINS, StainShift, jitter_stains, scale_stains, shift_stains
from pcam.errors import UserError
from pcam.patches import PatchBatch


def patches(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(60, 220, (count, 3, 96, 96), dtype=torch.uint8, generator=generator)


def amounts(pixels: np.ndarray) -> np.ndarray:
    """How much of each stain, shape (3, pixels), explains pixels, shape (3, pixels)."""
    return np.linalg.solve(np.array(STAINS).T, -np.log((pixels.astype(np.float64) + 1) / 256))


def test_stains_have_length_one() -> None:
    assert np.linalg.norm(STAINS, axis=1) == pytest.approx(1, abs=2e-3)


def test_amounts_are_multiplied_and_added_to() -> None:
    before = patches(2)
    factors, offsets = torch.tensor([[1.1, 0.9, 1.0], [0.9, 1.05, 1.1]]), torch.tensor([[0.05, 0, 0], [0, -0.05, 0.02]])
    after = scale_stains(before, factors, offsets)
    inside = ((after > 0) & (after < 255)).all(1).flatten(1).numpy()
    assert inside.mean() > 0.9  # what is cut off at black or white keeps no amounts
    for row in range(2):
        expected = (
            amounts(before[row].flatten(1).numpy()) * factors[row, :, None].numpy() + offsets[row, :, None].numpy()
        )
        found = amounts(after[row].flatten(1).numpy())
        assert found[:, inside[row]] == pytest.approx(expected[:, inside[row]], abs=1e-4)


def test_factors_of_one_change_nothing() -> None:
    assert scale_stains(patches(), torch.ones(4, 3)) == pytest.approx(patches().float(), abs=0.01)


def test_more_haematoxylin_takes_most_red_and_green() -> None:
    pale = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    less = 200 - scale_stains(pale, torch.ones(1, 3), torch.tensor([[0.2, 0.0, 0.0]]))[0, :, 0, 0]
    assert less[1] > less[0] > less[2] > 0


def test_white_and_black_stay_in_range() -> None:
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    for value in (0.5, 2.0):
        after = scale_stains(extremes, torch.full((2, 3), value), torch.full((2, 3), -0.1))
        assert ((after >= 0) & (after <= 255)).all()


def test_a_patch_is_jittered_alike_in_any_batch() -> None:
    together = jitter_stains(patches(), torch.arange(4), 0.2, seed=1, epoch=5)
    alone = jitter_stains(patches()[2:3], torch.tensor([2]), 0.2, seed=1, epoch=5)
    assert torch.equal(alone[0], together[2])


@pytest.mark.parametrize(("seed", "epoch"), [(2, 5), (1, 6)])
def test_another_seed_or_epoch_jitters_otherwise(seed: int, epoch: int) -> None:
    first = jitter_stains(patches(), torch.arange(4), 0.2, seed=1, epoch=5)
    second = jitter_stains(patches(), torch.arange(4), 0.2, seed=seed, epoch=epoch)
    assert ((first - second).abs().flatten(1).mean(1) > 0.1).all()


def test_the_jitter_reaches_its_strength_and_no_further() -> None:
    draws = draw_uniform(torch.arange(20_000), 6, seed=1, epoch=0)
    assert draws.min() < -0.999
    assert 0.999 < draws.max() < 1
    assert draws.mean(0) == pytest.approx(torch.zeros(6), abs=0.02)
    assert torch.corrcoef(draws.T).triu(1).abs().max() < 0.03
    grey = torch.full((500, 3, 1, 1), 128, dtype=torch.uint8)
    found = amounts(jitter_stains(grey, torch.arange(500), 0.1, seed=1, epoch=0).squeeze(3).squeeze(2).T.numpy())
    before = amounts(np.full((3, 1), 128))
    assert (np.abs(found - before) <= 0.1 * np.abs(before) + 0.05 + 1e-4).all()
    assert (np.abs(found - before).max(1) > 0.05).all()


def test_no_jitter_gives_the_same_tensor() -> None:
    before = patches()
    assert jitter_stains(before, torch.arange(4), 0.0, seed=1, epoch=0) is before


def test_the_jitter_is_pinned() -> None:
    """A published run must be repeatable: these are the numbers that version 0.1 gave."""
    found = jitter_stains(torch.full((2, 3, 1, 1), 128), torch.tensor([0, 19_999]), 0.1, seed=1, epoch=3)
    assert found.view(2, 3).numpy() == pytest.approx(
        np.array([[126.79, 128.75, 131.06], [124.57, 127.93, 122.9]]), abs=0.01
    )


def test_laboratories_take_turns() -> None:
    shifts = [StainShift(haematoxylin=1.3), StainShift(eosin=0.7, residual=1.2)]
    batch = PatchBatch(patches(3), torch.zeros(3, dtype=torch.long), torch.tensor([4, 7, 9]))
    shifted = shift_stains(batch, shifts)
    factors = torch.tensor([[1.3, 1, 1], [1, 0.7, 1.2], [1, 0.7, 1.2]])
    assert shifted.patches.dtype == torch.uint8
    assert torch.equal(shifted.patches, scale_stains(batch.patches, factors).round().to(torch.uint8))
    assert torch.equal(shifted.indices, batch.indices)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_factor_that_is_no_amount_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match="above 0"):
        StainShift(eosin=factor)
