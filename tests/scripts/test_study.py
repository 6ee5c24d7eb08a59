"""Studies through the front door: they train, are stopped, go on, fail in part, and report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from pcam.commands.study import main as study
from pcam.study import launch, runner
from tests.conftest import REPOSITORY
from tests.study.made_up import PLAN

STEPS = 12


@pytest.fixture
def plan(patch_root: Path, cache_dir: Path, tmp_path: Path) -> Path:
    """A study of two arms of the baseline CNN and one that cannot be had."""
    shared = {
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 2,
        "data.batch_size": 8,
        "data.cache_dir": str(cache_dir),
    }
    config = str(REPOSITORY / "configs" / "cnn.yaml")
    contents = {
        "name": "tiny",
        "title": "A tiny study",
        "source": "nowhere",
        "split": "valid",
        "seeds": [1],
        "arms": {
            "plain": {"label": "plain", "config": config, "overrides": shared},
            "broken": {
                "label": "MobileNetV2 without its weights",
                "config": str(REPOSITORY / "configs" / "imagenet_dropout.yaml"),
                "overrides": shared | {"model.network.weights": str(tmp_path / "nothing.pth")},
                "batch_norm_readings": True,
            },
            "dropout": {"label": "dropout", "config": config, "overrides": shared | {"model.network.dropout": 0.5}},
        },
        "published": {"plain": {"auroc": 0.944, "roc_figure": 3}},
        "questions": [
            {"text": "Do they differ?", "arm": "plain", "other": "dropout", "reading": "reestimated",
             "test": "difference"},
        ],
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(contents, sort_keys=False))
    return path


def words(plan: Path, root: Path, output: Path, *more: str) -> list[str]:
    return ["--config", str(plan), "--data.root", str(root), "--output", str(output), *more]


def without_time(record: bytes) -> bytes:
    """A record of a run without what differs each time."""
    return re.sub(rb'"seconds": .*', b"", record)


@pytest.mark.slow
def test_one_arm_fails_and_the_others_go_on(
    plan: Path, patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    with pytest.raises(SystemExit) as ended:
        study(words(plan, patch_root, output))
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert re.search(r"Expected 3 runs, but 1 could not be done \(broken_seed_1: .*Expected", said.err)
    assert "nothing.pth" in said.err
    assert "Traceback" not in said.err
    assert "2 of 3 runs" in said.out
    results = {path.parts[-2] for path in output.glob("results/*/record.json")}
    assert results == {"plain_seed_1", "dropout_seed_1"}
    report = (output / "report" / "report.md").read_text()
    assert "2 of 3 runs are done" in report
    assert re.search("MobileNetV2 without its weights, seed 1: .*Expected", report)
    # What is done is not done again; what is not is tried again.
    before = {path: path.stat().st_mtime_ns for path in (output / "results").rglob("*")}
    with pytest.raises(SystemExit):
        study(words(plan, patch_root, output))
    assert {path: path.stat().st_mtime_ns for path in (output / "results").rglob("*")} == before
    # From results alone, on a machine that has nothing else of it, and to be published.
    page = tmp_path / "docs" / "study.md"
    results = ["--results", str(output / "results"), "--page", str(page)]
    study(["--config", str(plan), "--output", str(tmp_path / "other"), "--report_only", *results])
    assert "weights, seed 1: not trained yet" in page.read_text()  # why is known where it was tried
    for name in re.findall(r"\]\((.*\.svg)\)", page.read_text()):
        published = (page.parent / name).read_bytes()
        assert published == (output / "report" / "figures" / Path(name).name.removeprefix("study_")).read_bytes()
    # Half done, it goes on with the data where they are now.
    moved = tmp_path / "moved"
    shutil.copytree(patch_root, moved)
    first = without_time((output / "results" / "plain_seed_1" / "record.json").read_bytes())
    (output / "results" / "plain_seed_1" / "record.json").unlink()
    shutil.copytree(output, tmp_path / "elsewhere")
    config = tmp_path / "elsewhere" / "runs" / "plain_seed_1" / "version_0" / "config.yaml"
    config.write_text(config.read_text().replace(str(patch_root.resolve()), str(tmp_path / "gone")))
    study(words(plan, moved, tmp_path / "elsewhere", "--shard", "1/3"))
    again = tmp_path / "elsewhere" / "results" / "plain_seed_1" / "record.json"
    assert without_time(again.read_bytes()) == first
    # Another arm under the same name is not taken for this one.
    plan.write_text(plan.read_text().replace("model.network.dropout: 0.5", "model.network.dropout: 0.25"))
    with pytest.raises(SystemExit):
        study(words(plan, patch_root, output))
    assert "dropout_seed_1 to be the result of the arm 'dropout' as the study's YAML" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_bit_for_bit(plan: Path, patch_root: Path, tmp_path: Path) -> None:
    # Long enough that two signals find it in training, on a machine that is busy with other tests too.
    contents = yaml.safe_load(plan.read_text())
    for arm in contents["arms"].values():
        arm["overrides"] |= {"trainer.max_steps": 400, "trainer.val_check_interval": 200}
    plan.write_text(yaml.safe_dump(contents, sort_keys=False))
    study(words(plan, patch_root, tmp_path / "whole", "--shard", "1/3"))
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    assert whole.name == "plain_seed_1"  # the others are other machines'
    stopped = tmp_path / "stopped"
    command = [sys.executable, str(REPOSITORY / "scripts" / "study.py"), *words(plan, patch_root, stopped)]
    run = stopped / "runs" / "plain_seed_1" / "version_0"
    metrics = run / "metrics.csv"
    for number in (signal.SIGINT, signal.SIGHUP):
        logged = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(
            [*command, "--shard", "1/3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.stat().st_size > logged:
                break  # it trains
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(number)
        table, said = process.communicate(timeout=120)
        assert process.returncode == 128 + number
        assert "0 of 1 runs" in table
        assert "Stopped; what is done is kept, and the same command goes on with the rest" in said
    study(words(plan, patch_root, stopped, "--shard", "1/3"))
    ends = [
        torch.load(folder / "runs" / "plain_seed_1" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (tmp_path / "whole", stopped)
    ]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    for name in ("record.json", "logits.csv.gz"):
        files = [folder / "results" / "plain_seed_1" / name for folder in (tmp_path / "whole", stopped)]
        contents = [without_time(path.read_bytes()) for path in files]
        assert contents[0] == contents[1]
    assert pd.read_csv(metrics)["step"].is_unique


@pytest.mark.slow
def test_readings_are_measured_where_there_is_batch_norm(plan: Path, patch_root: Path, tmp_path: Path) -> None:
    contents = yaml.safe_load(plan.read_text())
    arm = contents["arms"].pop("broken")
    arm["overrides"] |= {"model.network.weights": None, "trainer.max_steps": 4}
    contents |= {"arms": {"random": arm}, "published": {}, "questions": []}
    plan.write_text(yaml.safe_dump(contents))
    study(words(plan, patch_root, tmp_path / "study"))
    record = json.loads((tmp_path / "study" / "results" / "random_seed_1" / "record.json").read_text())
    assert list(record["readings"]) == ["momentum_0.1", "momentum_0.001", "reestimated"]
    # At the last step there was a validation, on the same patches.
    last = pd.read_csv(tmp_path / "study" / "results" / "random_seed_1" / "curves.csv.gz").set_index("step").loc[4]
    for reading in ("momentum_0.1", "momentum_0.001"):
        assert record["readings"][reading]["loss"] == pytest.approx(last[f"val/loss_{reading}"], rel=1e-5)


@pytest.mark.slow
def test_a_probe_and_a_training_are_measured_alike(
    plan: Path, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    contents = yaml.safe_load(plan.read_text())
    probe = {"model.network": "pcam.models.MobileNetV2", "model.network.weights": None, "model.network.dropout": 0.0}
    contents["arms"] = {
        "plain": contents["arms"]["plain"],
        "probed": {
            "label": "probed", "command": "probe",
            "overrides": probe | {"few_shot": 3, "data.cache_dir": str(cache_dir)},
        },
    }  # fmt: skip
    contents["questions"][0]["other"] = "probed"
    contents["published"] = {}
    plan.write_text(yaml.safe_dump(contents, sort_keys=False))
    study(words(plan, patch_root, tmp_path / "study"))
    records = [
        json.loads((tmp_path / "study" / "results" / f"{arm}_seed_1" / "record.json").read_text())
        for arm in ("plain", "probed")
    ]
    assert [list(record["readings"]) for record in records] == [["momentum_0.1"], ["momentum_0.1"]]
    assert records[0]["data_fingerprint"] == records[1]["data_fingerprint"]
    assert records[1]["few_shot"]
    assert "| probed |" in (tmp_path / "study" / "report" / "report.md").read_text()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_study_unless_nohup_says_not_to(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with launch._signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == ([signal.SIGTERM] if ignored else [signal.SIGHUP, signal.SIGTERM])
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_table_counts_a_run_as_done_only_if_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    runs = done, failed, stopped = PLAN.runs()[:3]  # 2,250 steps each
    with launch._table(PLAN, runs) as (show, _):
        show({done.name: 2250, failed.name: 500, stopped.name: 20}, set(), {done})
    assert re.search("1 of 3 runs .* 2770/6750 steps", capsys.readouterr().out)


def test_a_process_that_was_killed_is_said_to_be(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("MobileNetV2: 2,225,153 parameters learn, 0 are frozen.\n\n")
    assert runner._reason(-9, log) == "killed by signal 9 (Killed), perhaps for want of memory"
    assert runner._reason(-15, log) == "killed by signal 15 (Terminated)"
    assert runner._reason(1, log).startswith("MobileNetV2: 2,225,153")
    log.write_text("")
    assert runner._reason(1, log) == "exit code 1"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_shard_that_is_none_is_refused(
    shard: str, plan: Path, patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        study(words(plan, patch_root, tmp_path / "study", "--shard", shard))
    assert ended.value.code == 1
    assert f"Expected shard as PART/PARTS, such as 2/4, but found '{shard}'" in capsys.readouterr().err


def test_patches_are_asked_for(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        study(["--config", str(plan)])
    assert ended.value.code == 1
    assert "give it as `root` (on the command line --data.root)" in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.stem for path in sorted((REPOSITORY / "configs" / "studies").iterdir())])
def test_a_shipped_study_is_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # its arms' configs are found by their names
    path = REPOSITORY / "configs" / "studies" / f"{name}.yaml"
    with pytest.raises(SystemExit):
        study(["--config", str(path), "--output", str(tmp_path), "--report-only"])
    assert "Expected the result of at least one run" in capsys.readouterr().err
    assert yaml.safe_load(path.read_text())["name"] == name
    assert not list(tmp_path.iterdir())
