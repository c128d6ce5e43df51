r"""The correlation of two columns where others are held fixed.

.. math:: r_{xy \cdot z} = \mathrm{corr}(x - \hat x(z),\ y - \hat y(z)),

with :math:`\hat x(z)` the best linear prediction from z; for ranks, of and from ranks. Flatness
depends on the loss at which it is measured: at fixed train loss this dependence is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from planimeter.analysis.correlation import Correlation, coefficient_of, fisher_interval, numbers
from planimeter.analysis.population import Population
from planimeter.analysis.result import check_confidence
from planimeter.errors import InputError


def partial_correlation(
    population: Population,
    x: str,
    y: str,
    *,
    given: Sequence[str],
    coefficient: Literal["pearson", "spearman"] = "pearson",
    logarithm: Sequence[str] = (),
    confidence: float = 0.95,
) -> Correlation:
    """The correlation of x and y at fixed values of other columns.

    The interval is Fisher's for n less the number of fixed columns; for ranks its variance is
    1.06 times as large.

    Arguments:
        population: of which.
        x, y: quantities, outcomes or numerical factors.
        given: the columns held fixed.
        coefficient: r, or that of the ranks.
        logarithm: columns to take the logarithm of.
        confidence: of the interval.

    Raises:
        InputError: no such column; x or y among the fixed ones; no such coefficient.

    Source: Fisher 1924; Fieller, Hartley & Pearson 1957 (for ranks).
    """
    check_confidence(confidence)
    if x in given or y in given:
        raise InputError(f"{x!r} and {y!r} cannot be held fixed themselves: given {list(given)}")
    if coefficient not in ("pearson", "spearman"):
        raise InputError(f"no partial {coefficient!r} correlation; there are pearson, spearman")
    columns = [values for values, _ in numbers(population, (x, y, *given), logarithm)]
    if coefficient == "spearman":
        from scipy.stats import rankdata

        columns = [rankdata(values) for values in columns]
    a, b, *fixed = columns
    n = len(a)
    design = np.column_stack([np.ones(n), *fixed])
    one, other = residuals(design, a), residuals(design, b)
    controlled = int(np.linalg.matrix_rank(design)) - 1 if n else 0
    value = coefficient_of("pearson", one, other) if n >= 3 + controlled else np.nan
    # For ranks the sample is as if it were that much smaller.
    counted = n if coefficient == "pearson" else 3 + controlled + (n - 3 - controlled) / 1.06
    low, high = fisher_interval(value, counted, confidence, controlled=controlled)
    return Correlation(value, low, high, n, confidence=confidence, coefficient=coefficient)


def residuals(
    design: Float[np.ndarray, "n k"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """What the columns of a design do not predict; exactly 0 where only rounding is left."""
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = values - design @ solution
    scale = np.abs(values).max(initial=0.0)
    rest[np.abs(rest) < 1e-12 * scale] = 0.0
    return rest
