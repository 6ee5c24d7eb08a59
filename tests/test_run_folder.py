"""Run folders and the metrics file."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from pcam import run_folder
from pcam.errors import UserError
from pcam.run_folder import RunFolder, are_seeds, run_names
from pcam.training.metrics_file import MetricsFile


def test_runs_that_start_together_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunFolder.claim(tmp_path, "demo").path.name, range(16)))
    assert sorted(runs) == sorted(f"version_{number}" for number in range(16))


def test_a_new_run_comes_after_the_highest_number(tmp_path: Path) -> None:
    for name in ("version_2", "version_10", "version_old"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    assert RunFolder.claim(tmp_path, "demo").path.name == "version_11"


@pytest.mark.parametrize(("make", "found"), [("mkdir", "a folder without one"), ("touch", "a file"), (None, "nothing")])
def test_what_is_no_run_folder_is_refused(make: str | None, found: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if make:
        getattr(path, make)()
    with pytest.raises(UserError, match=rf"Expected a run folder with a config\.yaml .* but found {found} at .*run"):
        RunFolder.find(path)


def test_names_say_no_more_than_tells_runs_apart() -> None:
    def names(*paths: str) -> list[str]:
        return run_names([RunFolder(Path(path)) for path in paths])

    assert names("logs/cnn/version_0") == ["cnn/version_0"]
    assert names("logs/cnn/version_0", "logs/demo/version_0") == ["cnn/version_0", "demo/version_0"]
    assert names("here/cnn/version_0", "there/cnn/version_0") == ["here/cnn/version_0", "there/cnn/version_0"]


def test_a_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected a checkpoint .*best\.ckpt, but there is none"):
        RunFolder(tmp_path).checkpoint("best")


def test_the_environment_is_recorded(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_environment("cpu", {"train": "abc"})
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["data_fingerprints"] == {"train": "abc"}
    assert environment["packages"].keys() >= {"torch", "lightning"}


def test_the_commit_is_that_of_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    def commit() -> str | None:
        RunFolder(tmp_path / "run").write_environment("cpu", {})
        found: str | None = json.loads((tmp_path / "run" / "environment.json").read_text())["git_commit"]
        return found

    (tmp_path / "run").mkdir()
    package = tmp_path / "site-packages" / "run_folder.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(package))
    git("init")
    git("commit", "--allow-empty", "--message", "somebody else's")
    assert commit() is None  # installed within a repository, and no part of it
    git("add", str(package))
    git("commit", "--message", "a checkout")
    assert re.fullmatch("[0-9a-f]{40}", commit() or "")


def test_runs_that_differ_in_their_seeds_and_in_what_they_show_are_seeds(tmp_path: Path) -> None:
    def run(seed: int, **options: object) -> RunFolder:
        made = RunFolder.claim(tmp_path, "cnn")
        config = {"seed_everything": seed, "experiment": f"of {seed}", "trainer": {}, "data": {"batch_size": 8}}
        for key, value in options.items():
            section, name = key.split("__")
            config[section][name] = value
        made.config.write_text(yaml.safe_dump(config))
        return made

    first = run(1)
    assert are_seeds([first, run(2), run(3, trainer__enable_progress_bar=False, data__cache_dir="elsewhere")])
    assert not are_seeds([first])
    assert not are_seeds([first, run(1)])
    assert not are_seeds([first, run(2, data__batch_size=16)])
    assert not are_seeds([first, run(2, trainer__max_steps=5)])


def test_metrics_of_one_step_share_a_row(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"train/loss": 0.5, "epoch": 0}, 5)
    metrics.log_metrics({"val/auroc": 0.9, "epoch": 0}, 5)
    metrics.log_metrics({"train/loss": 0.4, "epoch": 1}, 10)
    metrics.save()
    assert (tmp_path / "metrics.csv").read_text().split() == [
        "step,epoch,train/loss,val/auroc",
        "5,0,0.5,0.9",
        "10,1,0.4,",
    ]


def test_metrics_without_an_epoch_leave_it_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"lr-SGD": 0.1}, 0)
    metrics.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,epoch,lr-SGD", "0,,0.1"]
    metrics.log_metrics({"train/loss": 0.5, "epoch": 1}, 5)
    metrics.save()
    expected = ["step,epoch,lr-SGD,train/loss", "0,,0.1,", "5,1,,0.5"]
    assert (tmp_path / "metrics.csv").read_text().split() == expected
    resumed = MetricsFile(tmp_path / "metrics.csv", resume_step=5)
    resumed.save()
    assert (tmp_path / "metrics.csv").read_text().split() == expected


def test_a_resumed_metrics_file_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,train/loss,val/auroc\n5,0,0.30000000000000004,\n10,1,0.4,0.9\n15,1,0.5,\n")
    metrics = MetricsFile(path, resume_step=10)
    metrics.log_metrics({"train/loss": 0.6, "epoch": 1}, 15)
    metrics.finalize("success")
    expected = "step,epoch,train/loss,val/auroc\n5,0,0.30000000000000004,\n10,1,0.4,0.9\n15,1,0.6,\n"
    assert path.read_text() == expected
