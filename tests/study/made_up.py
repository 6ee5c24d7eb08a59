"""A study that is made up: files of runs of which it is known what they must say."""

import numpy as np
import pandas as pd

from pcam.evaluation.predictions import Predictions
from pcam.study.plan import Arm, Plan, Published, PublishedTable, Question, Run
from pcam.study.runner import StudyFolder
from tests.conftest import REPOSITORY

PATCHES = 400
CONFIG = REPOSITORY / "configs" / "random_dropout.yaml"
SHIFTED = REPOSITORY / "configs" / "best.yaml"

PLAN = Plan(
    name="made_up",
    title="A <made up> study",
    split="valid",
    seeds=[1, 2, 3],
    arms={
        "good": Arm("good network", CONFIG, batch_norm_readings=True),
        "same": Arm("the same again", CONFIG, batch_norm_readings=True),
        "poor": Arm("poor network", CONFIG),
        "absent": Arm("absent network", CONFIG),
    },
    questions=[
        Question("Is good better than poor?", "good", "poor", "reestimated", "difference", change="more signal"),
        Question("Is good as good as the same?", "good", "same", "reestimated", "equivalence", 0.05),
        Question("Does the lag hide it?", "good", "good", "reestimated", "difference", other_reading="momentum_0.001"),
        Question("Is good within .01 of poor?", "good", "poor", "reestimated", "equivalence", 0.01),
        Question("Do equals differ?", "good", "same", "reestimated", "difference"),
        Question("What of the absent?", "good", "absent", "reestimated", "difference"),
    ],
    published={
        "good": Published(auroc=0.654, loss=0.69151, accuracy=0.535, roc_figure=2, loss_figure=6),
        "same": Published(loss=0.69278, accuracy=0.5138, loss_figure=7),
        "absent": Published(auroc=0.9),
    },
    published_tables=[PublishedTable(2, "dropout removed", "same", "good", "It prints another number.")],
    source="a report",
)


def make_run(
    folder: StudyFolder,
    run: Run,
    signal: float,
    seed: int = 0,
    shifted_signal: float | None = None,
    slides: list[str] | None = None,
    plan: Plan = PLAN,
    train_patches: int = 200,
) -> None:
    """Write what measuring leaves; higher signals separate the classes better."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(PATCHES) % 2).astype(np.uint8)
    noise = np.random.default_rng((run.seed, seed)).normal(size=PATCHES)
    shared = rng.normal(size=PATCHES)
    separated = (2.0 * labels - 1) * signal

    def predictions(logits: np.ndarray) -> Predictions:
        ids = [f"{index:03d}" for index in range(PATCHES)]
        return Predictions(
            ids, labels, logits.astype(np.float32), [f"{index // 2}" for index in range(PATCHES)], slides
        )

    true = predictions(separated + 0.9 * shared + 0.1 * noise)
    lagging = predictions(0.1 * separated + noise)
    readings = {"momentum_0.1": true}
    curves = pd.DataFrame({"step": [5, 10], "epoch": [0, 0], "train/loss": [0.6, 0.4]})
    curves = curves.assign(**{"val/loss": [0.5, 0.45], "val/accuracy": [0.7, 0.8], "val/auroc": [0.8, 0.9]})
    if plan.arms[run.arm].batch_norm_readings:
        readings |= {"momentum_0.001": lagging, "reestimated": true}
        for name, values in {"loss": [0.6931, 0.7], "accuracy": [0.5, 0.6], "auroc": [0.51, 0.6]}.items():
            curves[f"val/{name}_momentum_0.001"] = values
            for reading in ("momentum_0.1", "reestimated"):
                curves[f"val/{name}_{reading}"] = curves[f"val/{name}"]
    if shifted_signal is not None:
        readings["stain_shifted"] = predictions((2.0 * labels - 1) * shifted_signal + 0.9 * shared + 0.1 * noise)
        curves["val_shifted/loss"] = [0.9, 0.8]
    facts = {
        "digest": plan.arms[run.arm].digest(), "split": "valid", "step": 10, "batch_size": 32,
        "train_patches": train_patches,
        "passes": 1.6, "data_fingerprint": "abc", "seconds": 1.5,
        "environment": {
            "python": "3.11", "packages": {"torch": "2.15", "lightning": "2.6"}, "device": "cpu", "threads": 2,
            "git_commit": "0123456789abcdef", "data_fingerprints": {"train": "def", "valid": "abc"},
        },
    }  # fmt: skip
    folder.results.write(run, readings, curves.to_csv(index=False).encode(), facts)
