r"""Intervals of any statistic of members, by leaving out one after the other.

.. math:: s^2 = \sum_h \frac{n_h - 1}{n_h} \sum_{i \in h} (T_{(hi)} - \bar T_{(h)})^2,

with h the settings of the factors, each repeated n_h times: the grid is as it was chosen, only its
repetitions are chance. Where settings have no repetitions all members count as one group, which
takes differences between settings for chance and makes the interval too wide rather than too
narrow.

Source: Tukey 1958; Jones 1974 (by strata).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from planimeter.analysis.population import Population
from planimeter.analysis.result import Result

Weights = Float[np.ndarray, " n"]


def jackknife(
    statistic: Callable[[Weights], float],
    population: Population,
    factors: Sequence[str],
    confidence: float,
    *,
    range_of: tuple[float, float] = (-1.0, 1.0),
    unbiased: bool = False,
) -> Result:
    """A statistic of weighted members with its interval, widened by Student's t.

    Arguments:
        statistic: weights, 1 for each member and 0 for one that is left out, to the number.
        population: the members.
        factors: whose settings are the groups.
        confidence: of the interval.
        range_of: what the number can be.
        unbiased: take the jackknife's estimate of the bias off the interval's middle.
    """
    n = len(population)
    value = statistic(np.ones(n))
    groups = np.empty(n, dtype=int)
    rows = {name: i for i, name in enumerate(population.by(*factors))}
    keys = zip(*(population.factor(name).tolist() for name in factors), strict=True)
    groups[:] = [rows[key] for key in keys] if factors else 0
    sizes = np.bincount(groups)
    if (sizes < 2).any():
        groups, sizes = np.zeros(n, dtype=int), np.array([n])
    without = np.empty(n)
    for row in range(n):
        weights = np.ones(n)
        weights[row] = 0
        without[row] = statistic(weights)
    freedom = n - len(sizes)
    if freedom < 2 or not np.isfinite(without).all():
        return Result(value, *range_of, n, confidence=confidence)
    variance, bias = 0.0, 0.0
    for group, size in enumerate(sizes):
        own = without[groups == group]
        variance += (size - 1) / size * float(np.sum((own - own.mean()) ** 2))
        bias += (size - 1) * (float(own.mean()) - value)
    middle = float(np.clip(value - bias, *range_of)) if unbiased else value
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * float(np.sqrt(variance))
    low, high = max(range_of[0], middle - half), min(range_of[1], middle + half)
    return Result(middle, low, high, n, confidence=confidence)
