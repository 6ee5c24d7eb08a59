"""How AUROC grows with training patches: the fit, against NumPy, the law itself and an independent bootstrap."""

from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pcam.errors import UserError
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.seeds import Inference
from pcam.study.figures import growth_figure
from pcam.study.growth import Fit, fit_growths
from pcam.study.plan import Arm, Growth, Plan, Run
from pcam.study.results import ResultsFolder, RunResult
from pcam.study.sentences import growth_words
from tests.study.made_up import CONFIG

SIZES = (500, 2000, 8000)
PATCHES = 500
LABELS = (np.arange(PATCHES) % 2).astype(np.uint8)

PLAN = Plan(
    name="growth",
    title="Growth",
    split="valid",
    seeds=[1, 2, 3],
    arms={f"of_{size}": Arm(f"{size} patches", CONFIG, {"data.train_patches": size}) for size in SIZES},
    questions=[],
    source="nowhere",
    growths=[Growth("network", [f"of_{size}" for size in SIZES])],
)


def logits(size: int, seed: int) -> np.ndarray:
    shared = np.random.default_rng(0).normal(size=PATCHES)
    own = np.random.default_rng((size, seed)).normal(size=PATCHES)
    signal = np.log(size) / 12
    return (signal * (2.0 * LABELS - 1) + 0.8 * shared + 0.3 * own).astype(np.float32)


def results(folder: Path, seeds: list[int]) -> dict[str, dict[int, RunResult]]:
    found: dict[str, dict[int, RunResult]] = {}
    names = [f"{row:03d}" for row in range(PATCHES)]
    kept = ResultsFolder(folder)
    for size in SIZES:
        for seed in seeds:
            run = Run(f"of_{size}", seed)
            kept.write(run, {"momentum_0.1": Predictions(names, LABELS, logits(size, seed), names)}, b"step\n", {})
            record = {"readings": {"momentum_0.1": {}}}
            found.setdefault(run.arm, {})[seed] = RunResult(folder / run.name, record, kept.patches)
    return found


def slope(rows: np.ndarray, seed: int) -> float:
    errors = [1 - roc_auc_score(LABELS[rows], logits(size, seed)[rows]) for size in SIZES]
    return float(np.polyfit(np.log(SIZES), np.log(errors), 1)[0])


def last_slope(rows: np.ndarray, seed: int) -> float:
    before, most = (np.log(1 - roc_auc_score(LABELS[rows], logits(size, seed)[rows])) for size in SIZES[-2:])
    return float((most - before) / np.log(SIZES[-1] / SIZES[-2]))


def test_the_exponent_is_the_mean_of_those_of_the_seeds_and_its_error_counts_both(tmp_path: Path) -> None:
    (fit,) = fit_growths(PLAN, results(tmp_path / "three", [1, 2, 3]))
    everything = np.arange(PATCHES)
    slopes = [slope(everything, seed) for seed in (1, 2, 3)]
    assert fit.slope.estimate == pytest.approx(np.mean(slopes))
    assert fit.slope.standard_error >= np.std(slopes, ddof=1) / 3**0.5 * (1 - 1e-9)
    rng = np.random.default_rng(1)
    (alone,) = fit_growths(PLAN, results(tmp_path / "one", [1]))
    resampled = [slope(rng.integers(PATCHES, size=PATCHES), 1) for _ in range(200)]
    assert alone.slope.standard_error == pytest.approx(np.std(resampled), rel=0.15)
    # So is the departure of the last step.
    departures = [last_slope(everything, seed) - slope(everything, seed) for seed in (1, 2, 3)]
    assert fit.departure is not None
    assert fit.departure.estimate == pytest.approx(np.mean(departures))
    resampled = []
    for _ in range(200):
        rows = rng.integers(PATCHES, size=PATCHES)
        resampled.append(last_slope(rows, 1) - slope(rows, 1))
    assert alone.departure is not None
    assert alone.departure.standard_error == pytest.approx(np.std(resampled), rel=0.15)


def test_the_order_of_the_arms_does_not_matter_and_two_of_them_fit_any_law(tmp_path: Path) -> None:
    made = results(tmp_path, [1, 2])
    (fit,) = fit_growths(PLAN, made)
    reversed_plan = replace(PLAN, growths=[Growth("network", list(reversed(PLAN.growths[0].arms)))])
    assert fit_growths(reversed_plan, made) == [fit]
    assert list(fit.aurocs) == sorted(SIZES)
    del made["of_2000"]
    (of_two,) = fit_growths(PLAN, made)
    assert of_two.departure is None
    assert growth_words(of_two)


def test_the_law_is_found_again_and_put_into_words() -> None:
    aurocs = {size: [1 - 2 * size**-0.3] * 2 for size in SIZES}
    fitted = Fit("network", aurocs, Inference(-0.3, 0.03, inf, (-inf, inf)), None)
    for size in (*SIZES, 16_000):
        assert fitted.predict(size) == pytest.approx(1 - 2 * size**-0.3)
    assert growth_words(fitted) == (
        "network: each doubling of the number of patches lowered 1 - AUROC, what is missing to a perfect ranking, by "
        "19 % (15 % to 22 %). If it goes on so, 16,000 patches in place of 8,000 raise AUROC by .025."
    )
    unsure = replace(fitted, slope=replace(fitted.slope, standard_error=1.0))
    assert growth_words(unsure) == (
        "network: these runs do not show whether more patches help; each doubling of their number may have changed 1 - "
        "AUROC by anything from -79 % to +216 %."
    )
    holding = replace(fitted, departure=Inference(0.1, 0.06, inf, (-inf, inf)))
    assert growth_words(holding) == growth_words(fitted)
    ending = replace(
        fitted,
        aurocs=aurocs | {SIZES[-1]: aurocs[SIZES[-2]]},
        departure=Inference(0.1, 0.04, inf, (-inf, inf)),
    )
    assert growth_words(ending).endswith(
        "(15 % to 22 %). But this does not hold to the end: from 2,000 to 8,000 patches, AUROC changed by +.000, where "
        "this law says +.080. So what more patches would bring is not known."
    )
    worse = replace(fitted, slope=replace(fitted.slope, estimate=0.1))
    assert "raised 1 - AUROC, what is missing to a perfect ranking, by 7 % (3 % to 12 %)" in growth_words(worse)
    (axes,) = growth_figure([fitted, replace(fitted, label="another")]).axes
    styles = [line.get_linestyle() for line in axes.lines if np.size(line.get_xdata()) == 50]
    markers = {line.get_marker() for line in axes.lines if line.get_label() in ("network", "another")}
    assert len(set(styles)) == len(markers) == 2  # told apart without colour


def test_arms_of_a_series_must_differ_in_their_number_of_patches() -> None:
    same = {name: replace(arm, overrides={"data.train_patches": 500}) for name, arm in PLAN.arms.items()}
    for arms in (same, {name: replace(arm, overrides={}) for name, arm in PLAN.arms.items()}):
        with pytest.raises(
            UserError, match=r"at least two arms in 'network', each with a data.train_patches of its own"
        ):
            replace(PLAN, arms=arms).train_patches(PLAN.growths[0])
