r"""Which of two quantities goes along more closely with an outcome, on the same members.

.. math:: d = s_1\, r(x_1, y) - s_2\, r(x_2, y)

with the signs that the two are expected to have (log P(f) falls with the error, sharpness rises).
Both correlations come from one sample and are correlated by

.. math:: c = \frac{(r_{12} - \tfrac12 r_1 r_2)(1 - r_1^2 - r_2^2 - r_{12}^2) + r_{12}^3}
                   {(1 - r_1^2)(1 - r_2^2)},

and the interval is put together from those of the two,
:math:`d - \sqrt{(r_1 - l_1)^2 + (u_2 - r_2)^2 - 2c\,(r_1 - l_1)(u_2 - r_2)}` at its low end.

Source: Zou 2007 (intervals by recovering variances); Olkin & Siotani 1976 (c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from planimeter.analysis.correlation import coefficient_of, fisher_interval, numbers
from planimeter.analysis.population import Population
from planimeter.analysis.rank_intervals import rank_interval
from planimeter.analysis.result import Result, check_confidence
from planimeter.errors import InputError


def correlation_difference(
    population: Population,
    first: str,
    second: str,
    outcome: str,
    *,
    signs: tuple[int, int] = (1, 1),
    coefficient: Literal["pearson", "spearman"] = "pearson",
    logarithm: Sequence[str] = (),
    confidence: float = 0.95,
) -> Result:
    """The correlation of the first quantity with the outcome less that of the second.

    Arguments:
        population: of which; members that lack one of the three do not count.
        first, second, outcome: columns.
        signs: 1 or -1, what each quantity's correlation is multiplied with.
        coefficient: r, or that of the ranks.
        logarithm: columns to take the logarithm of.
        confidence: of the interval.

    Raises:
        InputError: no such column or coefficient, or a sign other than 1 and -1.
    """
    check_confidence(confidence)
    if coefficient not in ("pearson", "spearman"):
        raise InputError(f"differences are of pearson or spearman, not of {coefficient!r}")
    if any(sign not in (1, -1) for sign in signs):
        raise InputError(f"signs are 1 or -1, got {signs}")
    columns = [v for v, _ in numbers(population, (first, second, outcome), logarithm)]
    a, b, y = signs[0] * columns[0], signs[1] * columns[1], columns[2]
    n = len(y)
    if n < 4:
        return Result(np.nan, np.nan, np.nan, n, confidence=confidence)
    one, two, both = (coefficient_of(coefficient, *pair) for pair in ((a, y), (b, y), (a, b)))
    if not np.isfinite([one, two, both]).all():
        return Result(np.nan, np.nan, np.nan, n, confidence=confidence)

    def interval(r: float) -> tuple[float, float]:
        if coefficient == "spearman":
            return rank_interval("spearman", r, n, confidence)
        return fisher_interval(r, n, confidence)

    shared = _correlation_of(one, two, both)
    (low1, high1), (low2, high2) = interval(one), interval(two)
    down = _together(one - low1, high2 - two, shared)
    up = _together(high1 - one, two - low2, shared)
    return Result(one - two, one - two - down, one - two + up, n, confidence=confidence)


def _together(a: float, b: float, shared: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * shared * a * b)))


def _correlation_of(one: float, two: float, both: float) -> float:
    """The correlation of two sample correlations with one variable."""
    left = (1 - one**2) * (1 - two**2)
    if left < 1e-12:
        return 0.0
    top = (both - one * two / 2) * (1 - one**2 - two**2 - both**2) + both**3
    return float(np.clip(top / left, -1, 1))
