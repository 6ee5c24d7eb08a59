"""How AUROC grows with the number of training patches: a fit that says whether more of them are worth their labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from jaxtyping import Float64

from pcam.evaluation.seeds import Inference, infer_arm
from pcam.evaluation.statistics import delong_covariance
from pcam.study.analysis import Results
from pcam.study.plan import Plan
from pcam.study.readings import MAIN_READING


@dataclass(frozen=True)
class Fit:
    """A series of arms, and the power law that 1 - AUROC follows: a constant times patches to the power of `slope`.

    Args:
        label: The label of the series.
        aurocs: The AUROC of each seed, by the number of training patches, in ascending order.
        slope: The exponent: negative where more patches help.
        departure: The exponent of the last step alone, between the two largest numbers of patches, minus `slope`: above
            0 where that step brought less than the law says. None where there are only two numbers.
    """

    label: str
    aurocs: Mapping[int, list[float]]
    slope: Inference
    departure: Inference | None

    def change(self) -> tuple[float, float, float]:
        """The share by which twice as many patches change 1 - AUROC, with the ends of its interval."""
        low, high = self.slope.interval()
        return 2**self.slope.estimate - 1, 2**low - 1, 2**high - 1

    def departs(self) -> bool:
        """Whether the last step brought more or less than the law says, surely enough."""
        if self.departure is None:
            return False
        low, high = self.departure.interval()
        return low > 0 or high < 0

    def predict(self, patches: float) -> float:
        """Give the AUROC of a number of training patches by the fitted law."""
        logs = np.log(list(self.aurocs))
        errors = np.log(_errors(np.array(list(self.aurocs.values())))).mean(axis=1)
        return float(1 - np.exp(errors.mean() + self.slope.estimate * (np.log(patches) - logs.mean())))


def fit_growths(plan: Plan, results: Results) -> list[Fit]:
    """Fit each series of a study of which at least two numbers of patches are done at the same seeds.

    For each seed, log(1 - AUROC) is fitted against log(patches) by least squares. The mean exponent has an interval
    that counts patches (by the delta method from DeLong's covariance) and seeds. So has the departure of the last step
    from the law, which says whether the law may be followed further.

    Args:
        plan: The study.
        results: The runs that are done.

    Returns:
        The fits, in the order of the plan.

    Source: Hestness et al. 2017, "Deep learning scaling is predictable, empirically", for the power law; `infer_arm`
    for the interval.
    """
    fits = []
    for growth in plan.growths:
        ascending = sorted(plan.train_patches(growth).items(), key=lambda found: found[1])
        sizes = {name: size for name, size in ascending if name in results}
        seeds = sorted(set.intersection(*(set(results[name]) for name in sizes))) if sizes else []
        if len(sizes) < 2 or not seeds:
            continue
        runs = [results[name][seed] for name in sizes for seed in seeds]
        logits = np.stack([run.logits(MAIN_READING) for run in runs])
        aurocs, covariance = delong_covariance(runs[0].labels, logits, runs[0].units)
        errors = _errors(aurocs)
        shape = (len(sizes), len(seeds))
        of_logs = (covariance / np.outer(errors, errors)).reshape(*shape, *shape)
        log_errors, logs = np.log(errors).reshape(shape), np.log(list(sizes.values()))
        weights = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
        slope, departure = _combine(weights, log_errors, of_logs), None
        if len(sizes) > 2:
            last = np.array([*[0.0] * (len(sizes) - 2), -1.0, 1.0]) / (logs[-1] - logs[-2])
            departure = _combine(last - weights, log_errors, of_logs)
        found = dict(zip(sizes.values(), aurocs.reshape(shape).tolist(), strict=True))
        fits.append(Fit(growth.label, found, slope, departure))
    return fits


def _combine(
    weights: Float64[np.ndarray, " sizes"],
    values: Float64[np.ndarray, "sizes seeds"],
    covariance: Float64[np.ndarray, "sizes seeds sizes seeds"],
) -> Inference:
    """Infer the mean over seeds of a weighted sum over sizes."""
    of_sums = np.einsum("i,j,isjt->st", weights, weights, covariance)
    return replace(infer_arm(weights @ values, of_sums), bounds=(-inf, inf))


def _errors(aurocs: np.ndarray) -> np.ndarray:
    """1 - AUROC, kept above 0, whose logarithm there is none of."""
    errors: np.ndarray = np.maximum(1 - aurocs, 1e-6)
    return errors
