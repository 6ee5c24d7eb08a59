"""Runs of a study side by side, on one machine and on two machines of a Ray cluster of which one dies."""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pcam.commands.study import main as study
from pcam.errors import UserError
from pcam.study.cluster import RayLauncher
from pcam.study.launch import threads_of_each
from tests.conftest import REPOSITORY


def write_plan(path: Path, cache_dir: Path, steps: int) -> Path:
    """A study of two runs of the baseline CNN."""
    overrides = {
        "trainer.max_steps": steps, "trainer.val_check_interval": 25, "trainer.log_every_n_steps": 5,
        "data.batch_size": 8, "data.cache_dir": str(cache_dir),
    }  # fmt: skip
    contents = {
        "name": "two", "title": "Two runs", "source": "nowhere", "split": "valid", "seeds": [1, 2],
        "arms": {"cnn": {"label": "CNN", "config": "cnn", "overrides": overrides}}, "questions": [],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(contents))
    return path


def results(folder: Path) -> dict[str, bytes]:
    """The files of all results, without how long each run took."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "results").rglob("*.*"))}
    return {name: re.sub(rb'"seconds": .*', b"", content) for name, content in files.items()}


@pytest.mark.slow  # starts a cluster and six processes that import PyTorch
@pytest.mark.skipif("PCAM_CLUSTER" not in os.environ, reason="takes minutes and some GB; PCAM_CLUSTER=1 runs it")
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_cluster_of_which_a_machine_dies_gives_the_results_of_one_machine(
    patch_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    words = ["--config", str(write_plan(tmp_path / "two.yaml", cache_dir, 300)), "--data.root", str(patch_root)]
    study([*words, "--output", str(tmp_path / "one"), "--jobs", "2"])
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        folder = tmp_path / "both"

        def kill() -> None:
            """Let the second machine die when both have validated once."""
            checkpoints = [folder / "runs" / f"cnn_seed_{seed}/version_0/checkpoints/last.ckpt" for seed in (1, 2)]
            deadline = time.monotonic() + 300
            while not all(path.exists() for path in checkpoints) and time.monotonic() < deadline:
                time.sleep(0.02)
            cluster.remove_node(other, allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        study([*words, "--output", str(folder), "--launcher", "ray"])
        killer.join()
    finally:
        import ray  # noqa: PLC0415

        ray.shutdown()
        cluster.shutdown()
    assert len(list(folder.glob("runs/*/version_0/events.out.tfevents.*"))) == 3  # one went on from a checkpoint
    assert results(folder) == results(tmp_path / "one")
    assert len(results(folder)) == 1 + 2 * 3
    record = json.loads((folder / "results" / "cnn_seed_1" / "record.json").read_text())
    assert record["environment"]["threads"] == 1


def test_threads_are_divided_among_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [threads_of_each(jobs) for jobs in (1, 2, 3, 16)] == [None, 4, 2, 1]


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Expected the package ray.*pip install 'pcam\[cluster\]'"):
        RayLauncher()


def test_a_number_of_jobs_that_is_none_is_refused(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(write_plan(tmp_path / "two.yaml", cache_dir, 25)), "--data.root", str(patch_root)]
    with pytest.raises(SystemExit) as ended:
        study([*words, "--output", str(tmp_path / "study"), "--jobs", "0"])
    assert ended.value.code == 1
    assert "Expected jobs to be at least 1, but found 0" in capsys.readouterr().err
