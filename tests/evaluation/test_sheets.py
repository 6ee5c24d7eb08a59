"""The sheets of patches say what they should; how they look is for a person to judge."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pcam.evaluation.sheets import overlay_sheet, patch_grid, shortened

SCORES = torch.tensor([0.1, 0.4, 0.35, 0.8])
LABELS = torch.tensor([0, 0, 1, 1])


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pages(patches: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(patches.permute(0, 2, 3, 1).numpy())


def texts(figure: Figure) -> list[tuple[str, str]]:
    (axes,) = figure.axes
    return [(text.get_text(), text.get_color()) for text in axes.texts if text.get_text()]


def pictures(figure: Figure) -> list[NDArray[np.uint8]]:
    """What is shown under each square of a centre, in the order in which they were drawn."""
    (axes,) = figure.axes
    page = np.asarray(axes.images[0].get_array())
    corners = [(int(square.get_y() + 0.5) - 32, int(square.get_x() + 0.5) - 32) for square in axes.patches[::2]]
    assert all(square.get_width() == square.get_height() == 32 for square in axes.patches)
    return [page[top : top + 96, left : left + 96] for top, left in corners]


def test_the_grid_marks_what_is_wrong() -> None:
    patches = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 96, 96)
    figure = patch_grid(patches, SCORES, LABELS, columns=3)
    assert texts(figure) == [
        ("normal, score 0.10", "black"),
        ("normal, score 0.40", "black"),
        ("tumour, score 0.35", "red"),
        ("tumour, score 0.80", "black"),
    ]
    assert [np.unique(picture).tolist() for picture in pictures(figure)] == [[value] for value in range(4)]
    page = np.asarray(figure.axes[0].images[0].get_array())
    assert (page < 4).all(axis=2).sum() == 4 * 96 * 96


def test_the_grid_has_a_title_and_ids_that_can_be_found_again() -> None:
    ids = ["valid/1/patch0000001.png", "valid/0/patch$1$.png", "a_rather_long_name_split_valid_x.h5/123", "4"]
    found = [text for text, _ in texts(patch_grid(noise(4), SCORES, LABELS, ids=ids, title="Of a run\non valid"))]
    assert found[:2] == ["Of a run", "on valid"]
    assert found[3::2] == [*ids[:2], "…" + ids[2][-24:], "4"]
    assert ids[2].endswith(found[7].removeprefix("…"))


def test_a_long_id_is_shortened_to_its_end() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "…cd"


def test_a_sheet_shows_each_patch_beside_its_overlay_with_id_label_score_and_share() -> None:
    patches = noise(5)
    patches[:, :, :, :48] = 255
    attributions = torch.zeros(5, 6, 6)
    attributions[:4, 2:4, 2:4] = 1
    attributions[1] *= -1
    figure = overlay_sheet(
        pages(patches),
        attributions,
        np.array([0.9, 0.2, 0.7, 0.51, 0.1]),
        [1, 1, 0, None, 0],
        [f"patch{number}" for number in range(5)],
        "Of a run",
        columns=2,
    )
    words = [text for text, _ in texts(figure)]
    assert words[0] == "Of a run"
    assert "11% (1/9) is chance" in words[2]
    assert words[-2:] == ["against tumour", "for tumour"]
    assert words[3:-2] == [
        "tumour, score 0.90, 100% in centre", "patch0",
        "tumour, score 0.20, 100% in centre", "patch1",
        "normal, score 0.70, 100% in centre", "patch2",
        "score 0.51, 100% in centre", "patch3",
        "normal, score 0.10, no evidence", "patch4",
    ]  # fmt: skip
    wrong = [to_rgb(color) == to_rgb("red") for _, color in texts(figure)[3:-2:2]]
    assert wrong == [False, True, True, False, False]  # what a threshold of 0.5 gets wrong
    shown = pictures(figure)
    assert len(shown) == 10
    for row in range(5):
        assert np.array_equal(shown[2 * row], pages(patches)[row])
    red, _, blue = np.moveaxis(shown[1].astype(int), 2, 0)
    assert red[48, 48] > blue[48, 48] + 20  # for tumour, where the network looks
    red, _, blue = np.moveaxis(shown[3].astype(int), 2, 0)
    assert blue[48, 48] > red[48, 48] + 20  # against it
    assert np.ptp(shown[1][5, 5]) < 5  # no colour where there is no evidence
    assert np.ptp(shown[9], axis=2).max() == 0  # grey alone


def test_the_key_has_the_colours_of_the_evidence() -> None:
    figure = overlay_sheet(pages(noise(1)), torch.ones(1, 3, 3), np.array([0.5]), [None], ["a"], "Of a run")
    (axes,) = figure.axes
    against, of_tumour = (text for text in axes.texts if "tumour" in text.get_text() and "," not in text.get_text())
    page = np.asarray(axes.images[0].get_array()).astype(int)
    row, left, right = int(of_tumour.get_position()[1]) - 3, against.get_position()[0], of_tumour.get_position()[0]
    (red, _, blue), (other_red, _, other_blue) = page[row, int(left) + 6], page[row, int(right) - 6]
    assert blue > red + 20
    assert other_red > other_blue + 20


@pytest.mark.parametrize("count", [1, 3])
def test_a_sheet_of_few_patches_is_as_wide_as_one_of_many(count: int) -> None:
    figures = [
        overlay_sheet(pages(noise(n)), torch.ones(n, 3, 3), np.full(n, 0.5), [None] * n, ["a"] * n, "Of a run")
        for n in (count, 4)
    ]
    assert figures[0].get_size_inches().tolist() == figures[1].get_size_inches().tolist()
