"""OpenVINO against PyTorch: the same scores, or PyTorch and a sentence."""

import subprocess
import sys
import weakref
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from pcam.models import BaselineCNN, MobileNetV2, TimmNetwork, engine
from pcam.models.embedding import Embedder
from pcam.models.inference import EvaluationSettings, InferenceNetwork
from pcam.models.symmetry import symmetries
from tests.models.test_networks import patches, trained

NETWORKS = {
    "MobileNetV2 at two sizes": lambda: MobileNetV2(weights=None, dropout=0.5, enlarged_sizes=[128]),
    "BaselineCNN": BaselineCNN,
    "test_resnet": lambda: TimmNetwork("test_resnet", weights=None),
}


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_scores_are_those_of_pytorch_for_any_number_of_patches(kind: str, tta: bool) -> None:
    torch.manual_seed(0)
    network = EvaluationSettings(tta=tta).network(trained(NETWORKS[kind]()).eval())
    fast = InferenceNetwork(network)
    assert fast.name == f"OpenVINO {version('openvino')}"
    with torch.no_grad():
        expected = network(patches(9)).sigmoid()
    assert expected.std() > 1e-4
    logits = fast(patches(9))
    torch.testing.assert_close(logits.sigmoid(), expected, rtol=0, atol=1e-5)
    for count in (0, 1, 8):
        assert torch.equal(fast(patches(9)[:count]), logits[:count])
    assert torch.equal(fast(patches(9).float().contiguous(memory_format=torch.channels_last)), logits)


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("tta", [False, True])
def test_embeddings_are_those_of_pytorch(tta: bool) -> None:
    torch.manual_seed(0)
    network = trained(MobileNetV2(weights=None, dropout=0.0)).eval()
    fast = InferenceNetwork(Embedder(network, tta=tta))
    assert fast.name == f"OpenVINO {version('openvino')}"
    with torch.no_grad():
        views = symmetries(patches(9)) if tta else [patches(9)]
        expected = torch.stack([network.embed(view) for view in views]).mean(dim=0)
    assert expected.shape == (9, 1280)
    assert expected.std() > 1e-2
    torch.testing.assert_close(fast(patches(9)), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_an_engine_is_freed_with_its_threads_and_memory() -> None:
    def made() -> weakref.ref[engine.Engine]:
        compiled = engine.compiled(network, 1)
        assert compiled is not None
        compiled(patches(9).float())
        return weakref.ref(compiled)

    network = BaselineCNN().eval().requires_grad_(False)
    made()
    threads, functions = thread_count(), len(torch.jit._state._python_cu.get_functions())
    assert [made()() for _ in range(3)] == [None] * 3
    assert thread_count() <= threads
    assert len(torch.jit._state._python_cu.get_functions()) == functions  # PyTorch keeps none with its weights


def test_a_signal_can_be_handled_whatever_engines_have_been_freed() -> None:
    """In a process of its own, which a signal ends if it has nowhere to be handled."""
    program = """
import os, signal
from pcam.models import BaselineCNN, engine
network = BaselineCNN().eval().requires_grad_(False)
first, second = engine.compiled(network, 1), engine.compiled(network, 1)
assert first and second
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")


def thread_count() -> int:
    """The number of threads of this process, those of libraries among them."""
    return len(list(Path("/proc/self/task").iterdir()))


class Deciding(nn.Module):
    """A network that computes something else for dark patches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 96 * 96, 1)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        logits = self.linear(patches.flatten(1) / 255).flatten()
        return -logits if patches.float().mean() < 10 else logits


def test_a_network_that_cannot_be_followed_is_evaluated_in_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    network = Deciding()
    found = InferenceNetwork(network)
    assert found.name == f"PyTorch {torch.__version__}"
    assert "Deciding is evaluated in PyTorch, as OpenVINO cannot compute it (Converting a tensor" in caplog.text
    for batch in (patches(2), torch.ones(2, 3, 96, 96)):
        assert torch.equal(found(batch), network(batch))


def test_an_engine_with_other_scores_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(engine, "ALLOWED_DIFFERENCE", -1.0)
    monkeypatch.setattr(engine, "ALLOWED_OF_EMBEDDING", -1.0)
    assert InferenceNetwork(BaselineCNN()).name.startswith("PyTorch")
    assert "its scores differ by" in caplog.text
    assert InferenceNetwork(Embedder(MobileNetV2(weights=None, dropout=0.0))).name.startswith("PyTorch")
    assert "its embeddings differ by" in caplog.text


@pytest.mark.parametrize("tta", [False, True])
def test_without_openvino_pytorch_computes(tta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    network = EvaluationSettings(tta=tta).network(BaselineCNN()).eval()
    found = InferenceNetwork(network)
    assert found.name == f"PyTorch {torch.__version__}"
    torch.testing.assert_close(found(patches(17)), network(patches(17)).detach())


def test_openvino_reports_nothing_to_its_makers() -> None:
    InferenceNetwork(BaselineCNN())
    assert sys.modules["openvino_telemetry"] is None


def test_weights_that_are_no_numbers_give_logits_that_are_none() -> None:
    network = BaselineCNN()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    assert InferenceNetwork(network)(torch.zeros(2, 3, 96, 96, dtype=torch.uint8)).isnan().all()
