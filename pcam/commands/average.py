"""Average the weights of several runs into one network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pcam.atomic import atomic_folder
from pcam.door import Arguments, front_door, run_function
from pcam.errors import UserError
from pcam.messages import inform
from pcam.options import CheckpointName
from pcam.published import WEIGHTS_FILE
from pcam.run_folder import RunFolder, run_names

if TYPE_CHECKING:
    from pcam.trained import TrainedRun

SPLIT: Final = "valid"
"""The split that the mean is compared with its runs on."""

TRAINING_OPTIONS: Final = frozenset({"weights", "dropout", "freeze"})
"""Options of a network that a trained one does not depend on."""

SPREAD_PATCHES: Final = 2048
"""Training patches that the spread of logits is measured on."""

MEAN: Final = "the mean of their weights"
"""What the table calls the result."""


def average(runs: list[Path], output: Path, checkpoint: CheckpointName = "best", root: Path | None = None) -> Path:
    """Average the weights of several runs into one network, which costs no more to use than one of them.

    Runs of one recipe that start from the same pretrained weights and differ in their seed make different errors; the
    mean of their weights (a model soup) is mostly better than each, and about as good as the mean of their scores
    (`pcam evaluate --ensemble`). Runs that start from random weights cannot be averaged: the result says nothing. So
    the command measures the AUROC on the valid split of each run and of the mean, and warns if nothing was gained.

    Args:
        runs: The run folders, at least two. They are left as they are.
        output: The folder that is written, new or empty. It has the form of a published run: every command takes it as
            a run, and it cannot be trained further. Batch norm's statistics in it are estimated anew, on 10,000
            un-augmented training patches, and its logits are scaled to the standard deviation that the runs' mean
            logits have on 2,048 of them.
        checkpoint: The checkpoint that is averaged: "best" by the experiment's `monitor`, "last", or "previous", the
            one before the last.
        root: The folder with the data; null is the folder that each run was trained on.

    Returns:
        The folder.

    Raises:
        UserError: If a run or its data cannot be used, or the runs have networks of other options or were trained on
            other patches.
    """
    folders = [RunFolder.find(Path(run)) for run in runs]
    if len({folder.path.resolve() for folder in folders}) < max(len(folders), 2):
        raise UserError(
            f"Expected at least two different runs to average, but found {', '.join(str(run) for run in runs)}; name "
            f"each once."
        )
    with atomic_folder(Path(output), "for the averaged run") as temporary:
        from pcam.models.averaging import average_weights, match_spread
        from pcam.models.batch_norm import has_learning_layers
        from pcam.trained import TrainedRun, check_same_patches

        trained = [TrainedRun.load(folder, checkpoint, root=root) for folder in folders]
        _check_alike(trained)
        averaged = average_weights([run.network for run in trained])
        check_same_patches(trained, ["train", SPLIT])
        first = trained[0]
        step = max(run.step for run in trained)
        mean = TrainedRun(first.folder, checkpoint, first.config, step, averaged, lambda: first.data, first.settings)
        if has_learning_layers(averaged, averaged):
            mean.reestimate_batch_norm()
        patches = first.data.training_patches(SPREAD_PATCHES, first.device)
        if match_spread(averaged, [run.network for run in trained], patches) is None:
            inform(
                f"The scores of the mean may be too near one half: its logits were not scaled, as "
                f"{type(averaged).__name__} does not end in an nn.Linear, or its logits are all alike."
            )
        names = run_names(folders)
        _compare(names, trained, mean)
        _write(temporary, names, trained, mean)
    print(f"Averaged run: {output}")
    return output


def _check_alike(trained: "Sequence[TrainedRun]") -> None:
    """Refuse runs whose networks have other options, or that were trained on other patches than the first.

    Raises:
        UserError: If one differs.
    """
    first = trained[0]
    expected = _options(first)
    for run in trained[1:]:
        found = _options(run)
        for key in sorted({*expected, *found}):
            if expected.get(key) != found.get(key):
                raise UserError(
                    f"Expected runs whose networks are built alike, but {key} is {expected.get(key)} in "
                    f"{first.folder.path} and {found.get(key)} in {run.folder.path}; average runs of one config."
                )
        one, other = (each.folder.read_environment().get("data_fingerprints", {}).get("train") for each in (first, run))
        if None not in (one, other) and one != other:
            raise UserError(
                f"Expected runs that were trained on the same patches, but the train split of {first.folder.path} has "
                f"the fingerprint {one[:12]}, and that of {run.folder.path} {other[:12]}; average runs on one data set."
            )


def _options(run: "TrainedRun") -> dict[str, Any]:
    """The options that make a run's network, without those that only matter in training."""
    network = run.config["model"]["network"]
    options = {"class_path": network.get("class_path"), **(network.get("init_args") or {})}
    return {name: value for name, value in options.items() if name not in TRAINING_OPTIONS}


def _compare(names: Sequence[str], trained: "Sequence[TrainedRun]", mean: "TrainedRun") -> None:
    """Print AUROC and loss on valid of the runs and of their mean, and warn if the mean is no better than they are."""
    import numpy as np

    from pcam.evaluation.metrics import measure_logits

    rows = []
    for name, run in zip([*names, MEAN], [*trained, mean], strict=True):
        predictions = run.predict(SPLIT, progress=True)
        measured = measure_logits(predictions.labels, predictions.logits)
        rows.append((name, measured["auroc"], measured["loss"]))
    title = f"{SPLIT}, {len(mean.data.packed(SPLIT)):,} patches"
    width = max(len(name) for name in [title, *names, MEAN])
    print(f"{title:{width}}      AUROC    loss")
    for name, auroc, loss in rows:
        print(f"{name:{width}}  {'undefined' if np.isnan(auroc) else f'{auroc:.4f}':>9}  {loss:6.4f}")
    of_runs = float(np.mean([auroc for _, auroc, _ in rows[:-1]]))
    if rows[-1][1] <= of_runs:
        inform(
            f"The mean of the weights has no higher AUROC than the runs have on average ({of_runs:.4f}), so averaging "
            f"does not pay here. It does for runs of one recipe that start from the same pretrained weights."
        )


def _write(folder: Path, names: Sequence[str], trained: "Sequence[TrainedRun]", mean: "TrainedRun") -> None:
    """Write the mean as a published run, and in its environment.json what it is the mean of."""
    import yaml

    from pcam.models.published_weights import save_published

    config = dict(mean.config)
    config["experiment"] = f"{config.get('experiment', names[0])}_average"
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    save_published(mean.network.cpu(), folder / WEIGHTS_FILE, mean.step, half=False)
    parts = [
        {"run": name, "seed": run.config.get("seed_everything"), "checkpoint": run.checkpoint, "step": run.step}
        for name, run in zip(names, trained, strict=True)
    ]
    environment = mean.folder.read_environment() | {"averaged": parts}
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


@front_door
def main(args: Arguments = None) -> None:
    """Average the weights of runs.

    Args:
        args: The command line; None takes the process's own.
    """
    run_function(average, args, {"runs": "RUN", "output": "--output", "root": "--data.root"})
