r"""Intervals for rank correlations, from the distribution that they have at each strength.

Spearman's :math:`\rho_s` and Kendall's :math:`\tau` depend on the ranks alone, so with variables
that some monotone maps make jointly normal, of correlation :math:`\rho`, their distribution for n
points is one that can be drawn. An end of the interval is the population at which a value as far
out as the one seen has probability (1 - confidence) / 2:

.. math:: P(R \ge r \mid \rho_\text{low}) = P(R \le r \mid \rho_\text{high})
          = \tfrac12 (1 - \text{confidence}),

with :math:`\rho_s = \frac6\pi \arcsin\frac\rho2` and :math:`\tau = \frac2\pi \arcsin\rho`.
Fisher's transformation, made for Pearson's r, gives intervals of no width at |r| = 1 and covers
0.3 to 0.8 of what it says for few points and strong correlations: there ranks are nearly always
in order, whatever the correlation is.

Source: Clopper & Pearson 1934 (for inverting a discrete distribution); Kruskal 1958 (for the maps).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Coefficient = Literal["spearman", "kendall"]

DRAWS = 4000
LARGEST = 60
"""Points up to which the distribution is drawn; beyond, deviations shrink as 1 / sqrt(n)."""
STRENGTHS = np.tanh(np.linspace(-9.0, 9.0, 145))
"""The grid of correlations; its ends are ±1 but for 3e-8."""


def rank_interval(
    coefficient: Coefficient, value: float, n: int, confidence: float
) -> tuple[float, float]:
    """Low and high end of the interval of a rank correlation.

    Arguments:
        coefficient: which.
        value: of the sample, in [-1, 1].
        n: points, at least 3.
        confidence: in (0, 1); more than 0.99 asks more of the drawn distributions than they hold.
    """
    lowest, highest = _quantiles(coefficient, n, confidence)
    slack = 1e-9  # values are fractions of small integers, computed in two ways
    populations = population(coefficient, STRENGTHS)
    low = _crossing(highest, populations, value - slack)
    high = -_crossing(-lowest[::-1], -populations[::-1], -value - slack)
    return low, high


def population(coefficient: Coefficient, rho: np.ndarray) -> np.ndarray:
    """The rank correlation of two normal variables of correlation `rho`."""
    if coefficient == "spearman":
        return 6 / np.pi * np.arcsin(rho / 2)
    return 2 / np.pi * np.arcsin(rho)


def _crossing(quantile: np.ndarray, populations: np.ndarray, value: float) -> float:
    """The least population whose upper quantile reaches the value; -1 where all do."""
    above = np.flatnonzero(quantile >= value)
    if len(above) == 0:
        return float(populations[-1])
    i = int(above[0])
    if i == 0:
        return -1.0
    part = (value - quantile[i - 1]) / (quantile[i] - quantile[i - 1])
    return float(populations[i - 1] + part * (populations[i] - populations[i - 1]))


@lru_cache(maxsize=64)
def _quantiles(
    coefficient: Coefficient, n: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both quantiles of the coefficient for n points, at every strength of the grid."""
    drawn = min(n, LARGEST)
    rng = np.random.default_rng(0)
    # The same numbers for every strength, and mirrored for negative ones: quantiles rise smoothly.
    x, noise = rng.normal(size=(2, DRAWS, drawn))
    tail = (1 - confidence) / 2
    half = len(STRENGTHS) // 2
    lowest, highest = np.empty(half + 1), np.empty(half + 1)
    order = np.argsort(x, axis=1)  # ranks of x become 0, 1, ..., n - 1 once for all strengths
    x, noise = np.take_along_axis(x, order, 1), np.take_along_axis(noise, order, 1)
    for i, rho in enumerate(STRENGTHS[half:]):
        values = _ORDERED[coefficient](rho * x + np.sqrt(1 - rho**2) * noise)
        lowest[i] = np.quantile(values, tail, method="lower")
        highest[i] = np.quantile(values, 1 - tail, method="higher")
    highest[0] = max(highest[0], -lowest[0])
    lowest[0] = -highest[0]  # draws of no correlation are not quite symmetric
    centre = population(coefficient, STRENGTHS)
    shrink = np.sqrt((drawn - 1) / (n - 1))
    both = (np.r_[-highest[:0:-1], lowest], np.r_[-lowest[:0:-1], highest])
    low, high = (centre + shrink * (q - centre) for q in both)
    return np.maximum.accumulate(low), np.maximum.accumulate(high)


def _spearman(y: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of each row with 0, 1, ..., n - 1."""
    n = y.shape[1]
    apart = np.argsort(np.argsort(y, axis=1), axis=1) - np.arange(n)
    result: np.ndarray = 1 - 6 * (apart**2).sum(1) / (n * (n * n - 1))
    return result


def _kendall(y: np.ndarray) -> np.ndarray:
    """Kendall's coefficient of each row with 0, 1, ..., n - 1."""
    n = y.shape[1]
    inverted = np.zeros(len(y), dtype=int)
    for i in range(n - 1):
        inverted += (y[:, i + 1 :] < y[:, i, None]).sum(1)
    result: np.ndarray = 1 - 4 * inverted / (n * (n - 1))
    return result


_ORDERED = {"spearman": _spearman, "kendall": _kendall}
