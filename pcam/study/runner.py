"""Do one run of a study: train it to its end and measure it, each in a process of its own."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pandas as pd

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.run_folder import RunFolder
from pcam.shipped import find_config
from pcam.study.plan import Plan, Run
from pcam.study.results import ResultsFolder

PCAM: Final = (sys.executable, "-m", "pcam")
"""What begins the command that trains or probes a run; the command's name and the run's options follow."""

MEASURE_COMMAND: Final = (sys.executable, "-m", "pcam.study.measure")
"""The command that measures a trained run; what it takes follows."""

POLL_SECONDS: Final = 1.0
"""Seconds between two looks at how far a run has got."""

STOPPED: Final = "it was stopped"
TAKEN: Final = "another process is training it"

Watch = Callable[[int], int]
"""Is told, about once a second, the step that a run has reached; gives the number of a signal that asks it to stop, or
0."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study, and what lies where in it.

    Args:
        path: The folder.
        results_path: The folder of the results; None is `results` in the study's.
    """

    path: Path
    results_path: Path | None = None

    @cached_property
    def results(self) -> ResultsFolder:
        """The results of the runs that are done."""
        return ResultsFolder(self.results_path or self.path / "results")

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
        """Refuse a run that was trained, or began to be, with other options than its arm has now.

        Args:
            plan: The study.
            run: One of its runs.

        Raises:
            UserError: If the options differ.
        """
        if self.results.is_done(run):
            self.results.read(plan, run)
        path = self.runs / run.name / "arm.json"
        if not path.exists():
            return
        try:
            digest = json.loads(path.read_text(encoding="utf-8"))["digest"]
        except (ValueError, KeyError, TypeError):
            digest = None
        if digest != plan.arms[run.arm].digest():
            raise UserError(
                f"Expected {path.parent} to be a run of the arm '{run.arm}' as the study's YAML has it, but {path} "
                f"says that it was trained with other options; move it away, or give the study another name."
            )

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
        threads: The CPU threads of each run; None leaves them to PyTorch.
    """

    root: Path
    weights: Path | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Job:
    """One run to do, with everything that this takes, so that it can be done by another process or machine.

    Args:
        plan: The study.
        run: The run.
        folder: The folder of the study.
        conditions: What all runs share.
    """

    plan: Plan
    run: Run
    folder: StudyFolder
    conditions: Conditions

    def do(self, watch: Watch) -> str | None:
        """Train the run to its end and measure it.

        If it was interrupted it goes on from its last checkpoint. If another process is training it, it is left to that
        one.

        Args:
            watch: Is told how far the run has got, and may ask it to stop; it then stops with a checkpoint.

        Returns:
            Why it is not done, in a sentence; None if it is done.
        """
        place = self.folder.runs / self.run.name
        if watch(0):
            return STOPPED
        place.mkdir(parents=True, exist_ok=True)
        with _lock(place / "lock") as lock:
            if lock is None:
                return TAKEN
            if self.folder.results.is_done(self.run):  # another process has done it since this one looked
                return None
            try:
                self.folder.check_arm(self.plan, self.run)
                arm = self.plan.arms[self.run.arm]
                with atomic_path(place / "arm.json") as temporary:
                    content = {"digest": arm.digest(), "options": arm.options()}
                    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
                # The checkpoint of a probe is its end; one of a training may be before it.
                is_probed = arm.command == "probe" and self.folder.trained(self.run) is not None
                failed = None if is_probed else self._process(train_command(self), lock, watch)
                return failed or self._measure(lock, watch)
            except UserError as error:
                return str(error)

    def _measure(self, lock: int, watch: Watch) -> str | None:
        trained = self.folder.trained(self.run)
        if trained is None:
            return "its training has left no checkpoint"
        results = self.folder.results.path
        words = [trained.path, *self.run, self.plan.split, self.conditions.root, results]
        if any(arm.command == "probe" for arm in self.plan.arms.values()):
            words.append("costs")
        return self._process([*MEASURE_COMMAND, *map(str, words)], lock, watch)

    def _process(self, command: Sequence[str], lock: int, watch: Watch) -> str | None:
        """Run a command to its end; return why it failed or was stopped, or None."""
        signal_number = 0
        with self.folder.log(self.run).open("a") as log:
            # In a session of its own: else Ctrl-C in a terminal would reach it beside the signal that is forwarded
            # below, and a second signal ends training without a checkpoint. It inherits the lock, so that the run is
            # not trained twice if only this process is killed.
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
                env=_environment(self.conditions.threads),
            )
            while True:
                try:
                    exit_code = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    found = watch(_last_step(self.folder, self.run))
                if found and not signal_number:
                    # A closed terminal is no reason to lose the steps since the last checkpoint.
                    process.send_signal(signal.SIGINT if found == signal.SIGINT else signal.SIGTERM)
                    signal_number = found
        if signal_number:
            return STOPPED
        return _reason(exit_code, self.folder.log(self.run)) if exit_code else None


def train_command(job: Job) -> list[str]:
    """Write the command that trains a run, from the beginning or from its last checkpoint.

    Args:
        job: The run.

    Returns:
        The words of the command.
    """
    plan, run, folder, conditions = job.plan, job.run, job.folder, job.conditions
    trained = folder.trained(run)
    if trained:
        return [*PCAM, "train", "--resume", str(trained.path), "--data.root", str(conditions.root)]
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
    callbacks = ["--trainer.callbacks+=pcam.training.BatchNormReadings"] if arm.batch_norm_readings else []
    return [*PCAM, arm.command, *words, *callbacks]


def _environment(threads: int | None) -> Mapping[str, str]:
    return os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _last_step(folder: StudyFolder, run: Run) -> int:
    versions = RunFolder.versions(folder.runs, run.name)
    try:
        return int(pd.read_csv(versions[-1].metrics, usecols=["step"])["step"].max()) if versions else 0
    except (OSError, ValueError):  # nothing is logged yet
        return 0


def _reason(exit_code: int, log: Path) -> str:
    """Say in a sentence why a process failed: the signal that killed it, or the last line that it printed."""
    if exit_code < 0:
        killed = f"killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
        return f"{killed}, perhaps for want of memory" if exit_code == -signal.SIGKILL else killed
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return re.sub(r"^[\w.]+( train)?: (?=Expected)", "", lines[-1]) if lines else f"exit code {exit_code}"


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
