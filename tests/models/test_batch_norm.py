"""Re-estimated batch norm, against PyTorch's `update_bn`."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm, write_statistics

BATCHES = list(torch.randint(0, 256, (3, 4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return MobileNetV2(weights=None, dropout=0.5)


@pytest.mark.slow  # takes some seconds
def test_it_agrees_with_pytorch() -> None:
    found, expected = network().eval(), network().eval()
    reestimate_batch_norm(found, BATCHES)
    update_bn(BATCHES, expected)
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # which PyTorch leaves at the number of batches
            torch.testing.assert_close(found.state_dict()[name], value, msg=name)


def test_nothing_but_buffers_changes_and_they_can_be_put_back() -> None:
    made = network()
    made.features[0].eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    modes = [module.training for module in made.modules()]
    state = torch.get_rng_state()
    layers = learning_layers(made)
    statistics = read_statistics(layers)
    reestimate_batch_norm(made, (patches for patches in BATCHES if torch.rand(1) >= 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in made.modules()] == modes
    assert {module.momentum for module in made.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
    write_statistics(layers, statistics)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_frozen_layers_stay() -> None:
    class PartlyFrozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.BatchNorm2d(3)
            self.free = nn.BatchNorm2d(3)

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, patches):
            return self.free(self.frozen(patches.float()))

    made = PartlyFrozen()
    reestimate_batch_norm(made, BATCHES)
    assert learning_layers(made) == [made.free]
    assert made.frozen.running_mean.tolist() == [0, 0, 0]
    assert made.free.running_mean.numpy() == pytest.approx(
        torch.stack(BATCHES).float().mean(dim=(0, 1, 3, 4)), rel=1e-3
    )


@pytest.mark.parametrize("made", [BaselineCNN(), MobileNetV2(weights=None, dropout=0.0, freeze=True)])
def test_a_network_without_batch_norm_that_learns_is_refused(made: nn.Module) -> None:
    with pytest.raises(UserError, match=r"batch norm that is not frozen, but \w+ has none; leave out what asks"):
        reestimate_batch_norm(made, BATCHES)
