"""A race: contestants, each in a process of its own, take turns at the same work.

A race has rounds, and in each round every contestant takes one turn. A moment in which the machine is slow therefore
meets all contestants alike, and the ratios of their speeds hold although the speeds themselves vary.
"""

import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Final

import torch
from rich.progress import track

from pcam.errors import UserError

SAMPLE_SECONDS: Final = 0.02
"""Seconds between two readings of a process's memory."""


@dataclass(frozen=True)
class Turn:
    """What a contestant did in one turn.

    Args:
        patches: Number of patches that were processed.
        seconds: How long that took.
        anonymous_bytes: The most anonymous resident memory that the process had during the turn, which does not count
            memory-mapped files; None where the system does not say (only Linux does).
        device_bytes: The most memory that tensors took on the GPU; None without a GPU.
        facts: More numbers to report of the turn, by name.
    """

    patches: int
    seconds: float
    anonymous_bytes: int | None = None
    device_bytes: int | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


class Stopwatch:
    """What a contestant holds in its own process to wait for its turns and to report them.

    Args:
        connection: The pipe to the process that runs the race.
        device: Where the contestant computes.
    """

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self._connection = connection
        self._device = device

    def start(self) -> None:
        """Wait for this contestant's turn, then start the clock."""
        self._synchronize()
        self._connection.send("ready")
        self._connection.recv()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._memory = MemorySampler()
        self._memory.start()
        self._start = time.perf_counter()

    def stop(self, patches: int, **facts: float) -> None:
        """Stop the clock and report the turn.

        Args:
            patches: Number of patches that were processed in the turn.
            facts: More numbers to report of the turn, by name.
        """
        self._synchronize()
        seconds = time.perf_counter() - self._start
        device_bytes = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None
        self._connection.send(Turn(patches, seconds, self._memory.finish(), device_bytes, facts))
        self._connection.recv()  # after the last turn for ever: what a process does to end would disturb the others

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


class MemorySampler(threading.Thread):
    """A thread that reads the anonymous memory of a process again and again, and keeps the highest reading.

    Args:
        process: The number of the process; None is the thread's own.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__(daemon=True)
        self._status = Path("/proc", "self" if process is None else str(process), "status")
        self._most: int | None = None
        self._finished = threading.Event()

    def run(self) -> None:
        """Read until `finish` is called."""
        self._sample()
        while not self._finished.wait(SAMPLE_SECONDS):
            self._sample()

    def finish(self) -> int | None:
        """Stop reading.

        Returns:
            The highest reading, in bytes; None where the system does not say (only Linux does).
        """
        self._finished.set()
        self.join()
        return self._most

    def _sample(self) -> None:
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
        except OSError:
            return
        if found:
            self._most = max(self._most or 0, int(found[1]) * 1024)


Contestant = Callable[[Stopwatch], None]
"""A function that prepares itself, then calls `start` and `stop` of the stopwatch once a turn, then returns.

It must be a function of an importable module, or a partial of one, as it runs in a fresh process.
"""


def race(
    contestants: Mapping[str, Contestant], rounds: int, device: torch.device, folder: Path
) -> dict[str, list[Turn]]:
    """Let contestants take turns.

    Args:
        contestants: The contestants by name.
        rounds: Number of turns that each contestant takes.
        device: Where the contestants compute.
        folder: Folder for log files, one a contestant, with what it prints.

    Returns:
        The turns of each contestant, by name.

    Raises:
        UserError: If a contestant raises a `UserError`, or if its process is ended from outside.
        RuntimeError: If a contestant fails in another way.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    connections: dict[str, Connection] = {}
    with ExitStack() as stack:
        for name, contestant in contestants.items():
            connections[name], theirs = Pipe()
            with theirs, (folder / f"{re.sub('[^a-z0-9]+', '_', name.lower())}.log").open("w") as log:
                # A process of multiprocessing would import the main script, and Lightning with it, which Keras cannot
                # be in one process with.
                process = subprocess.Popen(
                    [sys.executable, "-m", "pcam.benchmark", str(theirs.fileno())],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                )
            stack.callback(process.wait)
            stack.callback(process.kill)  # by then it has reported all its turns
            _send(connections[name], name, (contestant, device))
            _receive(connections[name], name)  # "ready": contestants prepare one after the other, undisturbed
        for number in track(range(rounds), "Measuring"):
            for name, connection in connections.items():
                _send(connection, name, "go")
                turn = _receive(connection, name)
                assert isinstance(turn, Turn)
                turns[name].append(turn)
                if number < rounds - 1:
                    _send(connection, name, "on")
                    _receive(connection, name)
    return turns


def _send(connection: Connection, name: str, message: object) -> None:
    try:
        connection.send(message)
    except OSError as error:
        raise _killed(name) from error


def _receive(connection: Connection, name: str) -> object:
    try:
        answer = connection.recv()
    except (EOFError, OSError) as error:
        raise _killed(name) from error
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, Exception):
        raise RuntimeError(f"{name} failed") from answer
    return answer


def _killed(name: str) -> UserError:
    return UserError(
        f"Expected the process of the contestant '{name}' to run to its end, but it was killed, perhaps for lack of "
        f"memory; free some memory and run the benchmark again."
    )


def take_part(connection: Connection) -> None:
    """Run a contestant in this process, and report what it raises.

    Args:
        connection: The pipe to the race, which sends the contestant and its device.
    """
    try:
        contestant, device = connection.recv()
        contestant(Stopwatch(connection, device))
    except UserError as error:
        connection.send(error)
    except Exception:  # a bug: the race shows the whole traceback
        connection.send(RuntimeError(traceback.format_exc()))
