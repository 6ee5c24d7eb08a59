"""The results of a race: a table for the terminal and a JSON file."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

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
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, dict[str, str]] = {}
    for name, of_one in turns.items():
        # A ratio of medians: the contestants take turns, so a slow moment of the machine meets all of them.
        ratio = next(iter(medians.values())) / medians[name]
        memory = {
            "anonymous_bytes": _most([turn.anonymous_bytes for turn in of_one]),
            "device_bytes": _most([turn.device_bytes for turn in of_one]),
        }
        rows[name] = {"patches_per_second": speeds[name], "ours_is_times_faster": ratio, **memory}
        rows[name]["rounds"] = [asdict(turn) for turn in of_one]
        lines[name] = {
            "patches/s (median)": f"{medians[name]:,.0f}",
            "slowest to fastest": f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}",
            "ours is": f"{ratio:.2f} x",
        }
        for most, heading in zip(memory.values(), ("anonymous MB", "GPU MB"), strict=True):
            if most is not None:
                lines[name][heading] = f"{most / MEGABYTE:,.0f}"
        for fact in of_one[0].facts:
            lines[name][fact.replace("_", " ")] = f"{statistics.median(turn.facts[fact] for turn in of_one):.5f}"
    Console().print(_table(title, lines))
    record = {
        "title": title,
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _table(title: str, lines: Mapping[str, Mapping[str, str]]) -> Table:
    headings = list(dict.fromkeys(heading for line in lines.values() for heading in line))
    table = Table("", *(Column(heading, justify="right") for heading in headings), title=title)
    for name, line in lines.items():
        table.add_row(name, *(line.get(heading, "") for heading in headings))
    return table


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
