"""A classifier as a file: it answers as the checkpoint does, whatever the axis order and the number of patches."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from pcam.evaluation.export import (
    INPUT_SHAPES,
    ScoringNetwork,
    checkpoint_score,
    largest_difference,
    write_onnx,
    write_safetensors,
)
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.batch_norm import reestimate_batch_norm
from pcam.options import AxisOrder


def patches_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, of another brightness in each patch, so that their scores differ."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, 96, 96, 3)) * rng.uniform(size=(count, 1, 1, 1))).astype(np.uint8)


def baseline() -> nn.Module:
    torch.manual_seed(0)
    return BaselineCNN(normalization="imagenet").eval()


def mobilenet() -> nn.Module:
    """As after training: with running statistics that are not those of the start, and a head that decides."""
    torch.manual_seed(0)
    network = MobileNetV2(weights=None, dropout=0.5, enlarged_sizes=[128])
    nn.init.normal_(network.head[1].weight)
    reestimate_batch_norm(network, [torch.from_numpy(patches_of(8, seed=1)).permute(0, 3, 1, 2)])
    return network.eval()


NETWORKS = {"baseline": baseline, "mobilenet": mobilenet}


@pytest.fixture(
    scope="module",
    params=[
        *(("baseline", axis_order) for axis_order in get_args(AxisOrder)),
        pytest.param(("mobilenet", "NHWC"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, AxisOrder, Path]:
    name, axis_order = request.param
    network, path = NETWORKS[name](), tmp_path_factory.mktemp("export") / "model.onnx"
    write_onnx(network, path, axis_order)
    return network, axis_order, path


def test_onnx_answers_any_number_of_patches_as_pytorch_does(exported: tuple[nn.Module, AxisOrder, Path]) -> None:
    network, axis_order, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        patches = patches_of(count, seed=count)
        channels_first = np.ascontiguousarray(patches.transpose(0, 3, 1, 2))
        scores, logits = session.run(None, {"patches": patches if axis_order == "NHWC" else channels_first})
        with torch.inference_mode():
            expected = network(torch.from_numpy(channels_first))
        assert logits == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)  # float32 through 53 layers
        assert scores == pytest.approx(expected.sigmoid().numpy(), abs=1e-4)
        assert logits.std() > 1e-2 or count == 1  # or it would show nothing


def test_onnx_takes_bytes_and_is_one_file(exported: tuple[nn.Module, AxisOrder, Path]) -> None:
    _, axis_order, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batch, *shape = given.shape
    assert (given.name, given.type, tuple(shape)) == ("patches", "tensor(uint8)", INPUT_SHAPES[axis_order])
    assert isinstance(batch, str)  # a name, not a number: any
    assert [(output.name, output.type, output.shape) for output in session.get_outputs()] == [
        ("scores", "tensor(float)", [batch]),
        ("logits", "tensor(float)", [batch]),
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_what_write_onnx_returns_is_the_files_answer(tmp_path: Path) -> None:
    network = baseline()
    score = write_onnx(network, tmp_path / "model.onnx", "NCHW")
    patches = patches_of(3)
    expected = score(patches)
    nn.init.zeros_(network.head[-1].weight)  # the network changes, the file does not
    assert score(patches).tolist() == expected.tolist() != checkpoint_score(network)(patches).tolist()


@pytest.mark.parametrize("name", [pytest.param("baseline"), pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_safetensors_reload_to_the_same_logits(name: str, tmp_path: Path) -> None:
    network, path = NETWORKS[name](), tmp_path / "model.safetensors"
    score = write_safetensors(network, path)
    patches = patches_of(5)
    tensor = torch.from_numpy(patches).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    # Without the normalisation that the file brings.
    made = {
        "baseline": lambda: BaselineCNN(normalization="unit"),
        "mobilenet": lambda: MobileNetV2(None, 0.0, normalization="unit", enlarged_sizes=[128]),
    }
    loaded = made[name]()
    loaded.load_state_dict(load_file(path))
    with torch.inference_mode():
        expected = network(tensor)
        assert torch.equal(loaded.eval()(tensor), expected)
    assert score(patches).tolist() == expected.sigmoid().tolist()


def test_weights_that_the_file_has_wrong_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_wrongly(tensors: dict[str, torch.Tensor]) -> bytes:
        return save({name: tensor + 0.01 for name, tensor in tensors.items()})

    monkeypatch.setattr("safetensors.torch.save", save_wrongly)
    network, patches = baseline(), patches_of(2)
    score = write_safetensors(network, tmp_path / "model.safetensors")
    assert largest_difference(patches, checkpoint_score(network), score) > 1e-3


def test_scores_are_of_patches_as_they_lie_on_disk() -> None:
    network, patches = baseline(), patches_of(3)
    with torch.inference_mode():
        expected = network(torch.from_numpy(patches).permute(0, 3, 1, 2)).sigmoid()
        channels_first, _ = ScoringNetwork(network, "NCHW")(torch.from_numpy(patches.transpose(0, 3, 1, 2).copy()))
    assert checkpoint_score(network)(patches).tolist() == expected.tolist() == channels_first.tolist()


@pytest.mark.parametrize("wrong", [0, 1, 7, 8, 99])
def test_the_largest_difference_is_found_wherever_it_is(wrong: int) -> None:
    patches = np.zeros((100, 96, 96, 3), dtype=np.uint8)
    patches[wrong] = 255
    sizes = []

    def first(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(batch))
        return np.full(len(batch), 0.5, dtype=np.float32)

    def second(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.where(batch[:, 0, 0, 0] > 0, 0.25, 0.5).astype(np.float32)

    assert largest_difference(patches, first, second) == 0.25
    assert sum(sizes) == 100
    assert len(set(sizes)) > 2


def test_a_score_that_is_no_number_is_no_small_difference() -> None:
    patches = patches_of(10)
    right, wrong = np.zeros(10, dtype=np.float32), np.array([*[0] * 9, np.nan], dtype=np.float32)
    found = largest_difference(patches, lambda batch: right[: len(batch)], lambda batch: wrong[-len(batch) :])
    assert np.isnan(found)
