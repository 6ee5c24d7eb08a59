"""The results of a race: a table for the terminal and a JSON file."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.stats
import torch
from rich.console import Console
from rich.table import Column, Table

from pcam.atomic import atomic_path
from pcam.benchmark.race import Turn

MEGABYTE: Final = 1e6


def report_race(title: str, turns: Mapping[str, Sequence[Turn]], output: Path) -> None:
    """Print a table of a race and write its numbers to a JSON file.

    Args:
        title: What was measured.
        turns: The turns of each contestant, by name. The speed of the first is compared with that of each.
        output: The JSON file; replaced only when the new one is whole.
    """
    speeds = {name: [turn.patches / turn.seconds for turn in of_one] for name, of_one in turns.items()}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours = next(iter(speeds.values()))
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, dict[str, str]] = {}
    for name, of_one in turns.items():
        ratio, interval = ratio_of(ours, speeds[name])
        memory = {
            "anonymous_bytes": _most([turn.anonymous_bytes for turn in of_one]),
            "device_bytes": _most([turn.device_bytes for turn in of_one]),
        }
        rows[name] = {"patches_per_second": speeds[name], "ours_is_times_faster": ratio, "interval": interval, **memory}
        rows[name]["rounds"] = [asdict(turn) for turn in of_one]
        lines[name] = {
            "patches/s (median)": f"{medians[name]:,.0f}",
            "slowest to fastest": f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}",
            "ours is (95 %)": f"{ratio:.2f} x" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""),
        }
        for most, heading in zip(memory.values(), ("anonymous MB", "GPU MB"), strict=True):
            if most is not None:
                lines[name][heading] = f"{most / MEGABYTE:,.0f}"
        for fact in of_one[0].facts:
            lines[name][fact.replace("_", " ")] = f"{statistics.median(turn.facts[fact] for turn in of_one):.5f}"
    Console().print(_table(title, lines))
    _write(title, rows, output)


def report_commands(title: str, turns: Mapping[str, Sequence[Turn]], output: Path) -> None:
    """Print a table of how long commands took and write the numbers to a JSON file.

    Args:
        title: What was measured.
        turns: The turns of each command, by name.
        output: The JSON file; replaced only when the new one is whole.
    """
    rows, lines = {}, {}
    for name, of_one in turns.items():
        measured = {"seconds": [turn.seconds for turn in of_one]}
        measured |= {fact: [turn.facts[fact] for turn in of_one] for fact in of_one[0].facts}
        rows[name] = measured
        lines[name] = {
            fact.replace("_", " "): f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"
            for fact, values in measured.items()
        }
    Console().print(_table(title, lines))
    _write(title, rows, output)


def _write(title: str, rows: Mapping[str, Any], output: Path) -> None:
    record = {
        "title": title,
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def ratio_of(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Compare speeds round by round: in a round the contestants take turns, so a slow moment meets all of them.

    Args:
        first: The speed of one contestant in each round.
        second: The speed of the other in the same rounds.

    Returns:
        The geometric mean of the rounds' ratios, and its 95 % interval (Student's t over the logarithms of the ratios);
        no interval from a single round or of a contestant with itself.
    """
    logarithms = np.log(first) - np.log(second)
    mean = float(np.exp(logarithms.mean()))
    if len(logarithms) < 2 or not logarithms.any():
        return mean, None
    bounds = scipy.stats.t.interval(0.95, len(logarithms) - 1, logarithms.mean(), scipy.stats.sem(logarithms))
    low, high = np.exp(bounds).tolist()
    return mean, (low, high)


def _table(title: str, lines: Mapping[str, Mapping[str, str]]) -> Table:
    headings = list(dict.fromkeys(heading for line in lines.values() for heading in line))
    table = Table("", *(Column(heading, justify="right") for heading in headings), title=title)
    for name, line in lines.items():
        table.add_row(name, *(line.get(heading, "") for heading in headings))
    return table


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
