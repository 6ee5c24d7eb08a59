"""Plans of studies, and the ones that are shipped."""

from dataclasses import replace
from pathlib import Path

import pytest

from pcam.errors import UserError
from pcam.study.plan import Arm, Conclusion, Growth, Plan, Published, PublishedTable, Question, Run
from tests.conftest import REPOSITORY

CNN = REPOSITORY / "configs" / "cnn.yaml"
IMAGENET = REPOSITORY / "configs" / "imagenet_dropout.yaml"

SHORT = {"trainer.max_steps": 5, "trainer.val_check_interval": 5, "trainer.log_every_n_steps": 5}

PLAN = Plan(
    name="tiny",
    title="Tiny",
    split="valid",
    seeds=[1, 2],
    arms={"long": Arm("long", CNN), "short": Arm("short", CNN, SHORT)},
    questions=[Question("Are they as good?", "long", "short", "reestimated", "equivalence", 0.01)],
    published={"long": Published(auroc=0.9)},
    source="nowhere",
)


def test_the_shortest_runs_come_first() -> None:
    assert PLAN.runs() == [Run("short", 1), Run("short", 2), Run("long", 1), Run("long", 2)]
    assert Run("short", 1).name == "short_seed_1"


def test_an_arm_can_have_seeds_of_its_own() -> None:
    plan = replace(PLAN, arms={"long": Arm("long", CNN, seeds=[5]), "short": Arm("short", CNN, SHORT)})
    assert plan.runs() == [Run("short", 1), Run("short", 2), Run("long", 5)]
    assert plan.arms["long"].digest() == PLAN.arms["long"].digest()  # a run is the same with or without the others


def test_an_arm_is_known_by_what_decides_it(tmp_path: Path) -> None:
    arm = Arm("CNN", CNN)
    copied = tmp_path / "other.yaml"
    copied.write_text(CNN.read_text().replace("experiment: cnn", "experiment: other") + "# a comment\n")
    assert Arm("another label", copied).digest() == arm.digest()
    assert Arm("CNN", CNN, {"trainer.max_steps": 5}).digest() != arm.digest()
    assert Arm("CNN", CNN, batch_norm_readings=True).digest() != arm.digest()


def test_a_config_can_be_named_without_its_path() -> None:
    assert Arm("CNN", Path("cnn")).digest() == Arm("CNN", CNN).digest()
    with pytest.raises(UserError, match=r"the name of one that is shipped \(best, .*cnn, .*\), but found 'cmm'"):
        Arm("CNN", Path("cmm")).options()


def test_names_with_spaces_and_letters_of_any_language_are_taken() -> None:
    arms = {"mit Dröpout, 0.5": Arm("one", CNN)}
    assert replace(PLAN, arms=arms, questions=[], published={}).runs()[0].name == "mit Dröpout, 0.5_seed_1"


def test_overrides_win_over_the_config() -> None:
    assert Arm("", CNN).max_steps("cnn") == 13500
    assert Arm("", CNN, SHORT).max_steps("cnn") == 5
    assert Arm("", IMAGENET).uses_weights()
    assert not Arm("", IMAGENET, {"model.network.weights": None}).uses_weights()
    assert not Arm("", CNN).uses_weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": {"lnog": Published()}}, r"about the arms long, short, but found lnog; correct"),
        ({"seeds": [1, 1]}, r"Expected seeds that differ, at least one, but found \[1, 1\]"),
        ({"seeds": []}, "Expected seeds that differ, at least one"),
        (
            {"arms": dict(PLAN.arms) | {"long": Arm("long", CNN, seeds=[])}},
            r"Expected seeds that differ, at least one, but found \[\]",
        ),
        (
            {"conclusions": [Conclusion("It helps.", [1, 2], "So.")]},
            "Expected conclusions about questions 1 to 1, but found 1, 2; correct",
        ),
        ({"growths": [Growth("network", ["lnog"])]}, r"about the arms long, short, but found lnog; correct"),
        (
            {"questions": [Question("So?", "long", "short", "reestimated", "equivalence")]},
            "Expected a margin above 0 for a question of equivalence, and for no other, but found None for 'So",
        ),
        (
            {"questions": [Question("So?", "long", "short", "reestimated", "difference", 0.1)]},
            "Expected a margin above 0 for a question of equivalence, and for no other, but found 0.1",
        ),
        (
            {"questions": [Question("So?", "long", "short", "reestimated", "difference", 0.0)]},
            "Expected a margin above 0 for a question of equivalence, and for no other, but found 0.0",
        ),
        (
            {"published_tables": [PublishedTable(1, "a table", "long", "short")]},
            "Expected published values of each arm of a published table, but found none of short",
        ),
        (
            {"arms": {"long": Arm("one", CNN), "short": Arm("one", CNN)}},
            r"Expected arms with labels that differ, but found \['one', 'one'\]",
        ),
        (
            {"questions": [Question("So?", "long", "short", "stain_shifted", "difference")]},
            "Expected the arm 'long' to have data.stain_shifts in its config, as 'So",
        ),
        ({"name": ""}, "Expected the name of a study to be the name of a folder .*, but found ''; correct"),
        ({"name": "../../x"}, r"Expected the name of a study to be the name of a folder .*, but found '\.\./\.\./x'"),
        ({"name": "/abs"}, "Expected the name of a study to be the name of a folder .*, but found '/abs'"),
        *(
            (
                {"arms": {name: Arm("one", CNN)}},
                f"Expected the name of an arm to be the name of a folder .*found {found}",
            )
            for name, found in {
                "..": r"'\.\.'",
                ".": r"'\.'",
                "a/../b": "'a/../b'",
                "a\\b": r"'a\\b'",
                "-rf": "'-rf'",
                "a\x1b[2J": r"'a\\x1b\[2J' \(5 characters\)",
                "a\n": r"'a\\n' \(2 characters\)",
                "é" * 60: r"'é+' \(60 characters\)",
            }.items()
        ),
        (
            {
                "questions": [
                    Question("So?", "long", "long", "reestimated", "difference", other_reading="momentum_0.001")
                ]
            },
            "Expected the arm 'long' to have batch_norm_readings: true, as 'So",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(PLAN, **change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Expected a config at .*broken.yaml, but there is no such file; .* shipped: best, .*cnn"),
        ("a: [", "Expected the config of an experiment at .*broken.yaml, but it cannot be read"),
        ("words", "Expected the config of an experiment at .*broken.yaml, but found no options in it"),
        (
            "trainer: {max_epochs: 3}",
            "Expected trainer.max_steps above 0 in the arm 'short' of a study, but found None",
        ),
        (
            "trainer: {max_steps: 100, val_check_interval: 225, log_every_n_steps: 25}",
            "measured before it ends, but trainer.val_check_interval is 225 and trainer.max_steps 100",
        ),
        (
            "trainer: {max_steps: 10, val_check_interval: 5, log_every_n_steps: 25}",
            "measured before it ends, but trainer.log_every_n_steps is 25 and trainer.max_steps 10",
        ),
    ],
)
def test_a_config_that_cannot_be_an_arm_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        replace(PLAN, arms=dict(PLAN.arms) | {"short": Arm("short", path)}).runs()
