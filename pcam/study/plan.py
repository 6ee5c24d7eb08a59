"""A study's plan: its arms, its seeds, and the questions that are fixed before anything runs.

Nothing here needs PyTorch, so that a command line can be read without it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import yaml

from pcam.errors import UserError
from pcam.options import SplitName
from pcam.shipped import find_config
from pcam.study.readings import Reading
from pcam.yaml_files import flatten

Override = str | int | float | bool | list[int] | None

Metric = Literal["loss", "accuracy", "balanced_accuracy", "auroc", "average_precision"]
"""What a question can be asked in. Loss is in nats, and lower is better; the others are 0..1, and higher is better."""

METRIC_NAMES: Final[Mapping[Metric, str]] = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
}
"""What tables and sentences call the metrics."""

LONGEST_NAME: Final = 100
"""Bytes of a name, which becomes part of the names of folders and files; file systems take 255."""


@dataclass(frozen=True)
class Arm:
    """One condition of a study: an experiment's config, and what differs from it.

    Args:
        label: What tables and figures call the arm.
        config: The experiment: the name of a shipped config, such as "random_dropout", or the path of a YAML file,
            relative to the folder that the study is started from; null for a probe, whose options are all overrides.
        overrides: Options of training that differ from the config, such as `trainer.max_steps: 13500`, or the options
            of a probe.
        batch_norm_readings: Whether to evaluate the network with three kinds of batch-norm statistics; it must have
            batch norm that is not frozen. If false, it is evaluated as it was trained. A page shows what those of
            momentum 0.001 say only if the study asks of them or repeats a publication; the tables always do.
        seeds: The random seeds of this arm, such as fewer of one that takes very long; null takes the study's.
        command: "train" trains the network; "probe" learns a linear unit on its embeddings, as `pcam probe` does.
    """

    label: str
    config: Path | None = None
    overrides: dict[str, Override] = field(default_factory=dict)
    batch_norm_readings: bool = False
    seeds: Sequence[int] | None = None
    command: Literal["train", "probe"] = "train"

    def options(self) -> dict[str, Override]:
        """Read everything that decides the arm: the options of its config with the overrides, by dotted name.

        Raises:
            UserError: If the config cannot be read.
        """
        if self.config is None:
            return self.overrides | {"command": self.command}
        path = find_config(self.config)
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"Expected the config of an experiment at {path}, but it cannot be read "
                f"({' '.join(str(error).split())}); correct the file."
            ) from error
        if not isinstance(config, dict):
            raise UserError(f"Expected the config of an experiment at {path}, but found no options in it.")
        flat = flatten(config) | self.overrides
        flat["batch_norm_readings"] = self.batch_norm_readings
        return {key: value for key, value in flat.items() if key not in ("experiment", "seed_everything")}

    def max_steps(self, name: str) -> int:
        """Find for how many optimizer steps the arm trains.

        Args:
            name: The name of the arm, for messages.

        Returns:
            The number of steps, at least 1.

        Raises:
            UserError: If the arm has no number of steps, or ends before anything is logged or validated.
        """
        if self.command == "probe":  # it takes next to none beside embedding
            return 1
        options = self.options()
        found = options.get("trainer.max_steps")
        if not isinstance(found, int) or found < 1:
            raise UserError(
                f"Expected trainer.max_steps above 0 in the arm '{name}' of a study, but found {found}; a study's "
                f"budgets are in steps."
            )
        for key in ("trainer.val_check_interval", "trainer.log_every_n_steps"):
            every = options.get(key)
            if isinstance(every, int) and every > found:
                raise UserError(
                    f"Expected the arm '{name}' of a study to be measured before it ends, but {key} is {every} and "
                    f"trainer.max_steps {found}; give it a lower {key} in the study's YAML."
                )
        return found

    def uses_weights(self) -> bool:
        """Say whether the arm starts from pretrained weights of its config's network."""
        options = self.options()
        if "model.network" in self.overrides:
            return False
        found = options.get("model.network.weights", options.get("model.network.init_args.weights"))
        return found is not None

    def digest(self) -> str:
        """Compute a SHA-256 of everything that decides the arm."""
        return hashlib.sha256(json.dumps(self.options(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Published:
    """What a publication reports of an arm, measured on its own patches.

    Args:
        auroc: The area under the ROC curve, 0..1.
        loss: The lowest validation loss, in nats.
        accuracy: The validation accuracy at the checkpoint with the lowest loss, 0..1.
        roc_figure: The number of the published figure with the arm's ROC curve.
        loss_figure: The number of the published figure with the arm's losses over training.
    """

    auroc: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    roc_figure: int | None = None
    loss_figure: int | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A published table of how loss and accuracy change from one arm to another.

    Args:
        number: The number of the table in the publication.
        title: What is changed, such as "dropout removed".
        arm: The name of the arm after the change.
        other: The name of the arm before the change.
        note: A sentence that a reader of the published table needs; empty for none.
    """

    number: int
    title: str
    arm: str
    other: str
    note: str = ""


@dataclass(frozen=True)
class PublishedResult:
    """What others report of a network of theirs, which is no arm of the study.

    Args:
        label: What tables call the network.
        metric: "auroc", "average_precision", "accuracy", "balanced_accuracy" or "loss" (in nats).
        value: What is reported, 0..1; a loss may be above.
        source: Who reports it, of which patches, and how the network was trained.
    """

    label: str
    metric: Metric
    value: float
    source: str


@dataclass(frozen=True)
class Question:
    """A question about how two arms, or two readings of one arm, differ in a metric.

    Args:
        text: The question as the report prints it.
        arm: The name of an arm.
        other: The name of the arm that it is compared with.
        reading: How both arms are evaluated: with which statistics of batch norm ("momentum_0.1", "momentum_0.001" or
            "reestimated"), or on patches with the shifted stains of their configs ("stain_shifted").
        test: "difference" asks whether the arms differ; "equivalence" asks whether they are equal within the margin.
        margin: The largest difference that does not matter, above 0, in the unit of the metric: nats for loss, else a
            share of 1. Only for questions of equivalence.
        other_reading: How the other arm is evaluated; null if in the same way.
        metric: What is compared: "auroc", "average_precision", "accuracy", "balanced_accuracy" (both at a score of 0.5)
            or "loss" (in nats).
        change: What the arm has and the other has not, as the subject of the answer, such as "ImageNet weights" or
            "dropout": the report then answers "ImageNet weights raised AUROC by .069". If empty, it names the labels.
        yes_if: What a question of difference must find for its answer to be yes: that the arm's metric is "higher" or
            "lower" than the other's, or that it is "different".
    """

    text: str
    arm: str
    other: str
    reading: Reading
    test: Literal["difference", "equivalence"]
    margin: float | None = None
    other_reading: Reading | None = None
    metric: Metric = "auroc"
    change: str = ""
    yes_if: Literal["higher", "lower", "different"] = "different"

    @property
    def readings(self) -> tuple[Reading, Reading]:
        """The reading of the arm, and that of the other."""
        return self.reading, self.other_reading or self.reading


@dataclass(frozen=True)
class Conclusion:
    """What a publication concluded, and what the study says of it.

    Args:
        claim: What the publication says, in its own terms.
        questions: The numbers of those questions of the study, from 1, whose answers bear on it.
        comment: What follows from how the publication was made, whatever the answers are: what is right, what is not,
            and why.
    """

    claim: str
    questions: Sequence[int]
    comment: str


@dataclass(frozen=True)
class Growth:
    """Arms that differ in their number of training patches alone, `data.train_patches`: a curve in the report.

    Args:
        label: What tables and figures call it.
        arms: The names of the arms, at least two.
    """

    label: str
    arms: Sequence[str]


class Run(NamedTuple):
    """One seed of one arm."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's experiment, which is also that of its folder."""
        return f"{self.arm}_seed_{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole study.

    Args:
        name: The name of the study, which is also that of its folder.
        title: The title of the report.
        split: The split of the data that every run is measured on: "valid", or "test" for a final report.
        seeds: The random seeds that every arm is trained with unless it has its own, one run each; several show how far
            chance goes. Two arms are compared at the seeds that both have.
        arms: The conditions that are compared, by name.
        questions: What the study asks, fixed before anything runs; p-values are corrected for their number.
        source: The publication, or what the study is about, as the report prints it.
        published: What a publication reports of arms, by the name of the arm; empty if there is none.
        published_tables: The tables of that publication that compare two arms.
        note: What a reader must know of the answers, such as how the questions were chosen; empty for nothing.
        conclusions: What the publication concluded, each with what this study says of it.
        growths: How AUROC grows with the number of training patches, in these series of arms.
        published_results: What others report of networks of theirs, printed beside the arms in the same metric.
    """

    name: str
    title: str
    split: SplitName
    seeds: Sequence[int]
    arms: Mapping[str, Arm]
    questions: Sequence[Question]
    source: str
    published: Mapping[str, Published] = field(default_factory=dict)
    published_tables: Sequence[PublishedTable] = ()
    note: str = ""
    conclusions: Sequence[Conclusion] = ()
    growths: Sequence[Growth] = ()
    published_results: Sequence[PublishedResult] = ()

    def __post_init__(self) -> None:
        _check_name("a study", self.name)
        for name, arm in self.arms.items():
            _check_name("an arm", name)
            if (arm.config is None) != (arm.command == "probe"):
                raise UserError(
                    f"Expected a config of the arm '{name}' if it is trained, and none if it is probed, but found "
                    f"{arm.config} with the command {arm.command}; correct the study's YAML."
                )
        labels = [arm.label for arm in self.arms.values()]
        if len(set(labels)) < len(labels):
            raise UserError(f"Expected arms with labels that differ, but found {labels}; correct the study's YAML.")
        named = [name for question in self.questions for name in (question.arm, question.other)]
        named += [*self.published, *(name for table in self.published_tables for name in (table.arm, table.other))]
        named += [name for growth in self.growths for name in growth.arms]
        unknown = sorted(set(named) - set(self.arms))
        if unknown:
            raise UserError(
                f"Expected questions and published values about the arms {', '.join(self.arms)}, but found "
                f"{', '.join(unknown)}; correct the study's YAML."
            )
        unpublished = sorted(
            {name for table in self.published_tables for name in (table.arm, table.other)}.difference(self.published)
        )
        if unpublished:
            raise UserError(
                f"Expected published values of each arm of a published table, but found none of "
                f"{', '.join(unpublished)}; add them to `published` in the study's YAML."
            )
        numbers = {number for conclusion in self.conclusions for number in conclusion.questions}
        if not numbers <= set(range(1, len(self.questions) + 1)):
            raise UserError(
                f"Expected conclusions about questions 1 to {len(self.questions)}, but found "
                f"{', '.join(map(str, sorted(numbers)))}; correct the study's YAML."
            )
        for seeds in (self.seeds, *map(self.seeds_of, self.arms)):
            if not seeds or len(set(seeds)) < len(seeds):
                raise UserError(f"Expected seeds that differ, at least one, but found {list(seeds)}.")
        for question in self.questions:
            if question.margin is not None if question.test == "difference" else not (question.margin or 0) > 0:
                raise UserError(
                    f"Expected a margin above 0 for a question of equivalence, and for no other, but found "
                    f"{question.margin} for '{question.text}'."
                )
            for name, reading in zip((question.arm, question.other), question.readings, strict=True):
                self._check_read(question, self.arms[name], name, reading)

    def _check_read(self, question: Question, arm: Arm, name: str, reading: Reading) -> None:
        """Refuse a question that its arms will not be read for."""
        if reading == "stain_shifted":
            missing = None if arm.options().get("data.stain_shifts") else "data.stain_shifts in its config"
        else:
            missing = None if arm.batch_norm_readings or question.other_reading is None else "batch_norm_readings: true"
        if missing is not None:
            raise UserError(
                f"Expected the arm '{name}' to have {missing}, as '{question.text}' is about its reading "
                f"'{reading}', but it has none; correct the study's YAML."
            )

    def train_patches(self, growth: Growth) -> dict[str, int]:
        """Look up the number of training patches of each arm of a series.

        Raises:
            UserError: If an arm does not state it, or two arms have the same.
        """
        found = {name: self.arms[name].options().get("data.train_patches") for name in growth.arms}
        numbers = {name: number for name, number in found.items() if isinstance(number, int)}
        if len(numbers) < len(growth.arms) or len(set(numbers.values())) < max(2, len(numbers)):
            raise UserError(
                f"Expected at least two arms in '{growth.label}', each with a data.train_patches of its own, but found "
                f"{found}; correct the study's YAML."
            )
        return numbers

    def seeds_of(self, arm: str) -> Sequence[int]:
        """Look up the seeds that an arm is trained with."""
        own = self.arms[arm].seeds
        return self.seeds if own is None else own

    def runs(self) -> list[Run]:
        """List all runs, the shortest first, so that a study that is stopped early has the most answers.

        Raises:
            UserError: If an arm has no number of steps.
        """
        steps = {name: arm.max_steps(name) for name, arm in self.arms.items()}
        places = [(place, Run(arm, seed)) for arm in self.arms for place, seed in enumerate(self.seeds_of(arm))]
        # The first seed of each arm before the second of any; `sorted` keeps the order of the arms.
        return [run for _, run in sorted(places, key=lambda found: (steps[found[1].arm], found[0]))]


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that would be a folder elsewhere, or none."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or name.startswith("-"):
        found = f"'{name}'"
    elif not name.isprintable() or len(name.encode(errors="replace")) > LONGEST_NAME:
        found = f"{name[:LONGEST_NAME]!r} ({len(name)} characters)"
    else:
        return
    raise UserError(
        f"Expected the name of {kind} to be the name of a folder (printable, at most {LONGEST_NAME} bytes, without / "
        f"and \\, and not beginning with -), but found {found}; correct the study's YAML."
    )
