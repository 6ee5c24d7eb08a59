"""The benchmark runs and reports; how fast it is here says nothing."""

import json
from pathlib import Path

import pytest

from tests.conftest import load_script

benchmark = load_script("benchmark").main


def test_reading_is_compared_with_torchvision(
    patch_root: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    benchmark([
        "data", "--data.root", str(patch_root), "--data.cache_dir", str(cache_dir), "--rounds", "2",
        "--output", str(output),
    ])  # fmt: skip
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["packed store", "torchvision ImageFolder", "torchvision PCAM"]
    assert all(len(row["patches_per_second"]) == 2 for row in rows.values())
    assert rows["packed store"]["ours_is_times_faster"] == 1
    assert "torchvision PCAM" in capsys.readouterr().out
