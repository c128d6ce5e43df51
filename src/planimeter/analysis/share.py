r"""The share of members for which one column is at least another, as a bound should be.

The interval is that of Clopper & Pearson 1934, exact for k of n:
:math:`B_{\alpha/2}(k, n-k+1)` to :math:`B_{1-\alpha/2}(k+1, n-k)`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, check_confidence


def share_above(
    population: Population, above: str, below: str, *, confidence: float = 0.95
) -> Result:
    """The share of members whose `above` is at least `below`.

    Arguments:
        population: of which; members that lack either do not count.
        above, below: columns.
        confidence: of the interval.

    Raises:
        InputError: no such column.
    """
    check_confidence(confidence)
    whole = population.finite(above, below)
    n = len(whole)
    if n == 0:
        return Result(np.nan, np.nan, np.nan, 0, confidence=confidence)
    k = int((whole.column(above).values >= whole.column(below).values).sum())
    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Result(k / n, low, high, n, confidence=confidence)
