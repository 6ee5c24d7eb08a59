"""Do the runs of a study on the machines of a Ray cluster.

Each run is a task of Ray, which trains and measures in processes of its own: a trainer's signal handlers do not work
inside Ray's workers (https://github.com/ray-project/ray/issues/10995). Where machines share the disk of the study's
folder, a run whose machine dies goes on elsewhere from its last checkpoint; where they do not, it begins anew there.
Its result is carried back in either case.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from pcam.extras import import_extra
from pcam.study.launch import Outcome
from pcam.study.runner import POLL_SECONDS, STOPPED, TAKEN, Job, StudyFolder


class Board:
    """What the study and its jobs tell each other: how far jobs have got, and whether they are to stop."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._signal = 0

    def note(self, name: str, step: int) -> int:
        """Keep the step that a run has reached, and return the signal that asks it to stop, or 0."""
        self._steps[name] = step
        return self._signal

    def steps(self) -> dict[str, int]:
        """The step that each run has reached."""
        return self._steps

    def stop(self, signal_number: int) -> None:
        """Ask all jobs to stop."""
        self._signal = signal_number


class RayLauncher:
    """Does jobs on a Ray cluster, as many at a time as its CPUs, or its GPUs if it has any, have room for.

    The cluster is the one that `RAY_ADDRESS` names, else one that this machine belongs to, else one of this machine
    alone that ends with the process.

    Raises:
        UserError: If Ray is not installed.
    """

    def __init__(self) -> None:
        self._ray = import_extra("ray", "cluster")
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, logging_level="warning")
        strategies = import_extra("ray.util.scheduling_strategies", "cluster")
        here = strategies.NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        # Here, where the study is, so that it does not die with another machine.
        self._board = self._ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
        self._gpus = 1 if self._ray.cluster_resources().get("GPU") else 0

    def start(self, job: Job) -> "Future[Outcome]":
        """Start a job as soon as there is room for it; if its machine dies, Ray starts it again on another."""
        do = self._ray.remote(num_cpus=job.conditions.threads or 1, num_gpus=self._gpus)(_do)
        outcome: Future[Outcome] = Future()
        asked = do.remote(_anywhere(job), self._board).future()
        asked.add_done_callback(lambda ended: outcome.set_result(_outcome(ended)))
        return outcome

    def steps(self) -> Mapping[str, int]:
        """The step that each run has reached."""
        steps: dict[str, int] = self._ray.get(self._board.steps.remote())
        return steps

    def stop(self, signal_number: int) -> None:
        """Ask all jobs to stop with a checkpoint."""
        self._ray.get(self._board.stop.remote(signal_number))


def _do(job: Job, board: Any) -> Outcome:
    """Do a job on the machine that Ray has chosen."""
    ray = import_extra("ray", "cluster")

    def watch(step: int) -> int:
        found: int = ray.get(board.note.remote(job.run.name, step))
        return found

    # Where Ray's worker alone has died, its training has not, and holds the run's lock until it ends.
    while (reason := job.do(watch)) == TAKEN:
        time.sleep(POLL_SECONDS)
        if watch(0):
            return Outcome(STOPPED, {})
    return Outcome(reason, {} if reason else job.folder.results.files(job.run))


def _outcome(ended: "Future[Outcome]") -> Outcome:
    error = ended.exception()
    if error is None:
        return Outcome(*ended.result())
    return Outcome(f"Ray could not do it ({' '.join(str(error).split())[:500]})", {})


def _anywhere(job: Job) -> Job:
    """Write the paths of a job so that they do not depend on the folder that the study was started from."""
    folder, conditions = job.folder, job.conditions
    arms = {
        name: replace(arm, config=arm.config.resolve())
        if arm.config is not None and arm.config.is_file()
        else arm  # else the name of a shipped one
        for name, arm in job.plan.arms.items()
    }
    return replace(
        job,
        plan=replace(job.plan, arms=arms),
        folder=StudyFolder(folder.path.resolve(), folder.results.path.resolve()),
        conditions=replace(
            conditions,
            root=conditions.root.resolve(),
            weights=None if conditions.weights is None else conditions.weights.resolve(),
        ),
    )
