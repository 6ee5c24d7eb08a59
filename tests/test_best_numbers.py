"""The numbers of docs/best.md that have their data beside them are what these give."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pcam.evaluation.predictions import Predictions, average_scores
from pcam.evaluation.seeds import compare_arms, infer_arm
from pcam.evaluation.statistics import delong_covariance
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "best.md").read_text()
THREES = ["1, 2, 3", "4, 5, 6", "7, 8, 9"]
MEANS = [f"mean_{seeds.replace(', ', '_')}" for seeds in THREES]


@pytest.fixture(scope="module")
def valid() -> pd.DataFrame:
    return pd.read_csv(REPOSITORY / "docs" / "results" / "best" / "valid.csv.gz")


@pytest.fixture(scope="module")
def test() -> pd.DataFrame:
    return pd.read_csv(REPOSITORY / "docs" / "results" / "best" / "test.csv.gz")


def auroc(split: pd.DataFrame, logits: "pd.Series | np.ndarray") -> str:
    return f"{roc_auc_score(split['label'], logits):.4f}".removeprefix("0")


def ensemble(split: pd.DataFrame, runs: list[str]) -> np.ndarray:
    """The mean of the scores of runs, as logits."""
    ids, labels = list(split["id"]), split["label"].to_numpy(np.uint8)
    return average_scores([Predictions(ids, labels, split[run].to_numpy(np.float32), ids) for run in runs]).logits


def loss(split: pd.DataFrame, *columns: str) -> float:
    return float(np.mean([log_loss(split["label"], 1 / (1 + np.exp(-split[column]))) for column in columns]))


def digits(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("0.", ".")


@pytest.mark.parametrize("seeds", THREES)
def test_a_row_of_the_table_of_means(seeds: str, valid: pd.DataFrame) -> None:
    runs, mean = [f"seed_{seed}" for seed in seeds.split(", ")], f"mean_{seeds.replace(', ', '_')}"
    cells = [
        seeds,
        f"{', '.join(auroc(valid, valid[run]) for run in runs)}; {digits(loss(valid, *runs), 3)[1:]}",
        f"{auroc(valid, valid[mean])}, {digits(loss(valid, mean), 3)[1:]}",
        auroc(valid, ensemble(valid, runs)),
    ]
    assert f"| {' | '.join(cells)} |" in PAGE


def test_what_the_means_bring(valid: pd.DataFrame) -> None:
    singles = [f"seed_{seed}" for seed in range(1, 10)]
    logits = valid[[*MEANS, *singles]].to_numpy().T
    units = list(valid["group"].astype(str))
    aurocs, covariance = delong_covariance(valid["label"].to_numpy(float), logits, units)
    arms = np.zeros((6, 12))  # the three means, and of each the mean over its runs
    arms[:3, :3] = np.eye(3)
    for three in range(3):
        arms[3 + three, 3 + 3 * three : 6 + 3 * three] = 1 / 3
    found = compare_arms((arms @ aurocs).reshape(2, 3), (arms @ covariance @ arms.T).reshape(2, 3, 2, 3))
    low, high = found.interval()
    gained = loss(valid, *MEANS) - loss(valid, *singles)
    said = f"{digits(found.estimate, 4)} ({digits(low, 4)} to {digits(high, 4)}), {digits(gained, 3)}"
    assert f"| difference from the runs | | {said} | |" in PAGE
    of_scores = [ensemble(valid, [f"seed_{seed}" for seed in seeds.split(", ")]) for seeds in THREES]
    logits = np.concatenate([logits[:3], np.stack(of_scores).astype(np.float64)])
    aurocs, covariance = delong_covariance(valid["label"].to_numpy(float), logits, units)
    found = compare_arms(aurocs.reshape(2, 3), covariance.reshape(2, 3, 2, 3))
    low, high = found.interval()
    assert f"`--ensemble`; {digits(found.estimate, 4)}, {digits(low, 4)} to {digits(high, 4)})" in PAGE


def test_what_the_means_have_on_test(test: pd.DataFrame) -> None:
    means, runs = ([auroc(test, test[name]) for name in names] for names in (MEANS, ["seed_1", "seed_2", "seed_3"]))
    words = " ".join(PAGE.split())
    assert "the three means have an AUROC of {}, {} and {}, and seeds 1 to 3".format(*means) in words
    together = auroc(test, ensemble(test, ["seed_1", "seed_2", "seed_3"]))
    assert "{}, {} and {}, and as an ensemble {}. The mean NLL".format(*runs, together) in words
    losses = [digits(loss(test, *names), 3)[1:] for names in (MEANS, ["seed_1", "seed_2", "seed_3"])]
    assert "The mean NLL of the three means is {}, that of seeds 1 to 3 is {}.".format(*losses) in words
    with_symmetries = [f"{name}_tta" for name in MEANS]
    assert "on test {}, {} and {}".format(*[auroc(test, test[name]) for name in with_symmetries]) in PAGE
    logits = test[with_symmetries].to_numpy().T
    mean = infer_arm(*delong_covariance(test["label"].to_numpy(float), logits, list(test["group"].astype(str))))
    low, high = mean.interval()
    assert f"**{digits(mean.estimate, 3)[1:]}** ({digits(low, 3)[1:]} to {digits(high, 3)[1:]})" in PAGE
    assert f"NLL {digits(loss(test, *with_symmetries), 3)[1:]} instead of" in words
