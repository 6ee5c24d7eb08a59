"""Do all runs of a study that are missing: several at a time, on this machine or, through a launcher, on many."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple, Protocol, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcam.atomic import atomic_path
from pcam.errors import SIGNALS, StoppedError
from pcam.study.plan import Plan, Run
from pcam.study.runner import POLL_SECONDS, TAKEN, Conditions, Job, StudyFolder

STOPPED: Final = "Stopped; what is done is kept, and the same command goes on with the rest, within a run too."
Show: TypeAlias = Callable[[Mapping[str, int], set[Run], set[Run]], None]  # steps by run, runs under way, runs done


class Outcome(NamedTuple):
    """How a job has ended.

    Attributes:
        reason: Why the run is not done, in a sentence; None if it is done.
        files: The files of its result, by name, where they may not be on this machine yet.
    """

    reason: str | None
    files: Mapping[str, bytes]


class Launcher(Protocol):
    """What starts jobs, on this machine or elsewhere."""

    def start(self, job: Job) -> "Future[Outcome]":
        """Start a job as soon as there is room for it."""

    def steps(self) -> Mapping[str, int]:
        """The step that each run has reached, by the run's name; only runs that have begun."""

    def stop(self, signal_number: int) -> None:
        """Ask all jobs to stop with a checkpoint, those that have not begun too."""


class LocalLauncher:
    """Does jobs on this machine.

    Args:
        jobs: How many at a time.
    """

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._steps: dict[str, int] = {}
        self._signal = 0

    def start(self, job: Job) -> "Future[Outcome]":
        """Start a job as soon as there is room for it."""

        def watch(step: int) -> int:
            self._steps[job.run.name] = step
            return self._signal

        return self._pool.submit(lambda: Outcome(job.do(watch), {}))

    def steps(self) -> Mapping[str, int]:
        """The step that each run has reached."""
        return dict(self._steps)

    def stop(self, signal_number: int) -> None:
        """Ask all jobs to stop with a checkpoint."""
        self._signal = signal_number


def asked_threads() -> int | None:
    """The CPU threads of a process that the user asks for by `OMP_NUM_THREADS`; None if that says nothing."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else None


def threads_of_each(jobs: int) -> int | None:
    """Divide the CPU threads of this machine by the number of runs that share it.

    Args:
        jobs: How many runs are done at a time, at least 1.

    Returns:
        What `OMP_NUM_THREADS` says, or else the number of CPUs that this process may use, divided by `jobs`, at least
        1; None for a single run, which has what PyTorch takes.
    """
    if jobs == 1:
        return None
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (asked_threads() or cpus) // jobs)


def execute(
    plan: Plan, runs: Sequence[Run], folder: StudyFolder, conditions: Conditions, launcher: Launcher
) -> dict[Run, str]:
    """Train and measure those runs that are not done.

    A run that was interrupted goes on from its last checkpoint. A run that another process is training is left to that
    process. If a run fails, the reason is kept, and the others go on.

    Args:
        plan: The study.
        runs: The runs that this process is to do.
        folder: The folder of the study.
        conditions: What all runs share.
        launcher: What starts them.

    Returns:
        The runs that failed, each with the reason in a sentence.

    Raises:
        StoppedError: After SIGINT, SIGTERM or SIGHUP.
        UserError: If there is a run or a result of another arm than the plan's.
    """
    for run in runs:
        folder.check_arm(plan, run)
    open_runs = [run for run in runs if not folder.results.is_done(run)]
    failures: dict[Run, str] = {}
    with _signals() as received, _table(plan, open_runs) as (show, console):
        jobs = {launcher.start(Job(plan, run, folder, conditions)): run for run in open_runs}
        waiting, done = set(jobs), set[Run]()
        try:
            while waiting:
                ended, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                if received:
                    launcher.stop(received[0])
                for future in ended:
                    run, (reason, files) = jobs[future], future.result()
                    folder.results.take(files)
                    if received and reason is not None:
                        continue
                    if reason != TAKEN:
                        _keep_reason(folder, run, reason)
                    console.print(f"{run.name}: {'done' if reason is None else f'failed: {reason}'}", markup=False)
                    if reason is None:
                        done.add(run)
                    else:
                        failures[run] = reason
                show(launcher.steps(), {jobs[future] for future in waiting}, done)
        finally:
            if waiting:  # a bug: nothing goes on behind its back
                launcher.stop(signal.SIGTERM)
        if received:
            raise StoppedError(received[0], STOPPED)
    return failures


def _keep_reason(folder: StudyFolder, run: Run, reason: str | None) -> None:
    if reason is None:
        folder.failure(run).unlink(missing_ok=True)
    else:
        with atomic_path(folder.failure(run)) as temporary:
            temporary.write_text(f"{reason}\n", encoding="utf-8")


@contextmanager
def _table(plan: Plan, runs: Sequence[Run]) -> Iterator[tuple[Show, Console]]:
    """Show one row for all runs, and one for each that is under way; lends what updates them.

    A run that has failed or was stopped is not under way any more and not done; its steps count as far as it came.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    goals = {run: plan.arms[run.arm].max_steps(run.arm) for run in runs}
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=600) as progress:
        total = progress.add_task(f"{len(runs)} runs" if runs else "Nothing to train", total=sum(goals.values()))
        rows = {run: progress.add_task(run.name, total=goal, visible=False) for run, goal in goals.items()}

        def show(steps: Mapping[str, int], waiting: set[Run], done: set[Run]) -> None:
            for run, row in rows.items():
                progress.update(row, completed=steps.get(run.name, 0), visible=run in waiting and run.name in steps)
            reached = sum(goals[run] if run in done else min(steps.get(run.name, 0), goals[run]) for run in runs)
            progress.update(total, completed=reached, description=f"{len(done)} of {len(runs)} runs")

        yield show, progress.console


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask a command to end in a list, instead of ending at once."""
    received: list[int] = []

    def note(signal_number: int, frame: FrameType | None) -> None:
        received.append(signal_number)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup leaves SIGHUP
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
