"""Signals: every command ends with 128 plus the signal's number, and leaves nothing half-written."""

import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from pcam.commands.train import main as train
from pcam.door import front_door
from pcam.errors import StoppedError
from pcam.models import BaselineCNN
from pcam.models.inference import InferenceNetwork
from pcam.models.normalization import Normalization
from pcam.training import PatchClassifier
from tests.scripts.signals import COMMANDS, send
from tests.scripts.test_life import interrupt
from tests.scripts.test_resume import arguments

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def ended_by(main, args: list[str] | None = None) -> int:
    """Run a command that must end, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow  # takes some seconds
@pytest.mark.parametrize("number", SIGNALS)
def test_training_stops_with_a_checkpoint_and_resumes(
    number: int, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt(patch, 2, number)
        assert ended_by(train, arguments(patch_root, cache_dir, tmp_path)) == 128 + number
    run = tmp_path / "cnn" / "version_0"
    said = capsys.readouterr().err
    assert f"Interrupted after step 2; {run}/checkpoints/last.ckpt holds everything up to there. Go on with" in said
    assert f"pcam train --resume {run}" in said
    assert "Received SIGTERM" not in said
    train(["--resume", str(run)])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_signal_that_is_ignored_stays_so(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        interrupt(monkeypatch, 2, signal.SIGHUP)
        train(arguments(patch_root, cache_dir, tmp_path, steps=3))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", ["network", "setup", "optimizer", "sanity check"])
def test_a_signal_before_the_first_step_ends_training_and_leaves_no_run_folder(
    where: str, number: int, patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_it(*args: object, **options: object) -> None:
        os.kill(os.getpid(), number)

    place, name = {
        "network": (Normalization, "__init__"),
        "setup": (PatchClassifier, "on_fit_start"),
        "sanity check": (PatchClassifier, "validation_step"),
        "optimizer": (PatchClassifier, "make_optimizer"),
    }[where]
    monkeypatch.setattr(place, name, send_it)
    assert ended_by(train, arguments(patch_root, cache_dir, tmp_path)) == 128 + number
    assert not list(tmp_path.glob("cnn/version_*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_library_makes_of_a_signal_is_an_end_by_the_signal_too(number: int) -> None:
    @front_door
    def main(args=None) -> None:
        try:
            os.kill(os.getpid(), number)
        except StoppedError as error:
            raise ImportError("initialization failed") from error

    assert ended_by(main) == 128 + number


def test_a_signal_within_a_destructor_which_swallows_exceptions_is_sent_again() -> None:
    class Destroyed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    @front_door
    def main(args=None) -> None:
        Destroyed()
        signal.sigtimedwait([], 5)  # waits for a signal

    assert ended_by(main) == 128 + signal.SIGTERM


@pytest.mark.parametrize("what", ["nothing", "another error"])
def test_a_signal_that_a_library_swallows_is_sent_again(what: str) -> None:
    def library() -> None:
        """What C++ that calls Python does: it catches whatever is raised."""
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            if what == "another error":
                raise RuntimeError("a callback failed") from error

    @front_door
    def main(args=None) -> None:
        with suppress(Exception):
            library()
        signal.sigtimedwait([], 5)

    assert ended_by(main) == 128 + signal.SIGTERM


def test_a_signal_while_openvino_converts_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: BaselineCNN, patches: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return patches.mean(dim=(1, 2, 3))

    @front_door
    def main(args=None) -> None:
        InferenceNetwork(BaselineCNN().eval())
        signal.sigtimedwait([], 5)

    calls: list[int] = []
    monkeypatch.setattr(BaselineCNN, "forward", forward)
    assert ended_by(main) == 128 + signal.SIGTERM


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    front_door(lambda args=None: None)(None)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
@pytest.mark.skipif("PCAM_SIGNALS" not in os.environ, reason="takes minutes; PCAM_SIGNALS says how many each gets")
def test_signals_at_random_moments_of_each_command_leave_nothing_half_written(tmp_path: Path) -> None:
    """As many signals as PCAM_SIGNALS says to each command; tests/scripts/signals.py does the same by hand."""
    each = int(os.environ["PCAM_SIGNALS"])
    counts = send(dict.fromkeys(COMMANDS, each), seed=1, folder=tmp_path)
    assert isinstance(counts, Counter)
    assert counts.total() == each * len(COMMANDS)
