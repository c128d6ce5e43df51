r"""Whether two columns are the same number measured twice.

.. math:: \exp\big(\overline{\log a - \log b}\big) \pm, \qquad
          \exp\big(\bar d \pm t_{n-1}\, s_d \sqrt{1 + 1/n}\big),

the mean ratio with its interval, and the limits between which the ratio of one more member lies.
Correlation is no agreement: twice as large everywhere correlates perfectly.

Source: Bland & Altman 1986, on logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from planimeter.analysis.correlation import numbers
from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, check_confidence


@dataclass(frozen=True)
class Agreement(Result):
    """The mean ratio of two columns.

    Arguments:
        limits: between which the ratio of another member lies, with the same confidence.
    """

    limits: tuple[float, float] = field(default=(np.nan, np.nan), kw_only=True)

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return super().__str__()
        return (
            f"× {self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n}; another one "
            f"between × {self.limits[0]:.3g} and × {self.limits[1]:.3g})"
        )


def agreement(population: Population, a: str, b: str, *, confidence: float = 0.95) -> Agreement:
    """The ratio a / b over the members that have both.

    Arguments:
        population: of which.
        a, b: columns of positive numbers.
        confidence: of interval and limits.

    Raises:
        InputError: no such column, or a number that is not positive.
    """
    check_confidence(confidence)
    (one, _), (other, _) = numbers(population, (a, b), (a, b))
    apart, n = one - other, len(one)
    if n < 2:
        return Agreement(np.nan, np.nan, np.nan, n, confidence=confidence)
    t = float(stdtrit(n - 1, 0.5 + confidence / 2))
    mean, spread = float(apart.mean()), float(apart.std(ddof=1))
    near, far = t * spread / np.sqrt(n), t * spread * np.sqrt(1 + 1 / n)
    ends = np.exp([mean, mean - near, mean + near, mean - far, mean + far])
    value, low, high, least, most = (float(v) for v in ends)
    return Agreement(value, low, high, n, confidence=confidence, limits=(least, most))
