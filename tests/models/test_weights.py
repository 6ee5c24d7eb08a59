"""Pretrained weights: every way in, and every way it can fail."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from pcam.errors import UserError
from pcam.models import MobileNetV2


@pytest.fixture(scope="module")
def whole_state() -> dict[str, torch.Tensor]:
    """The state dict of torchvision's network with its classifier, random."""
    return dict(mobilenet_v2().state_dict())


def load(path: Path) -> MobileNetV2:
    return MobileNetV2(weights=str(path), dropout=0.5)


@pytest.mark.parametrize("with_classifier", [True, False])
def test_a_file_gives_its_weights(with_classifier: bool, whole_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = {key: value for key, value in whole_state.items() if with_classifier or key.startswith("features.")}
    torch.save(state, tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth").features.state_dict()
    assert all(torch.equal(value, whole_state[f"features.{key}"]) for key, value in loaded.items())


def test_a_name_gives_torchvisions_weights(
    whole_state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", lambda self, **options: whole_state)
    network = MobileNetV2(weights="IMAGENET1K_V1", dropout=0.5)
    assert torch.equal(network.features[0][0].weight, whole_state["features.0.0.weight"])


def test_a_failed_download_names_the_option_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"download .*IMAGENET1K_V1.*no route to host.*--model\.network\.weights FILE"):
        MobileNetV2(weights="IMAGENET1K_V1", dropout=0.5)


def test_a_missing_file_is_named_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"IMAGENET1K_V1, .* but there is no file .*nowhere\.pth"):
        load(tmp_path / "nowhere.pth")


def test_weights_of_another_network_are_refused(whole_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"layer1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"weights\.pth misses 260 of them, for instance 'features\.0\.0\.weight'"):
        load(path)
    torch.save({**whole_state, "features.0.0.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"has in another shape 1 of them, for instance 'features\.0\.0\.weight'"):
        load(path)
    torch.save({**whole_state, "features.99.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"has besides 1 of them, for instance 'features\.99\.weight'"):
        load(path)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match=r"state dict of tensors in .*weights\.pth, but it cannot be loaded safely"):
        load(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(UserError, match="but found something else"):
        load(path)


class Payload:
    """Pickled code: unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": Payload(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be loaded safely"):
        load(tmp_path / "weights.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.real_data
def test_the_real_imagenet_weights_load(real_data: Path) -> None:
    path = real_data / "weights" / "mobilenet_v2_imagenet1k_v1_features.pth"
    network = load(path)
    state = torch.load(path, weights_only=True)
    assert len(state) == 312
    assert torch.equal(network.features[18][0].weight, state["features.18.0.weight"])
