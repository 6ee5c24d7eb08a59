"""Train what is missing of a study, one run after the other, each as a process of its own."""

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
from pcam.errors import StoppedError, UserError
from pcam.run_folder import RunFolder
from pcam.study.plan import Plan, Run

TRAIN_SCRIPT: Final = Path(__file__).parents[2] / "scripts" / "train.py"

POLL_SECONDS: Final = 1.0

STOPPED: Final = "Stopped; what is done is kept, and the same command goes on with the rest, within a run too."

Measure = Callable[[Run, RunFolder], None]
"""Measures a trained run, and writes its result."""


@dataclass(frozen=True)
class StudyFolder:
    """Where a study's runs lie.

    Args:
        path: The folder of the study.
    """

    path: Path

    @property
    def runs(self) -> Path:
        """The folder of all runs: one each, `<arm>_seed_<seed>`."""
        return self.path / "runs"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.path / "report"

    def log(self, run: Run) -> Path:
        """What training a run said."""
        return self.runs / run.name / "train.log"

    def failure(self, run: Run) -> Path:
        """Why a run could not be trained; there only if it could not."""
        return self.runs / run.name / "not_run.txt"

    def check_arm(self, plan: Plan, run: Run) -> None:
        """Refuse a run of another arm than the plan's.

        Args:
            plan: The study.
            run: The run.

        Raises:
            UserError: If it was trained with other options.
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
        """The result of a run, if it is done; whether its checkpoints are still there or not."""
        results = [version.path / "study.json" for version in RunFolder.versions(self.runs, run.name)]
        return next((result for result in reversed(results) if result.exists()), None)

    def trained(self, run: Run) -> RunFolder | None:
        """The latest folder of a run that has a checkpoint, if there is one."""
        versions = RunFolder.versions(self.runs, run.name)
        return next((found for found in reversed(versions) if (found.checkpoints / "last.ckpt").exists()), None)


@dataclass(frozen=True)
class Conditions:
    """What all runs of a study share, and the study's YAML does not say.

    Args:
        data_root: Folder with the patches.
        weights: A file with pretrained weights, for the arms that start from such; None takes those of the config.
    """

    data_root: Path
    weights: Path | None = None


def execute(
    plan: Plan, runs: Sequence[Run], folder: StudyFolder, conditions: Conditions, measure: Measure
) -> dict[Run, str]:
    """Train and measure the runs that are not done.

    A run that is half done goes on from its last checkpoint. One that another process is training is left to it. One
    that fails is noted, and the others go on.

    Args:
        plan: The study.
        runs: Those of its runs that are this process's.
        folder: Where they lie.
        conditions: What they share.
        measure: Measures a trained run.

    Returns:
        Why runs failed.

    Raises:
        StoppedError: After SIGINT or SIGTERM.
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

            reason = _train_and_measure(plan, run, folder, conditions, measure, advance, received)
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
    measure: Measure,
    advance: Callable[[int], None],
    received: list[int],
) -> str | None:
    """Bring one run to its end; return why it failed, if it did."""
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
            measure(run, trained)
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
    trained = folder.trained(run)
    options = (
        ["--resume", str(trained.path), "--data.root", str(conditions.data_root)]
        if trained
        else train_options(plan, run, folder, conditions)
    )
    with folder.log(run).open("a") as log:
        # A session of its own: Ctrl-C in a terminal would reach it too, and a second signal ends it without checkpoint.
        # It holds the lock as well, so that it is not trained twice if only this process is killed.
        process = subprocess.Popen(
            [sys.executable, str(TRAIN_SCRIPT), *options],
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
                process.send_signal(received[0])
                forwarded = True


def train_options(plan: Plan, run: Run, folder: StudyFolder, conditions: Conditions) -> list[str]:
    """The command line of scripts/train.py that trains a run.

    Args:
        plan: The study.
        run: The run.
        folder: The study's folder.
        conditions: What all runs share.

    Returns:
        The words after the script's name.
    """
    arm = plan.arms[run.arm]
    options = {
        "config": arm.config,
        "experiment": run.name,
        "seed_everything": run.seed,
        "runs_dir": folder.runs,
        "data.root": conditions.data_root,
        "trainer.enable_progress_bar": "false",
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
    """Why training ended without a checkpoint of its last step."""
    if exit_code < 0:
        killed = f"killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
        return f"{killed}, perhaps for want of memory" if exit_code == -signal.SIGKILL else killed
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {exit_code}"


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Hold a file's lock, which a child process that gets the descriptor holds as well; None if another has it."""
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
    """Note SIGINT and SIGTERM instead of being ended by them."""
    received: list[int] = []

    def note(signal_number: int, frame: FrameType | None) -> None:
        received.append(signal_number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
