"""Learn a linear unit on the embeddings of a frozen network, and record it as a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt

from pcam.commands.networks import build_network
from pcam.door import Arguments, front_door
from pcam.errors import UserError
from pcam.options import Dtype, Precision, ProbeMethod, SplitName
from pcam.run_folder import RunFolder, is_folder_name
from pcam.run_options import Seed

if TYPE_CHECKING:
    from pcam.probe.linear import Fit

EVA_SEEDS = 5
"""Seeds of eva's protocol."""


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe learns, and what is recorded.

    Args:
        method: "lbfgs", logistic regression on standardised embeddings, with the strength of its penalty chosen on
            valid; or "eva", the protocol of eva's leaderboard: one layer, AdamW with a rate of 0.0003, batches of 256,
            at most 12,500 steps, the epoch with the highest balanced accuracy on valid.
        seed_everything: Seed of the first run, 0 to 4,294,967,295; L-BFGS draws nothing.
        seeds: Number of runs, each with the next seed, at least 1; null is 1 with lbfgs and 5 with eva.
        experiment: Name of the experiment, which names a folder; null is probe_NAME, after the network.
        runs_dir: Folder of all runs; this one becomes <runs_dir>/<experiment>/version_N.
        dtype: What embeddings are stored in; float16 takes half the space, and leaves three digits.
        precision: "32-true", or "bf16-mixed" to embed in bfloat16, which is meant for GPUs.
        neighbours: Also classify by this many nearest neighbours among the training patches; 0 does not.
        few_shot: Also draw a curve of what probes learn from 5 to 5,000 patches of each class, each number drawn this
            many times; 0 does not.
        split: The split that nearest neighbours and curves are measured on. The test split is read only if you ask for
            it.
    """

    method: ProbeMethod = "lbfgs"
    seed_everything: Seed = 1
    seeds: PositiveInt | None = None
    experiment: str | None = None
    runs_dir: Path = Path("lightning_logs")
    dtype: Dtype = "float32"
    precision: Precision = "32-true"
    neighbours: NonNegativeInt = 0
    few_shot: NonNegativeInt = 0
    split: SplitName = "valid"


def probe(args: Arguments) -> list[RunFolder]:
    """Learn a linear unit on the embeddings of a frozen network, and record the network with it as a run.

    The embeddings are computed once and kept, as embed does. The run folder is like that of a training: evaluate,
    predict, explain, export and study take it.

    Args:
        args: The words of a command line, as in `["--data.root", "data/pcam", "--model.network",
            "pcam.models.TimmNetwork", "--model.network.name", "resnet18", "--model.network.weights", "resnet18.pth"]`.

    Returns:
        The run folders, one for each seed.

    Raises:
        UserError: If the data or the network cannot be used.
    """
    built = build_network(probe, ProbeOptions, args)
    from pcam.device import find_device
    from pcam.probe.few_shot import few_shot_table, neighbour_logits, write_few_shot, write_neighbours
    from pcam.probe.linear import fit_eva, fit_lbfgs
    from pcam.probe.run import check_both_classes, record_probe
    from pcam.probe.store import Embedding

    options, network, data = built.options, built.network, built.data
    name = built.config["model"]["network"].get("init_args", {}).get("name") or type(network).__name__
    experiment = options.experiment or f"probe_{name}"
    if not is_folder_name(experiment):
        raise UserError(
            f"Expected experiment to be the name of a folder below runs_dir, and no path, but found {experiment!r}; "
            f"choose another name."
        )
    if options.split == "train" and (options.neighbours or options.few_shot):
        raise UserError(
            "Expected --split valid or test for --neighbours and --few_shot, but found train, which they learn from: "
            "each patch would vote for itself."
        )
    device = find_device()
    embedding = Embedding(network, data, device, dtype=options.dtype, precision=options.precision)
    train, valid = embedding.open("train").chosen(data.rows("train")), embedding.open("valid")
    check_both_classes(train, valid)
    runs = []
    first: int = options.seed_everything
    for seed in range(first, first + (options.seeds or (EVA_SEEDS if options.method == "eva" else 1))):

        def learn(seed: int = seed) -> "Fit":
            return fit_eva(train, valid, seed) if options.method == "eva" else fit_lbfgs(train, valid)

        run = RunFolder.claim(options.runs_dir, experiment)
        config = {**built.config, "experiment": experiment, "seed_everything": seed, "seeds": 1}
        fit = record_probe(run, yaml.safe_dump(config, sort_keys=False), network, train, learn)
        run.write_environment(
            device.type, {"train": data.packed("train").fingerprint, "valid": data.packed("valid").fingerprint}
        )
        runs.append(run)
        chosen = next(row for row in fit.rows if row["step"] == fit.step)
        facts = "".join(f", {fact} {value:g}" for fact, value in fit.facts.items())
        print(
            f"{run.path}: AUROC on valid {chosen['val/auroc']:.4f}, balanced accuracy "
            f"{chosen['val/balanced_accuracy']:.4f}{facts}"
        )
    if options.neighbours or options.few_shot:
        folder = runs[0].evaluation(options.split)
        folder = folder.with_name(f"{folder.name}_embeddings")
        measured = valid if options.split == "valid" else embedding.open(options.split)
        if options.neighbours:
            logits = neighbour_logits(train, measured.matrix, options.neighbours)
            write_neighbours(logits, measured.labels, options.neighbours, folder)
        if options.few_shot:
            strength = fit_lbfgs(train, valid).facts["strength"] if options.method == "eva" else fit.facts["strength"]
            table = few_shot_table(train, measured, strength, options.few_shot, first)
            write_few_shot(table, name, options.split, folder)
        print(f"Neighbours and curves: {folder}")
    print(f"Evaluate: pcam evaluate {' '.join(str(run.path) for run in runs)}")
    return runs


@front_door
def main(args: Arguments = None) -> None:
    """Learn a linear unit on the embeddings of a frozen network.

    Args:
        args: The command line; None takes the process's own.
    """
    probe(args)
