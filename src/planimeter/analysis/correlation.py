r"""Correlations between two columns, with intervals.

Pearson's r, Spearman's rho (r of the ranks) and Kendall's tau-b. The interval of r is the wider, at
either end, of the percentile bootstrap over members, which is too narrow for a few of them, and of
Fisher's :math:`\tanh(\mathrm{artanh}\, r \pm z s)` with :math:`s^2 = 1/(n-3)`, which supposes
normal variables; that of the ranks is `rank_interval`, which supposes that some monotone maps make
them normal.

Where the columns have standard errors, the correlation is that of the true numbers: value and
interval are divided by :math:`\sqrt{R_x R_y}` (`planimeter.analysis.reliability`), for ranks as
those of the normal variables behind them.

Source: Fisher 1921; Spearman 1904 (attenuation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from planimeter.analysis.population import Population
from planimeter.analysis.rank_intervals import population as of_normal
from planimeter.analysis.rank_intervals import rank_interval
from planimeter.analysis.reliability import LEAST, rank_reliability, reliability
from planimeter.analysis.result import Result, check_confidence, simultaneous
from planimeter.errors import InputError

Coefficient = Literal["pearson", "spearman", "kendall"]
Vector = Float[np.ndarray, " n"]
Resampled = Float[np.ndarray, "b n"]


@dataclass(frozen=True)
class Correlation(Result):
    """A correlation coefficient and its interval.

    Arguments:
        value: the coefficient; NaN when either variable is constant or fewer than 3 points.
        low, high: ends of the interval.
        n: points.
        coefficient: which.
        reliability: the share of the variances that is not measurement error, sqrt(R_x R_y).
    """

    coefficient: Coefficient = field(default="pearson", kw_only=True)
    reliability: float = field(default=1.0, kw_only=True)

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return f"– ({self.n} network{'' if self.n == 1 else 's'})"
        return f"{self.value:+.2f} [{self.low:+.2f},{self.high:+.2f}]"


def correlate(
    population: Population,
    x: str,
    y: str,
    *,
    coefficient: Coefficient = "pearson",
    logarithm: Sequence[str] = (),
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """The correlation of two columns over the members that have both.

    Arguments:
        population: of which.
        x, y: quantities, outcomes or numerical factors.
        coefficient: which.
        logarithm: columns to take the logarithm of, which must be positive.
        bootstrap: resamples, of Pearson's r.
        confidence: of the interval.
        seed: of the resampling.

    Raises:
        InputError: no such column or coefficient, or a logarithm of a number that is not positive.
    """
    if coefficient not in get_args(Coefficient):
        raise InputError(
            f"no coefficient {coefficient!r}; there are {', '.join(get_args(Coefficient))}"
        )
    (a, da), (b, db) = numbers(population, (x, y), logarithm)
    return correlations(
        a, b, x_errors=da, y_errors=db, bootstrap=bootstrap, confidence=confidence, seed=seed,
        coefficients=(coefficient,),
    )[coefficient]  # fmt: skip


def correlation_table(
    population: Population,
    quantities: Sequence[str],
    outcome: str,
    *,
    coefficient: Coefficient = "pearson",
    logarithm: Sequence[str] = (),
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Correlation]:
    """Correlations of several quantities with one outcome; the intervals hold all together.

    The confidence of each is that of `simultaneous`, so that none is picked out by luck.
    """
    each = simultaneous(confidence, max(1, len(quantities)))
    return {
        name: correlate(
            population, name, outcome, coefficient=coefficient,
            logarithm=[n for n in logarithm if n in (name, outcome)],
            bootstrap=bootstrap, confidence=each, seed=seed,
        )
        for name in quantities
    }  # fmt: skip


def numbers(
    population: Population, names: Sequence[str], logarithm: Sequence[str] = ()
) -> list[tuple[Vector, Vector]]:
    """Values and errors of columns over the members that have all of them, some as logarithms.

    Raises:
        InputError: no such column, or a logarithm of a number that is not positive.
    """
    for name in logarithm:
        if name not in names:
            raise InputError(f"the logarithm of {name!r} is asked for, which is none of {names}")
    whole = population.finite(*names)
    columns = []
    for name in names:
        column = whole.column(name)
        values, errors = column.values, column.errors
        if name in logarithm:
            if (values <= 0).any():
                worst = int(np.argmin(values))
                raise InputError(
                    f"{name!r} of {whole.members[worst]} is {values[worst]:g}: it has no logarithm"
                )
            values, errors = np.log(values), errors / values
        columns.append((values, errors))
    return columns


def correlations(
    x: Vector,
    y: Vector,
    *,
    x_errors: Vector | None = None,
    y_errors: Vector | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    coefficients: Sequence[Coefficient] = ("pearson", "spearman", "kendall"),
) -> dict[str, Correlation]:
    """Correlation coefficients of two samples, each with its interval.

    Arguments:
        x, y: (n,) samples, paired.
        x_errors, y_errors: (n,) their standard errors; None for none.
        bootstrap: resamples.
        confidence: of the interval.
        seed: of the resampling.
        coefficients: which.

    Raises:
        InputError: the samples are of different lengths or not finite.
    """
    check_confidence(confidence)
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(
            f"correlations need two samples of one length, all finite: got {x.shape} and {y.shape}"
        )
    if n < 3:
        return {
            name: Correlation(np.nan, np.nan, np.nan, n, confidence=confidence, coefficient=name)
            for name in coefficients
        }
    results: dict[str, Correlation] = {}
    for name in coefficients:
        value = coefficient_of(name, x, y)
        low, high = np.nan, np.nan
        if name != "pearson" and np.isfinite(value):
            low, high = rank_interval(name, value, n, confidence)
        elif np.isfinite(value):
            low, high = fisher_interval(value, n, confidence)
            least, most = _bootstrap(x, y, bootstrap, confidence, seed)
            low, high = min(low, least), max(high, most)
        results[name] = _attenuated(
            name, (value, low, high), (x, y), (x_errors, y_errors), n, confidence
        )
    return results


def _attenuated(
    name: Coefficient,
    ends: tuple[float, float, float],
    samples: tuple[Vector, Vector],
    errors: tuple[Vector | None, Vector | None],
    n: int,
    confidence: float,
) -> Correlation:
    """Value and interval for the true numbers behind the measured ones."""
    of = reliability if name == "pearson" else rank_reliability
    shares = [1.0 if e is None else of(s, e) for s, e in zip(samples, errors, strict=True)]
    share = math.sqrt(shares[0] * shares[1])
    if share == 1:
        return Correlation(*ends, n, confidence=confidence, coefficient=name)
    if min(shares) < LEAST:
        note = "errors of measurement hide the differences between members"
        return Correlation(
            ends[0], -1.0, 1.0, n, confidence=confidence, notes=(note,), coefficient=name,
            reliability=share,
        )  # fmt: skip
    value, low, high = (_through_normal(name, end, share) for end in ends)
    return Correlation(
        value, low, high, n, confidence=confidence, coefficient=name, reliability=share
    )


def _through_normal(name: Coefficient, value: float, share: float) -> float:
    """A coefficient divided by the reliability, as that of normal variables."""
    if not np.isfinite(value):
        return value
    if name == "pearson":
        return float(np.clip(value / share, -1, 1))
    rho = 2 * np.sin(np.pi * value / 6) if name == "spearman" else np.sin(np.pi * value / 2)
    return float(of_normal(name, np.clip(rho / share, -1, 1)))


def _bootstrap(
    x: Vector, y: Vector, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """The percentile interval of Pearson's r; (1, -1), which widens nothing, without resamples."""
    rows = np.random.default_rng(seed).integers(0, len(x), size=(resamples, len(x)))
    drawn = _row_correlation(x[rows], y[rows])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return 1.0, -1.0
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def fisher_interval(
    r: float, n: float, confidence: float, *, controlled: int = 0
) -> tuple[float, float]:
    """Fisher's interval of Pearson's r of n points, with some variables held fixed."""
    if not np.isfinite(r):
        return np.nan, np.nan
    if n <= 3 + controlled:
        return -1.0, 1.0
    half = ndtri(0.5 + confidence / 2) / np.sqrt(n - 3 - controlled)
    centre = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def coefficient_of(name: Coefficient, x: Vector, y: Vector) -> float:
    """A coefficient of two samples, NaN where either is constant."""
    if name == "kendall":
        one, other = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
        size = (one * one).sum() * (other * other).sum()
        return float((one * other).sum() / np.sqrt(size)) if size > 0 else np.nan
    if name == "spearman":
        from scipy.stats import rankdata  # takes as long to import as all of SciPy that is used

        x, y = rankdata(x), rankdata(y)
    return float(_row_correlation(x[None], y[None])[0])


def _row_correlation(a: Resampled, b: Resampled) -> Vector:
    # A constant row has no correlation; after subtracting its mean only rounding would be left.
    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(constant, np.nan, r)
