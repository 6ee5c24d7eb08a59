"""Train the runs of a study that are missing, one after the other, each in a process of its own."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcam.atomic import atomic_path
from pcam.errors import SIGNALS, StoppedError, UserError
from pcam.run_folder import RunFolder
from pcam.shipped import find_config
from pcam.study.plan import Plan, Run

PCAM: Final = (sys.executable, "-m", "pcam")
"""What begins the command that trains or probes a run; the command's name and the run's options follow."""

POLL_SECONDS: Final = 1.0
"""Seconds between two looks at how far a run has got."""

STOPPED: Final = "Stopped; what is done is kept, and the same command goes on with the rest, within a run too."

MeasureRun = Callable[[Run, RunFolder], None]
"""A function that measures a trained run and writes its result."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study, and what lies where in it.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def runs(self) -> Path:
        """The folder with one folder for each run, `<arm>_seed_<seed>`."""
        return self.path / "runs"

    @property
    def report(self) -> Path:
        """The folder of the report's pages, tables and figures."""
        return self.path / "report"

    def log(self, run: Run) -> Path:
        """The file with everything that the training of a run printed."""
        return self.runs / run.name / "train.log"

    def failure(self, run: Run) -> Path:
        """The file that says why a run could not be trained or measured; it exists only if that failed."""
        return self.runs / run.name / "not_run.txt"

    def check_arm(self, plan: Plan, run: Run) -> None:
        """Refuse a run that was trained with other options than its arm has now.

        Args:
            plan: The study.
            run: One of its runs.

        Raises:
            UserError: If the options differ.
        """
        path = self.runs / run.name / "arm.json"
        if not path.exists():
            return
        try:
            digest = json.loads(path.read_text())["digest"]
        except (ValueError, KeyError, TypeError):
            digest = None
        if digest != plan.arms[run.arm].digest():
            raise UserError(
                f"Expected {path.parent} to be a run of the arm '{run.arm}' as the study's YAML has it, but {path} "
                f"says that it was trained with other options; move it away, or give the study another name."
            )

    def result(self, run: Run) -> Path | None:
        """Find the `study.json` of a run, which exists if the run is done; its checkpoints may be gone."""
        results = [version.path / "study.json" for version in RunFolder.versions(self.runs, run.name)]
        return next((result for result in reversed(results) if result.exists()), None)

    def trained(self, run: Run) -> RunFolder | None:
        """Find the latest folder of a run that has a checkpoint, if there is one."""
        versions = RunFolder.versions(self.runs, run.name)
        return next((found for found in reversed(versions) if (found.checkpoints / "last.ckpt").exists()), None)


@dataclass(frozen=True)
class Conditions:
    """What all runs of a study share on this machine, and what the study's YAML therefore does not say.

    Args:
        root: The folder with the patches.
        weights: A file with pretrained weights, for the arms that start from such; None takes those that their configs
            name.
    """

    root: Path
    weights: Path | None = None


def execute(
    plan: Plan, runs: Sequence[Run], folder: StudyFolder, conditions: Conditions, measure_run: MeasureRun
) -> dict[Run, str]:
    """Train and measure those runs that are not done.

    A run that was interrupted goes on from its last checkpoint. A run that another process is training is left to that
    process. If a run fails, the reason is kept, and the next run begins.

    Args:
        plan: The study.
        runs: The runs that this process is to do.
        folder: The folder of the study.
        conditions: What all runs share.
        measure_run: A function that measures a trained run and writes its result.

    Returns:
        The runs that failed, each with the reason in a sentence.

    Raises:
        StoppedError: After SIGINT, SIGTERM or SIGHUP.
        UserError: If a run's folder holds a run of another arm than the plan's.
    """
    for run in runs:
        folder.check_arm(plan, run)
    open_runs = [run for run in runs if folder.result(run) is None]
    steps = {run: plan.arms[run.arm].max_steps(run.arm) for run in open_runs}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    failures: dict[Run, str] = {}
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=600) as progress, _signals() as received:
        bar = progress.add_task("Nothing to train", total=sum(steps.values()))
        done = 0
        for number, run in enumerate(open_runs, start=1):
            progress.update(bar, description=f"{run.name} ({number} of {len(open_runs)})")

            def advance(step: int, done: int = done) -> None:
                progress.update(bar, completed=done + step)

            reason = _train_and_measure(plan, run, folder, conditions, measure_run, advance, received)
            if reason is not None:
                failures[run] = reason
                progress.console.print(f"{run.name} failed: {reason}")
            if received:
                raise StoppedError(received[0], STOPPED)
            done += steps[run]
            advance(steps[run])
    return failures


def _train_and_measure(
    plan: Plan,
    run: Run,
    folder: StudyFolder,
    conditions: Conditions,
    measure_run: MeasureRun,
    advance: Callable[[int], None],
    received: list[int],
) -> str | None:
    """Train one run to its end and measure it; return why that failed, or None."""
    place = folder.runs / run.name
    place.mkdir(parents=True, exist_ok=True)
    with _lock(place / "lock") as lock:
        if lock is None:
            return "another process is training it"
        if folder.result(run) is not None:  # another process has done it since this one looked
            return None
        with atomic_path(place / "arm.json") as temporary:
            arm = plan.arms[run.arm]
            temporary.write_text(json.dumps({"digest": arm.digest(), "options": arm.options()}, indent=2) + "\n")
        exit_code = _train(plan, run, folder, conditions, advance, received, lock)
        if received:
            raise StoppedError(received[0], STOPPED)
        trained = folder.trained(run)
        try:
            if exit_code != 0 or trained is None:
                raise UserError(_reason(exit_code, folder.log(run)))
            measure_run(run, trained)
        except UserError as error:
            with atomic_path(folder.failure(run)) as temporary:
                temporary.write_text(f"{error}\n")
            return str(error)
        folder.failure(run).unlink(missing_ok=True)
    return None


def _train(
    plan: Plan,
    run: Run,
    folder: StudyFolder,
    conditions: Conditions,
    advance: Callable[[int], None],
    received: list[int],
    lock: int,
) -> int:
    trained, command = folder.trained(run), plan.arms[run.arm].command
    if trained and command == "probe":  # its checkpoint is its end
        return 0
    options = (
        ["--resume", str(trained.path), "--data.root", str(conditions.root)]
        if trained
        else train_options(plan, run, folder, conditions)
    )
    with folder.log(run).open("a") as log:
        # In a session of its own: else Ctrl-C in a terminal would reach it beside the signal that is forwarded below,
        # and a second signal ends training without a checkpoint. It inherits the lock, so that the run is not trained
        # twice if only this process is killed.
        process = subprocess.Popen(
            [*PCAM, command, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
        )
        forwarded = False
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                advance(_last_step(folder, run))
            if received and not forwarded:
                # A closed terminal is no reason to lose the steps since the last checkpoint.
                process.send_signal(signal.SIGINT if received[0] == signal.SIGINT else signal.SIGTERM)
                forwarded = True


def train_options(plan: Plan, run: Run, folder: StudyFolder, conditions: Conditions) -> list[str]:
    """Write the command line that trains a run from the beginning.

    Args:
        plan: The study.
        run: The run.
        folder: The folder of the study.
        conditions: What all runs share.

    Returns:
        The words that follow `pcam train`, or `pcam probe`.
    """
    arm = plan.arms[run.arm]
    options = {
        **({"seeds": 1} if arm.config is None else {"config": find_config(arm.config)}),
        "experiment": run.name,
        "seed_everything": run.seed,
        "runs_dir": folder.runs,
        "data.root": conditions.root,
        **({} if arm.config is None else {"trainer.enable_progress_bar": "false"}),
        **{key: "null" if value is None else value for key, value in arm.overrides.items()},
    }
    if conditions.weights is not None and arm.uses_weights():
        options["model.network.weights"] = conditions.weights
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [*words, *(["--trainer.callbacks+=pcam.training.BatchNormReadings"] if arm.batch_norm_readings else [])]


def _last_step(folder: StudyFolder, run: Run) -> int:
    versions = RunFolder.versions(folder.runs, run.name)
    try:
        return int(pd.read_csv(versions[-1].metrics, usecols=["step"])["step"].max()) if versions else 0
    except (OSError, ValueError):  # nothing is logged yet
        return 0


def _reason(exit_code: int, log: Path) -> str:
    """Say in a sentence why training failed: the signal that killed it, or the last line that it printed."""
    if exit_code < 0:
        killed = f"killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
        return f"{killed}, perhaps for want of memory" if exit_code == -signal.SIGKILL else killed
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {exit_code}"


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Hold the lock of a file and lend its descriptor, with which a child process holds it too; None if taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


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
