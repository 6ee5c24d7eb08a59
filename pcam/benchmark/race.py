"""A race: contestants in processes of their own take turns, so that a slow moment of the machine meets all of them."""

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
"""How often a process looks at its memory."""


@dataclass(frozen=True)
class Round:
    """What a contestant did in its turn.

    Args:
        patches: Patches that went through.
        seconds: How long that took.
        anonymous_bytes: The most anonymous resident memory that its process had; files that are mapped do not count.
            None where the system does not say (only Linux does).
        device_bytes: The most memory that tensors took on the GPU; None without one.
        facts: What else is to be known of it, by name.
    """

    patches: int
    seconds: float
    anonymous_bytes: int | None = None
    device_bytes: int | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


class Stopwatch:
    """A contestant's side of the race: waits for its turn, and says what it did in it.

    Args:
        connection: To the process that runs the race.
        device: Where the contestant computes.
    """

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self._connection = connection
        self._device = device

    def start(self) -> None:
        """Wait until it is this contestant's turn; time runs from here."""
        self._synchronize()
        self._connection.send("ready")
        self._connection.recv()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._memory = _MemorySampler()
        self._memory.start()
        self._start = time.perf_counter()

    def stop(self, patches: int, **facts: float) -> None:
        """Say that the turn is over.

        Args:
            patches: Patches that went through.
            facts: What else is to be known of it.
        """
        self._synchronize()
        seconds = time.perf_counter() - self._start
        device_bytes = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None
        self._connection.send(Round(patches, seconds, self._memory.finish(), device_bytes, facts))

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


class _MemorySampler(threading.Thread):
    """Follows the anonymous memory of its own process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._most: int | None = None
        self._finished = threading.Event()

    def run(self) -> None:
        self._look()
        while not self._finished.wait(SAMPLE_SECONDS):
            self._look()

    def finish(self) -> int | None:
        self._finished.set()
        self.join()
        return self._most

    def _look(self) -> None:
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        except OSError:
            return
        if found:
            self._most = max(self._most or 0, int(found[1]) * 1024)


def race(
    contestants: Mapping[str, Callable[[Stopwatch], None]], rounds: int, device: torch.device, folder: Path
) -> dict[str, list[Round]]:
    """Let contestants take turns.

    Args:
        contestants: By name; each makes ready, then calls `start` and `stop` of its stopwatch `rounds` times, then
            returns. What it prints goes to a file. It must be a function of an importable module, or a partial of one:
            each runs in a fresh process.
        rounds: Turns of each.
        device: Where they compute.
        folder: For the files with what they print.

    Returns:
        The rounds of each.

    Raises:
        UserError: If a contestant raises one, or its process is ended.
        RuntimeError: If one fails otherwise.
    """
    found: dict[str, list[Round]] = {name: [] for name in contestants}
    connections: dict[str, Connection] = {}
    with ExitStack() as stack:
        for name, contestant in contestants.items():
            connections[name], theirs = Pipe()
            with theirs, (folder / f"{re.sub('[^a-z0-9]+', '_', name.lower())}.log").open("w") as log:
                # Not multiprocessing's processes, which import the script again: Keras cannot be where Lightning is.
                process = subprocess.Popen(
                    [sys.executable, "-m", "pcam.benchmark", str(theirs.fileno())],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                )
            stack.callback(process.wait)
            stack.callback(process.kill)  # it has said all it has to say
            connections[name].send((contestant, device))
            _receive(connections[name], name)  # ready: one makes ready after the other, undisturbed
        for number in track(range(rounds), "Measuring"):
            for name, connection in connections.items():
                connection.send("go")
                answer = _receive(connection, name)
                assert isinstance(answer, Round)
                found[name].append(answer)
                if number < rounds - 1:
                    _receive(connection, name)
    return found


def _receive(connection: Connection, name: str) -> object:
    try:
        answer = connection.recv()
    except EOFError as error:
        raise UserError(
            f"Expected '{name}' to run to its end, but its process was ended, as for lack of memory; free some."
        ) from error
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, Exception):
        raise RuntimeError(f"{name} failed") from answer
    return answer


def take_part(connection: Connection) -> None:
    """Run a contestant, in a process that is its own.

    Args:
        connection: Gives the contestant and its device.
    """
    try:
        contestant, device = connection.recv()
        contestant(Stopwatch(connection, device))
    except UserError as error:
        connection.send(error)
    except Exception:  # a bug: whole, to the process that waits
        connection.send(RuntimeError(traceback.format_exc()))
