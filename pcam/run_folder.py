"""The run folder: where it is, what lies where in it."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

from pcam.atomic import NAME_BYTES, atomic_path, make_folder
from pcam.errors import UserError
from pcam.options import CheckpointName, SplitName
from pcam.published import RESULTS_FOLDER, WEIGHTS_FILE, find_published, shipped_runs

_NOT_RECIPE: Final[Mapping[str, Set[str]]] = {
    "": {"seed_everything", "experiment", "runs_dir", "checkpoint_every_seconds"},
    "trainer": {"enable_progress_bar"},
    "data": {"cache_dir", "num_workers"},
}
"""Keys of a config, by section, that say which run it is or what it shows, and not how it is trained."""

_PACKAGES: Final = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, `<runs_dir>/<experiment>/version_N`.

    Args:
        path: The folder.
        results: The folder that results are written to; null is the run's own.

    Examples:
        >>> from pathlib import Path
        >>> import pcam
        >>> run = pcam.RunFolder(Path("lightning_logs/demo/version_3"))
        >>> run.number, run.metrics.name, run.evaluation("valid").as_posix()
        (3, 'metrics.csv', 'lightning_logs/demo/version_3/evaluation/valid')
    """

    path: Path
    results: Path | None = None

    @classmethod
    def claim(cls, runs_dir: Path | str, experiment: str) -> "RunFolder":
        """Make the next free folder of an experiment; two runs that start at once get one each.

        Args:
            runs_dir: Folder of all runs.
            experiment: Name of the experiment.

        Returns:
            The new, empty run folder.
        """
        parent = Path(runs_dir) / experiment
        make_folder(parent, f"to make a run folder in {parent}")
        while True:
            taken = cls.versions(Path(runs_dir), experiment)
            run = cls(parent / f"version_{taken[-1].number + 1 if taken else 0}")
            try:
                run.path.mkdir()
            except FileExistsError:
                continue
            return run

    @classmethod
    def versions(cls, runs_dir: Path, experiment: str) -> list["RunFolder"]:
        """List the run folders of an experiment, the latest last.

        Args:
            runs_dir: Folder of all runs.
            experiment: Name of the experiment.

        Returns:
            Those that are there, whatever is in them.
        """
        folders = (runs_dir / experiment).glob("version_*")
        runs = [cls(path) for path in folders if path.name.removeprefix("version_").isdecimal()]
        return sorted(runs, key=lambda run: run.number)

    @property
    def number(self) -> int:
        """The N of `version_N`."""
        return int(self.path.name.removeprefix("version_"))

    @classmethod
    def find(cls, path: Path) -> "RunFolder":
        """Take a run folder that is there, or a published run.

        Args:
            path: The folder; or the name of a run that comes with the package, or the address of one on the Hugging
                Face hub, as `find_published` takes them.

        Returns:
            The run.

        Raises:
            UserError: If it is not a run folder.
        """
        run = cls(path)
        if run.config.is_file():
            return run
        published = None if path.exists() else find_published(path)
        if published is not None:
            return cls(published[0], RESULTS_FOLDER / published[1])
        found = "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise UserError(
            f"Expected a run folder with a config.yaml (such as lightning_logs/demo/version_0), or the name of a run "
            f"that comes with pcam ({', '.join(shipped_runs())}), but found {found} at {path}."
        )

    @property
    def config(self) -> Path:
        """The resolved config, itself a valid `--config`."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """What was logged, one row a step."""
        return self.path / "metrics.csv"

    def checkpoint(self, name: CheckpointName) -> Path:
        """Find a checkpoint.

        Args:
            name: "best" by the experiment's `monitor`; "last"; or "previous", the one before it. A published run has
                one file of weights, which is its best.

        Returns:
            The file.

        Raises:
            UserError: If it is not there.
        """
        path = self.checkpoints / f"{name}.ckpt"
        published = self.path / WEIGHTS_FILE
        if published.is_file() and not self.checkpoints.is_dir():
            if name != "best":
                raise UserError(
                    f"Expected the checkpoint best of {self.path}, but found a request for {name}; a published run has "
                    f"no other weights, and cannot be trained further."
                )
            return published
        if not path.is_file():
            last = self.checkpoints / "last.ckpt"
            if name == "previous":
                why, advice = "the run has written only one", "take the last one"
            elif last.is_file():
                why = "the run has had no validation yet, or the file was removed"
                advice = f"{self.how_to_resume}, or take the last checkpoint with --checkpoint last"
            else:
                why = "the run ended before its first checkpoint, or the files were removed"
                advice = f"train it again with pcam train --config {self.config}"
            raise UserError(f"Expected a checkpoint {path}, but there is none: {why}; {advice}.")
        return path

    @property
    def how_to_resume(self) -> str:
        """The advice for a run that was interrupted."""
        return f"go on with pcam train --resume {self.path}"

    @property
    def output(self) -> Path:
        """The folder that results are written to."""
        return self.results or self.path

    def evaluation(self, split: SplitName, suffix: str = "") -> Path:
        """The folder for what evaluating on a split gives, such as `evaluation/valid_tta` for the suffix `_tta`."""
        return self.output / "evaluation" / f"{split}{suffix}"

    def recorded_metrics(self, split: SplitName, suffix: str = "") -> dict[str, Any] | None:
        """Read what evaluating on a split has measured and chosen; None if the run was not evaluated on it.

        Args:
            split: The split.
            suffix: That of the settings it was evaluated with.

        Raises:
            UserError: If the file is damaged.
        """
        written = self.evaluation(split, suffix) / "metrics.json"
        came_with_run = self.path / "evaluation" / f"{split}{suffix}" / "metrics.json"
        found = next((path for path in (written, came_with_run) if path.exists()), None)
        return None if found is None else read_json(found, "evaluate")

    def read_environment(self) -> dict[str, Any]:
        """Read `environment.json`; empty if there is none.

        Raises:
            UserError: If it is damaged.
        """
        path = self.path / "environment.json"
        environment = read_json(path, "training") if path.exists() else {}
        fingerprints = environment.get("data_fingerprints", {})
        sound = isinstance(fingerprints, dict) and all(isinstance(value, str) for value in fingerprints.values())
        if not sound or not isinstance(environment.get("earlier_data_fingerprints", []), list):
            raise UserError(
                f"Expected the fingerprints of the data in {path}, as training wrote it, but found something else; "
                f"bring it back, or move it away, and the patches that the run was trained on are not known."
            )
        return environment

    def write_environment(self, device: str, fingerprints: Mapping[SplitName, str]) -> None:
        """Write `environment.json`: what the run ran on, and on which patches.

        Args:
            device: Name of the device that trains.
            fingerprints: Fingerprint of each split in use. Those that the file has already, if they are others, are
                kept under `earlier_data_fingerprints`.
        """
        import torch

        before = self.read_environment()
        earlier = before.get("earlier_data_fingerprints", [])
        if before.get("data_fingerprints", fingerprints) != fingerprints:
            earlier = [*earlier, before["data_fingerprints"]]
        environment = {
            "python": platform.python_version(),
            "packages": {name: version(name) for name in (*_PACKAGES, *filter(find_spec, ["openvino"]))},
            "platform": platform.platform(),
            "device": device,
            "threads": torch.get_num_threads(),
            "git_commit": _git_commit(),
            "data_fingerprints": dict(fingerprints),
            **({"earlier_data_fingerprints": earlier} if earlier else {}),
        }
        with atomic_path(self.path / "environment.json") as temporary:
            temporary.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, writer: str) -> dict[str, Any]:
    """Read a JSON file of a run folder.

    Args:
        path: The file.
        writer: What wrote it, as a message says it: "training".

    Returns:
        Its keys and values.

    Raises:
        UserError: If it is damaged.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        contents = None
    if not isinstance(contents, dict):
        raise UserError(
            f"Expected a JSON file as {writer} wrote it at {path}, but found something else; bring it back, or move it "
            f"away and run {writer} again."
        )
    return contents


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of one folder: no path, no control characters, and no longer than a name may be."""
    printable = not any(character in "/\\" or ord(character) < 32 or ord(character) == 127 for character in name)
    return printable and bool(name.strip(". ")) and len(os.fsencode(name)) <= NAME_BYTES


def are_seeds(runs: Sequence[RunFolder]) -> bool:
    """Whether runs are trained alike but for the seed, by their configs, and each has its own.

    Args:
        runs: At least one.

    Returns:
        False for a single run.
    """
    configs = [yaml.safe_load(run.config.read_text(encoding="utf-8")) for run in runs]
    seeds = {config.get("seed_everything") for config in configs}
    for config in configs:
        for section, keys in _NOT_RECIPE.items():
            options = config.get(section) if section else config
            for key in keys if isinstance(options, dict) else ():
                options.pop(key, None)
    averaged = {"averaged" in run.read_environment() for run in runs}  # a mean of runs is no further seed of them
    return len(seeds) == len(runs) > 1 and len(averaged) == 1 and all(config == configs[0] for config in configs)


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """What tells runs apart: `<experiment>/version_N`, and what comes before if they lie in different folders.

    Args:
        runs: At least one.

    Returns:
        The name of each.
    """
    paths = [run.path.resolve() for run in runs]
    common = os.path.commonpath([path.parent.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def _git_commit() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None outside a checkout."""
    place = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(place.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", place.name)  # fails where it is installed within a repository of its user's
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
