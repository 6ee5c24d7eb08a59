"""HiResCAM against its definition, on networks whose attention is known, and how it is drawn and measured."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.evaluation.explain import CHANCE, CentreShare, centre_share, explain, overlay_sheet
from pcam.models import BaselineCNN, MobileNetV2


class Spotlight(nn.Module):
    """A network that sees how dark some squares of a 6x6 grid are, and nothing else.

    Args:
        lit: Shape (6, 6), 1 where it looks.
        weight: What darkness adds to the logit.
    """

    class Mask(nn.Module):
        def __init__(self, lit: Tensor) -> None:
            super().__init__()
            self.lit = lit

        def forward(self, darkness: Tensor) -> Tensor:
            return (255 - darkness) / 255 * self.lit

    def __init__(self, lit: Tensor, weight: float = 1.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(16), self.Mask(lit))
        self.weight = weight

    def forward(self, patches: Tensor) -> Tensor:
        return self.weight * self.features(patches).sum(dim=(1, 2, 3))


def lit(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(6, 6)
    mask[rows, columns] = 1
    return mask


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pages(patches: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(patches.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("squares", "expected"),
    [
        (lit(slice(2, 4), slice(2, 4)), 1.0),
        (lit(slice(0, 2), slice(0, 6)), 0.0),
        (lit(slice(2, 4), slice(0, 4)), 0.5),
        (lit(slice(0, 6), slice(0, 6)), CHANCE),
    ],
)
def test_the_centre_has_the_share_of_what_the_network_sees_there(squares: Tensor, expected: float) -> None:
    patches = torch.full((3, 3, 96, 96), 90, dtype=torch.uint8)
    attributions, logits = explain(Spotlight(squares), patches)
    assert centre_share(attributions).tolist() == pytest.approx([expected] * 3)
    assert logits.tolist() == pytest.approx([float(3 * squares.sum() * 165 / 255)] * 3)


def test_evidence_against_tumour_has_its_sign_and_counts_alike() -> None:
    for squares, share in ((lit(slice(2, 4), slice(2, 4)), 1.0), (lit(slice(0, 2), slice(0, 6)), 0.0)):
        attributions, _ = explain(Spotlight(squares, weight=-1.0), noise(2))
        assert (attributions[:, squares == 1] < 0).all()
        assert centre_share(attributions).tolist() == pytest.approx([share] * 2)


@pytest.mark.parametrize("name", ["baseline", "mobilenet"])
def test_attributions_are_those_of_the_papers(name: str) -> None:
    torch.manual_seed(0)
    network = (BaselineCNN() if name == "baseline" else MobileNetV2(None, dropout=0.5, freeze=True)).eval()
    patches = noise(4)
    attributions, logits = explain(network, patches)
    features = network.features(network.normalization(patches)).detach().requires_grad_()
    expected_logits = network.head(features if name == "baseline" else features.mean(dim=(2, 3))).flatten()
    (gradients,) = torch.autograd.grad(expected_logits.sum(), features)
    expected = (gradients * features).sum(dim=1)
    assert attributions.numpy() == pytest.approx(expected.detach().numpy(), rel=1e-4, abs=1e-9)
    if name == "mobilenet":
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        grad_cam = (weights * features).sum(dim=1).relu()
        assert attributions.relu().numpy() == pytest.approx(grad_cam.detach().numpy(), rel=1e-4, abs=1e-9)
    assert attributions.max() > 0
    assert logits.numpy() == pytest.approx(expected_logits.detach().numpy(), rel=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_coarse_grid_is_laid_over_the_patch() -> None:
    attributions = torch.zeros(2, 3, 3)
    attributions[0, 1, 1] = 5.0  # the centre 32x32 is the middle square of 3x3
    attributions[1] = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 1.0, 0]])
    assert centre_share(attributions).tolist() == [1.0, 0.5]


def test_the_mean_share_leaves_out_patches_without_evidence() -> None:
    shares = np.array([0.1, 0.2, np.nan, 0.6, np.nan])
    found = CentreShare.of(shares, list("abcde"))
    assert (found.patches, found.without_evidence, found.mean) == (5, 2, pytest.approx(0.3))
    low, high = found.interval
    assert 0.1 <= low < 0.3 < high <= 0.6


def test_identical_patches_make_the_mean_no_surer() -> None:
    rng = np.random.default_rng(0)
    shares = rng.uniform(size=40)
    once = CentreShare.of(shares, [str(row) for row in range(40)])
    error = shares.std() / np.sqrt(40)
    assert once.interval == pytest.approx((shares.mean() - 1.96 * error, shares.mean() + 1.96 * error), abs=0.02)
    nine_times = CentreShare.of(np.repeat(shares, 9), np.repeat([str(row) for row in range(40)], 9).tolist())
    assert nine_times.interval == pytest.approx(once.interval, abs=1e-12)


@pytest.mark.parametrize("count", [0, 2])
def test_without_any_evidence_the_share_is_undefined(count: int) -> None:
    found = CentreShare.of(np.full(count, np.nan), ["a"] * count)
    assert (found.patches, found.without_evidence) == (count, count)
    assert np.isnan([found.mean, *found.interval]).all()


def test_a_sheet_shows_each_patch_beside_its_overlay_with_label_score_and_share() -> None:
    patches = noise(5)
    patches[:, :, :, :48] = 255
    attributions = torch.zeros(5, 6, 6)
    attributions[:4, 2:4, 2:4] = 1
    attributions[1] *= -1
    figure = overlay_sheet(
        pages(patches), attributions, np.array([0.9, 0.2, 0.7, 0.51, 0.1]), [1, 1, 0, None, 0], columns=2
    )
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert words == [
        "label 1, score 0.90, 100% in centre",
        "label 1, score 0.20, 100% in centre",
        "label 0, score 0.70, 100% in centre",
        "score 0.51, 100% in centre",
        "label 0, score 0.10, no evidence",
    ]
    wrong = [to_rgb(text.get_color()) == to_rgb("red") for text in axes.texts]
    assert wrong == [False, True, True, False, False]  # what a threshold of 0.5 gets wrong
    page = axes.images[0].get_array()
    assert page.shape == (3 * 110, 2 * 200, 3)  # three rows of two
    assert np.array_equal(page[14 : 14 + 96, 4 : 4 + 96], pages(patches)[0])
    assert np.array_equal(page[110 + 14 : 110 + 110, 204 : 204 + 96], pages(patches)[3])
    overlays = {0: page[14:110, 100:196], 1: page[14:110, 300:396], 4: page[234:330, 100:196]}
    red, _, blue = np.moveaxis(overlays[0].astype(int), 2, 0)
    assert red[48, 48] > blue[48, 48] + 20  # for tumour, where the network looks
    red, _, blue = np.moveaxis(overlays[1].astype(int), 2, 0)
    assert blue[48, 48] > red[48, 48] + 20  # against it
    assert np.ptp(overlays[0][5, 5]) < 5  # no colour where there is no evidence
    assert np.ptp(overlays[4], axis=2).max() == 0  # grey alone


def test_each_patch_has_a_square_round_its_centre_on_both_pictures() -> None:
    figure = overlay_sheet(pages(noise(1)), torch.ones(1, 3, 3), np.array([0.5]), [None])
    corners = {(square.get_x(), square.get_y(), square.get_width()) for square in figure.axes[0].patches}
    assert corners == {(4 + 31.5, 14 + 31.5, 32), (100 + 31.5, 14 + 31.5, 32)}


def test_a_network_without_convolutional_features_is_refused() -> None:
    with pytest.raises(UserError, match="but Linear has none that is known"):
        explain(nn.Linear(3, 1), torch.zeros(1, 3, 96, 96))
