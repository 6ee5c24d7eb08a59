"""Wrong values of options: one sentence that says what was expected, whatever kind of value it is."""

import pytest

from pcam.commands.benchmark import main as benchmark
from pcam.commands.evaluate import main as evaluate
from pcam.commands.explain import main as explain
from pcam.commands.page import main as page
from pcam.commands.predict import main as predict
from pcam.commands.slide import main as slide
from pcam.commands.train import main as train
from pcam.door import Main
from pcam.wrong_values import sentence

TRAIN = ["--config", "demo", "--data.root", "."]


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (evaluate, ["best", "--adapt", "town"], "Expected adapt to be all, slide, hospital or null, but found town"),
        (evaluate, ["best", "--split", "town"], "Expected split to be train, valid or test, but found town"),
        (
            evaluate,
            ["best", "--enlarged_sizes", "many"],
            "Expected enlarged_sizes to be a list such as [128] or null, but found many",
        ),
        (evaluate, ["best", "--tta=3"], "Expected --tta without a value, but found 3; leave the value out"),
        (evaluate, ["best", "--adapt"], "Expected a value after --adapt, but found none"),
        (explain, ["best", "--shown", "many"], "Expected shown to be a whole number, but found many"),
        (explain, ["best", "--shown", "0"], "Expected shown to be above 0, but found 0"),
        (slide, ["best", "x", "--mpp", "-3"], "Expected mpp to be a number above 0 or null, but found -3"),
        (page, ["--port", "99999999"], "Expected port to be at least 1 and at most 65535, but found 99999999"),
        (predict, ["best", "--input"], "Expected a value after --input, but found none"),
        (benchmark, ["memory", "--counts", "3"], "Expected counts to be a list, but found 3"),
        (train, [*TRAIN, "--data.augmentation", "flip"], "Expected data.augmentation to be none or d4, but found flip"),
        (train, [*TRAIN, "--model.network.dropout", "high"], "Expected dropout to be a number, but found high"),
        (train, [*TRAIN, "--model.optimizer.lr", "high"], "Expected lr to be a number or Tensor, but found high"),
        (train, [*TRAIN, "--seed_everything", "x"], "Expected seed_everything to be a whole number, but found x"),
        (
            train,
            [*TRAIN, "--model.network.momentum", "1"],
            "Expected an option that its class takes, but found momentum",
        ),
    ],
)
def test_a_wrong_value_is_answered_in_a_sentence(
    command: Main, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    assert ended.value.code == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert not any(word in found for word in ("Parser key", "Subtypes", "class '", "typing."))


def test_what_is_not_known_is_left_as_it_is() -> None:
    assert sentence("Expected 2 runs, but found 1; name another.") is None
    assert sentence('Parser key "a": something new') is None
