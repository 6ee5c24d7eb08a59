"""The benchmark runs and reports; how fast it is here says nothing."""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import norm, ttest_1samp
from torch import nn

from pcam.benchmark.contestants import plain_weights, trained_network
from pcam.benchmark.embeddings import SIGNAL, write_embeddings
from pcam.benchmark.patches import repeat_patches
from pcam.benchmark.plain import plain_predict
from pcam.benchmark.race import Stopwatch, Turn, race
from pcam.benchmark.results import ratio_of
from pcam.benchmark.whole import copy_patches, race_commands, run_command
from pcam.commands.benchmark import COMMANDS
from pcam.commands.benchmark import main as benchmark
from pcam.commands.predict import main as predict
from pcam.data import PCamDataModule
from pcam.door import first_line
from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.shipped import find_config
from tests.conftest import COUNTS, REPOSITORY
from tests.models.test_networks import trained
from tests.scripts.help_pages import check_help, heavy_imports


def figures(output: Path, *words: str | Path) -> dict[str, Any]:
    """Run a benchmark; what it wrote of each contestant."""
    benchmark([*map(str, words), "--output", str(output)])
    return json.loads(output.read_text())["rows"]


def test_reading_is_compared_with_torchvision(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--data.root", patch_root, "--data.cache_dir", cache_dir)
    rows = figures(tmp_path / "figures.json", "data", *place, "--rounds", "2")
    assert list(rows) == ["packed store", "torchvision ImageFolder", "torchvision PCAM"]
    assert all(len(row["patches_per_second"]) == 2 for row in rows.values())
    assert rows["packed store"]["ours_is_times_faster"] == 1
    assert "torchvision PCAM" in capsys.readouterr().out


def test_a_ratio_is_of_the_speeds_in_the_same_round() -> None:
    machine = np.array([100.0, 20.0, 60.0, 5.0])  # how fast it happens to be
    ratios = np.array([1.9, 2.1, 2.0, 2.2])
    found, interval = ratio_of((machine * ratios).tolist(), machine.tolist())
    expected = ttest_1samp(np.log(ratios), 0)
    assert found == pytest.approx(np.exp(np.log(ratios).mean()))
    assert interval == pytest.approx(np.exp(expected.confidence_interval(0.95)))
    assert ratio_of([4.0], [2.0]) == (pytest.approx(2), None)
    assert ratio_of([3.0, 4.0], [3.0, 4.0]) == (1.0, None)


@pytest.mark.slow  # starts three processes
def test_training_is_compared_with_plain_code_and_the_ceiling(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = figures(
        tmp_path / "figures.json", "train", "--data.root", patch_root, "--data.cache_dir", cache_dir,
        "--batch_size", "8", "--steps", "2", "--rounds", "2", "--device", "cpu",
    )  # fmt: skip
    assert list(rows) == ["ours", "plain", "ceiling"]
    for row in rows.values():
        assert [turn["patches"] for turn in row["rounds"]] == [16, 16]
        assert all(turn["seconds"] > 0 for turn in row["rounds"])
    assert all(0 < turn["facts"]["data_wait"] < 1 for turn in rows["ours"]["rounds"])
    if sys.platform == "linux":
        assert all(row["anonymous_bytes"] > 1e8 for row in rows.values())
    assert "ceiling" in capsys.readouterr().out


def stop(*args: object) -> None:
    raise UserError("Stopped before the race.")


@pytest.mark.parametrize("has_bfloat16", [True, False])  # whatever the processor has
def test_training_in_bfloat16_warns_where_it_is_slow(
    has_bfloat16: bool, patch_root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("pcam.models.inference.has_fast_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("pcam.benchmark.race.race", stop)
    with pytest.raises(SystemExit, match="1"):
        benchmark([
            "train", "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--device", "cpu",
            "--precision", "bf16-mixed",
        ])  # fmt: skip
    said = capsys.readouterr()
    assert "Stopped before the race." in said.err
    assert ("Expected a processor with instructions for bfloat16" in said.out) == (not has_bfloat16)


@pytest.mark.slow  # starts three processes
def test_evaluation_is_compared_at_the_same_auroc(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcam.models.inference.has_fast_bfloat16", lambda: True)  # whatever the processor has
    rows = figures(
        tmp_path / "figures.json", "evaluate", "--data.root", patch_root, "--data.cache_dir", cache_dir,
        "--batch_size", "8", "--rounds", "1", "--device", "cpu",
    )  # fmt: skip
    assert list(rows) == ["ours", "ours, bfloat16", "plain"]
    auroc = {name: row["rounds"][0]["facts"]["auroc"] for name, row in rows.items()}
    assert auroc["ours"] == pytest.approx(auroc["plain"], abs=1e-6)
    assert all(row["rounds"][0]["patches"] == sum(COUNTS["valid"]) for row in rows.values())


@pytest.mark.parametrize("has_bfloat16", [True, False])  # whatever the processor has
def test_evaluation_in_bfloat16_is_measured_where_it_is_fast(
    has_bfloat16: bool, patch_root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    contestants: list[str] = []

    def note(given: dict[str, object], *args: object) -> None:
        contestants.extend(given)
        raise UserError("Stopped before the race.")

    monkeypatch.setattr("pcam.models.inference.has_fast_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("pcam.benchmark.race.race", note)
    with pytest.raises(SystemExit, match="1"):
        benchmark([
            "evaluate", "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--device", "cpu"
        ])  # fmt: skip
    assert contestants == (["ours", "ours, bfloat16", "plain"] if has_bfloat16 else ["ours", "plain"])
    said = "Evaluation in bfloat16 is not measured. Expected a processor with instructions for bfloat16"
    assert (said in capsys.readouterr().out) == (not has_bfloat16)


def write_run(folder: Path, network: nn.Module, **options: object) -> None:
    """Write what a run folder holds of a network that has learned nothing."""
    config = yaml.safe_load(find_config("random_dropout").read_text())
    config["data"]["root"] = "patches"
    config["model"]["network"] = {"class_path": f"pcam.models.{type(network).__name__}", "init_args": options}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": state, "global_step": 0}, folder / "checkpoints" / "best.ckpt")


def test_the_network_of_a_run_is_measured(tmp_path: Path) -> None:
    network = MobileNetV2(weights=None, dropout=0.25)
    write_run(tmp_path, network, weights=None, dropout=0.25)
    found = trained_network(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (MobileNetV2, {"normalization": "unit"}, r"torchvision's normalization \(imagenet\) and bn_eps \(1e-05\)"),
        (MobileNetV2, {"bn_eps": 0.001}, r"torchvision's normalization \(imagenet\) and bn_eps \(1e-05\)"),
        (MobileNetV2, {"enlarged_sizes": [128]}, "is evaluated at 128 too; name another run"),
        (BaselineCNN, {}, "is one of BaselineCNN; name another run"),
    ],
)
def test_a_run_that_others_cannot_imitate_is_refused(
    network: type[nn.Module], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    options |= {"dropout": 0.5} | ({"weights": None} if network is MobileNetV2 else {})
    write_run(tmp_path, network(**options), **options)
    with pytest.raises(UserError, match=message):
        trained_network(tmp_path)


@pytest.mark.slow  # starts four processes
@pytest.mark.skipif("PCAM_BENCHMARKS" not in os.environ, reason="takes minutes; PCAM_BENCHMARKS=1 runs it")
@pytest.mark.parametrize("tta", [False, True])
def test_the_whole_command_predict_gives_the_scores_of_a_plain_script(
    tta: bool, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    network = trained(MobileNetV2(weights=None, dropout=0.5))
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, network, weights=None, dropout=0.5)
    option = ["--tta"] if tta else []
    rows = figures(
        tmp_path / "figures.json", "predict", run, "--data.root", patch_root, "--data.cache_dir",
        cache_dir, "--patches", "30", "--rounds", "1", *option,
    )  # fmt: skip
    assert list(rows) == ["ours", "plain"]
    assert rows["ours"]["rounds"][0]["facts"]["processor_seconds"] > 0
    images = copy_patches(patch_root / "valid", tmp_path / "links", 30)
    torch.save(plain_weights(network.state_dict()), tmp_path / "network.pt")
    plain_predict(tmp_path / "network.pt", images, tmp_path / "plain.csv", tta)
    predict([str(run), "--input", str(images), "--output", str(tmp_path / "ours.csv"), *option])
    ours, plain = (pd.read_csv(tmp_path / f"{name}.csv")["score"] for name in ("ours", "plain"))
    assert len(ours) == 30
    assert plain.std() > 1e-4
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


@pytest.mark.slow  # starts five processes
def test_the_start_of_commands_is_measured(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race_two(commands: dict[str, list[str]], *args: Any) -> dict[str, list[Turn]]:
        assert len(commands) == 6
        return race_commands({name: commands[name] for name in ("train --help", "train, one step")}, *args)

    monkeypatch.setattr("pcam.benchmark.whole.race_commands", race_two)
    rows = figures(
        tmp_path / "figures.json", "start", "--data.root", patch_root, "--data.cache_dir", cache_dir, "--rounds", "1"
    )
    assert rows["train --help"]["processor_seconds"][0] < rows["train, one step"]["processor_seconds"][0]


def test_a_command_that_ends_otherwise_than_expected_is_said() -> None:
    with pytest.raises(UserError, match="to end with exit code 0, but found 2"):
        run_command(["pcam", "train", "--nonsense"], 1, 0)


@pytest.mark.slow  # starts two processes, and paints
def test_memory_is_measured_over_more_patches_than_there_are(tmp_path: Path) -> None:
    rows = figures(tmp_path / "figures.json", "memory", "--counts", "[64, 1500]", "--steps", "1", "--rounds", "1")
    assert list(rows) == ["64 patches", "1,500 patches"]


@pytest.mark.slow  # starts three processes, and paints
def test_memory_of_prediction_is_measured_over_a_file_that_repeats_patches(tmp_path: Path) -> None:
    options = ["--of", "predict", "--counts", "[20, 1500]", "--rounds", "1"]
    rows = figures(tmp_path / "figures.json", "memory", *options)
    assert [row["rounds"][0]["patches"] for row in rows.values()] == [20, 1500]
    assert all(row["anonymous_bytes"] is None or row["anonymous_bytes"] > 1e7 for row in rows.values())


def test_a_file_can_repeat_patches(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    store = PCamDataModule(patch_root, cache_dir=cache_dir).packed("valid")
    repeat_patches(store, tmp_path / "many.h5", 2 * len(store) + 3)
    with h5py.File(tmp_path / "many.h5") as file:
        assert file["x"].shape == (2 * len(store) + 3, 96, 96, 3)
        assert np.array_equal(file["x"][len(store) :], np.concatenate([store.patches[:], store.patches[:3]]))


@pytest.mark.slow  # starts four processes
def test_scoring_a_slide_is_compared_with_its_network_and_a_plain_loop(
    patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    write_run(tmp_path, BaselineCNN(dropout=0.5), dropout=0.5)
    rows = figures(
        tmp_path / "figures.json", "slide", tmp_path, "--data.root", patch_root, "--data.cache_dir", cache_dir,
        "--side", "1920", "--large_side", "4000", "--rounds", "1",
    )  # fmt: skip
    assert list(rows) == ["ours", "network alone", "plain loop", "ours, 4,000 pixels"]
    windows = {name: row["rounds"][0]["patches"] for name, row in rows.items()}
    assert windows["ours"] == 13 * 13  # of 15 squares a side, those in the centre of a window
    assert windows["ours, 4,000 pixels"] >= 15 * 15
    assert windows["plain loop"] == 100


@pytest.mark.slow  # starts two processes
def test_embedding_is_compared_with_its_network_and_leaves_nothing_behind(
    patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    before = set(cache_dir.rglob("embeddings/*"))
    rows = figures(
        tmp_path / "figures.json", "embed", "--data.root", patch_root, "--data.cache_dir", cache_dir,
        "--batch_size", "8", "--rounds", "2", "--name", "test_efficientnet", "--image_size", "96",
    )  # fmt: skip
    assert list(rows) == ["ours", "ceiling", "ceiling, PyTorch"]
    for row in rows.values():
        assert [turn["patches"] for turn in row["rounds"]] == [sum(COUNTS["valid"])] * 2
    assert set(cache_dir.rglob("embeddings/*")) == before


@pytest.mark.slow  # starts a process
def test_a_probe_of_embeddings_that_are_made_up_learns(tmp_path: Path) -> None:
    rows = figures(tmp_path / "figures.json", "probe", "--patches", "2000", "--features", "16", "--dtype", "float16")
    (turn,) = rows["L-BFGS"]["rounds"]
    assert turn["patches"] == 2000
    assert turn["facts"]["iterations"] > 5
    # That of two normal distributions whose means lie so many standard deviations apart.
    assert turn["facts"]["auroc"] == pytest.approx(norm.cdf(SIGNAL / 2**0.5), abs=0.05)
    train, valid = write_embeddings(tmp_path, 2000, 16, "float16")
    assert train.matrix.dtype == np.float16
    assert [len(split.labels) for split in (train, valid)] == [2000, 250]
    variances = np.linalg.eigvalsh(np.cov(train.matrix.astype(float), rowvar=False))[::-1]
    # Between the classes lies SIGNAL / 4 of each of the 16 components, which adds 1 / 16 of each and mixes them a bit.
    assert variances == pytest.approx(1 / np.arange(1, 17), rel=0.15, abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "--patches", "15"], "Expected at least 16 patches, an eighth of them in valid, but found 15"),
        (["embed", "--image_size", "128"], "Expected name, a network of timm, with an image_size of 128"),
    ],
)
def test_embeddings_that_cannot_be_measured_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        benchmark(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("sides", [("1000", "5000"), ("5000", "4000")])
def test_slides_that_are_too_small_to_measure_are_refused(
    sides: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        benchmark(["slide", "nowhere", "--side", sides[0], "--large_side", sides[1]])
    assert f"but found side {sides[0]} and large_side {sides[1]}; correct them" in capsys.readouterr().err


def test_fewer_patches_than_a_batch_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        benchmark(["memory", "--counts", "[31, 64]"])
    assert "Expected at least 32 training patches, which are one batch, but found 31" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said(
    patch_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="1"):
        benchmark(["train", "--data.root", str(patch_root), "--device", "cuda"])
    assert "Expected a GPU" in capsys.readouterr().err


def fail(reason: Exception, stopwatch: Stopwatch) -> None:
    raise reason


def end_process(stopwatch: Stopwatch) -> None:
    os._exit(9)


def end_between_turns(stopwatch: Stopwatch) -> None:
    stopwatch.start()
    stopwatch.stop(1)
    stopwatch._connection.send("ready")
    os._exit(9)


def end_noisily(noise: Path, stopwatch: Stopwatch) -> None:
    stopwatch.start()
    stopwatch.stop(1)
    noise.touch()


@pytest.mark.slow  # starts two processes
def test_a_contestant_that_has_taken_its_turns_does_nothing_while_others_take_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # where the processes find this module
    contestants = {"one": partial(end_noisily, tmp_path / "noise"), "two": take_a_turn}
    turns = race(contestants, 1, torch.device("cpu"), tmp_path)
    assert [len(of_one) for of_one in turns.values()] == [1, 1]
    assert not (tmp_path / "noise").exists()


def take_a_turn(stopwatch: Stopwatch) -> None:
    stopwatch.start()
    time.sleep(1)  # the other contestant would end meanwhile
    stopwatch.stop(1)


def take_two_turns(stopwatch: Stopwatch) -> None:
    for _ in range(2):
        stopwatch.start()
        time.sleep(1)  # the other contestant ends meanwhile
        stopwatch.stop(1)


@pytest.mark.slow  # starts two processes
def test_a_contestant_that_is_killed_between_its_turns_ends_the_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # where the processes find this module
    with pytest.raises(UserError, match="'one' to run to its end, but it was killed"):
        race({"one": end_between_turns, "two": take_two_turns}, 2, torch.device("cpu"), tmp_path)


@pytest.mark.slow  # starts a process each
@pytest.mark.parametrize(
    ("contestant", "error", "message"),
    [
        (partial(fail, UserError("Expected what can be had.")), UserError, "Expected what can be had"),
        (partial(fail, ZeroDivisionError()), RuntimeError, "one failed"),
        (end_process, UserError, "'one' to run to its end"),
    ],
)
def test_a_contestant_that_fails_ends_the_race(
    contestant: Callable[[Stopwatch], None], error: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # where the processes find this module
    with pytest.raises(error, match=message):
        race({"one": contestant}, 1, torch.device("cpu"), tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_option_and_describes_the_benchmark_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        benchmark([name, "--help"])
    check_help(capsys.readouterr().out, first_line(COMMANDS[name])[:40])


def test_help_answers_without_importing_what_takes_time() -> None:
    assert heavy_imports("pcam.commands.benchmark", "evaluate", "--help") == []
