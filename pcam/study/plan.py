"""A study: arms, seeds, and the questions that are fixed before anything runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import yaml

from pcam.errors import UserError
from pcam.options import SplitName

Reading = Literal["momentum_0.1", "momentum_0.001", "reestimated", "stain_shifted"]
READINGS: Final[tuple[Reading, ...]] = get_args(Reading)

FIRST_READING: Final[Reading] = "momentum_0.1"
"""That of the statistics that the network was trained with, where it is read in one way alone."""

READING_NAMES: Final[dict[Reading, str]] = {
    "momentum_0.1": "momentum 0.1 (PyTorch's)",
    "momentum_0.001": "momentum 0.001 (Keras's 0.999)",
    "reestimated": "re-estimated",
    "stain_shifted": "stains shifted",
}
"""What tables and figures call the readings: three of batch norm, and one of patches with other stains."""

AS_TRAINED: Final = "as trained"
"""What they call the first reading where batch norm is not read in several ways."""

Override = str | int | float | bool | list[int] | None


@dataclass(frozen=True)
class Arm:
    """One condition: a config, and what differs from it.

    Args:
        label: For tables and figures.
        config: The experiment's YAML, relative to the folder that the study is started from.
        overrides: Options of scripts/train.py that differ from the config, as `trainer.max_steps: 13500`.
        batch_norm_readings: Whether the network has batch norm that learns, and is to be read in three ways. Else it
            is read as it was trained.
    """

    label: str
    config: Path
    overrides: dict[str, Override] = field(default_factory=dict)
    batch_norm_readings: bool = False

    def options(self) -> dict[str, Override]:
        """What decides the arm, flat: the config with its overrides.

        Raises:
            UserError: If the config cannot be read.
        """
        try:
            config = yaml.safe_load(self.config.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"Expected the config of an experiment at {self.config}, but it cannot be read "
                f"({' '.join(str(error).split())}); correct the study's YAML, or start it from the project's folder."
            ) from error
        if not isinstance(config, dict):
            raise UserError(f"Expected the config of an experiment at {self.config}, but found no options in it.")
        flat = dict(_flatten(config)) | self.overrides
        flat["batch_norm_readings"] = self.batch_norm_readings
        return {key: value for key, value in flat.items() if key not in ("experiment", "seed_everything")}

    def max_steps(self, name: str) -> int:
        """Its budget in optimizer steps.

        Args:
            name: What a message calls the arm.

        Raises:
            UserError: If it has none, or ends before there is anything to report.
        """
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
        """Whether it starts from pretrained weights."""
        options = self.options()
        found = options.get("model.network.weights", options.get("model.network.init_args.weights"))
        return found is not None

    def digest(self) -> str:
        """A SHA-256 of what decides the arm."""
        return hashlib.sha256(json.dumps(self.options(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Published:
    """What a publication says of an arm, on its own patches.

    Args:
        auroc: 0..1.
        loss: The lowest validation loss, in nats.
        accuracy: At that checkpoint, 0..1.
        roc_figure: The number of its figure of the ROC.
        loss_figure: The number of its figure of the losses.
    """

    auroc: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    roc_figure: int | None = None
    loss_figure: int | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A published table of what changes from one arm to another.

    Args:
        number: Of the table.
        title: What is changed.
        arm: The arm after the change.
        other: The arm before it.
        note: What a reader of the published table must know.
    """

    number: int
    title: str
    arm: str
    other: str
    note: str = ""


@dataclass(frozen=True)
class Question:
    """A question about the AUROCs of two arms.

    Args:
        text: The question in words.
        arm: Name of an arm.
        other: Name of the arm that it is compared with.
        reading: How both are read: batch norm's statistics, or with the stain shifts of their configs.
        other_reading: How the other arm is read, if not in the same way.
        test: Whether they differ, or whether they are as good as each other within the margin.
        margin: Of AUROC, above 0, for equivalence.
    """

    text: str
    arm: str
    other: str
    reading: Reading
    test: Literal["difference", "equivalence"]
    margin: float | None = None
    other_reading: Reading | None = None

    @property
    def readings(self) -> tuple[Reading, Reading]:
        """How the two arms are read."""
        return self.reading, self.other_reading or self.reading


class Run(NamedTuple):
    """One seed of one arm."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The experiment's name: of its folder, and in TensorBoard."""
        return f"{self.arm}_seed_{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole study.

    Args:
        name: Of its folder.
        title: Of its report.
        split: Which split the report is on.
        seeds: Of every arm.
        arms: By name.
        questions: Fixed before anything runs.
        published: What a publication says, by the name of the arm.
        published_tables: Its tables.
        source: Where it was published, or what the study is about.
    """

    name: str
    title: str
    split: SplitName
    seeds: Sequence[int]
    arms: Mapping[str, Arm]
    questions: Sequence[Question]
    published: Mapping[str, Published]
    published_tables: Sequence[PublishedTable]
    source: str

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms.values()]
        if len(set(labels)) < len(labels):
            raise UserError(f"Expected arms with labels that differ, but found {labels}; correct the study's YAML.")
        named = [name for question in self.questions for name in (question.arm, question.other)]
        named += [*self.published, *(name for table in self.published_tables for name in (table.arm, table.other))]
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
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"Expected seeds that differ, at least one, but found {list(self.seeds)}.")
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

    def runs(self) -> list[Run]:
        """All runs, the shortest first: a study that is ended early has the most answers.

        Raises:
            UserError: If an arm has no budget in steps.
        """
        steps = {name: arm.max_steps(name) for name, arm in self.arms.items()}
        return sorted((Run(arm, seed) for seed in self.seeds for arm in self.arms), key=lambda run: steps[run.arm])


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Override]]:
    flat: list[tuple[str, Override]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
