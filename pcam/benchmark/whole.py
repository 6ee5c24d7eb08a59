"""Whole commands, measured as people run them: from the start of a process to its end."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import track

from pcam.benchmark.race import MemorySampler, Turn
from pcam.errors import UserError

Command = Sequence[str]
"""The words behind `python -m`: a module and its command line."""


def run_command(command: Command, patches: int, exit_code: int) -> Turn:
    """Run a command to its end.

    Args:
        command: The command.
        patches: The number of patches that it processes.
        exit_code: What it is expected to end with.

    Returns:
        How long it took and its memory, with the processor time that it used, in seconds.

    Raises:
        UserError: If it ends with another exit code.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    memory = MemorySampler(process.pid)
    memory.start()
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    anonymous = memory.finish()
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != exit_code:
        raise UserError(
            f"Expected the command {' '.join(command)} to end with exit code {exit_code}, but found "
            f"{process.returncode} ({said.strip()[-500:]}); correct what it says."
        )
    return Turn(patches, seconds, anonymous, facts={"processor_seconds": usage.ru_utime + usage.ru_stime})


def race_commands(
    commands: Mapping[str, Command], patches: int, rounds: int, exit_codes: Mapping[str, int] | None = None
) -> dict[str, list[Turn]]:
    """Run commands in turn, after a round that does not count.

    Args:
        commands: The commands by name.
        patches: The number of patches that each processes.
        rounds: The number of rounds that count.
        exit_codes: The exit codes that are not 0, by the name of the command.

    Returns:
        The turns of each command, by name.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in commands}
    for number in track(range(rounds + 1), "Measuring"):
        for name, command in commands.items():
            turn = run_command(command, patches, (exit_codes or {}).get(name, 0))
            if number:
                turns[name].append(turn)
    return turns


def copy_patches(images: Path, folder: Path, count: int) -> Path:
    """Link image files into class folders until there are as many as asked for; files are repeated under new names.

    Args:
        images: Folder with the class folders 0 and 1.
        folder: Where class folders of the links are made.
        count: The number of links.

    Returns:
        The folder.
    """
    files = sorted(path for path in images.glob("[01]/*") if path.is_file())
    for number in range(count):
        file = files[number % len(files)]
        place = folder / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}_{file.name}").symlink_to(file.resolve())
    return folder
