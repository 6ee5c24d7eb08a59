"""HiResCAM against its definition, on networks whose attention is known, and how it is measured."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcam.errors import UserError
from pcam.evaluation.explain import CHANCE, CentreShare, centre_share, explain, explain_mean_score
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.symmetry import SymmetryAverage


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


@pytest.mark.slow  # takes some seconds
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


def test_the_symmetries_see_all_of_the_patch_and_their_maps_lie_as_the_patch_does() -> None:
    squares = lit(slice(0, 1), slice(1, 2))  # one square that is its own image in none of the symmetries but one
    patches = torch.full((1, 3, 96, 96), 255, dtype=torch.uint8)
    patches[:, :, :16, 16:32] = 0  # dark in this square alone
    attributions, _ = explain_mean_score(Spotlight(squares), patches)
    assert attributions.nonzero().tolist() == [[0, 0, 1]]
    upright, _ = explain(Spotlight(squares), patches)
    assert 0 < attributions[0, 0, 1] < upright[0, 0, 1]


@pytest.mark.slow  # takes some seconds
def test_the_mean_score_is_explained_by_the_gradient_of_its_logit() -> None:
    torch.manual_seed(0)
    network = BaselineCNN(dropout=0.5).eval()
    nn.init.normal_(network.head[-1].weight)
    patches = noise(3)
    found, logits = explain_mean_score(network, patches)
    assert logits.numpy() == pytest.approx(SymmetryAverage(network)(patches).detach().numpy(), abs=1e-5)
    seen: list[Tensor] = []
    with network.features.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        gradients = torch.autograd.grad(SymmetryAverage(network)(patches).sum(), seen)
    assert len(seen) == 1
    products = (seen[-1] * gradients[-1]).sum(dim=1).unflatten(0, (8, len(patches)))  # all views in one pass
    # The views of SymmetryAverage: four turns of the patch, then four of the transposed patch.
    upright = [torch.rot90(products[turns], -turns, (1, 2)) for turns in range(4)]
    upright += [torch.rot90(products[4 + turns], -turns, (1, 2)).transpose(1, 2) for turns in range(4)]
    assert found.numpy() == pytest.approx(torch.stack(upright).sum(dim=0).detach().numpy(), rel=1e-4, abs=1e-6)
    assert found.abs().max() > 1e-3


class Unusual(nn.Module):
    """A network whose part `features` is not what is explained."""

    def __init__(self, features: nn.Module, calls: int) -> None:
        super().__init__()
        self.features = features
        self.calls = calls

    def forward(self, patches: Tensor) -> Tensor:
        results = [self.features(patches).flatten(1).sum(dim=1) for _ in range(self.calls)]
        return torch.stack([patches.flatten(1).sum(dim=1), *results]).sum(dim=0)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Linear(3, 1), "attribute features is the part that computes its convolutional .* but Linear has none"),
        (Unusual(nn.Flatten(), 1), r"the part features of Unusual to give .* found a result of shape \(1, 27648\)"),
        (Unusual(nn.Conv2d(3, 1, 3), 0), "once for each patch, but found 0 calls of it; name the last convolutional"),
        (Unusual(nn.Conv2d(3, 1, 3), 2), "once for each patch, but found 2 calls of it; name the last convolutional"),
    ],
)
def test_a_network_without_convolutional_features_is_refused(network: nn.Module, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        explain(network, torch.zeros(1, 3, 96, 96))
