r"""Correlations between a measure and the test error, with intervals.

Pearson's r, Spearman's rho (r of the ranks) and Kendall's tau-b. Intervals are the wider, at
either end, of the percentile bootstrap over trials, which is too narrow for a few of them, and of
what follows from normal variables: for r Fisher's :math:`\tanh(\mathrm{artanh}\, r \pm z s)`
with :math:`s^2 = 1/(n-3)`, for ranks `rank_interval`.

Source: Fisher 1921.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
from scipy.special import ndtri

from planimeter.errors import InputError
from planimeter.study.rank_intervals import Coefficient, rank_interval

Vector = np.ndarray


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient and its interval.

    Arguments:
        value: the coefficient; NaN when either variable is constant or fewer than 3 points.
        low, high: ends of the interval.
        n: points.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return f"– ({self.n} network{'' if self.n == 1 else 's'})"
        return f"{self.value:+.2f} [{self.low:+.2f},{self.high:+.2f}]"


def correlations(
    x: Vector, y: Vector, *, bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Correlation]:
    """Pearson, Spearman and Kendall coefficients of two samples, each with its interval.

    Arguments:
        x, y: (n,) samples, paired.
        bootstrap: resamples.
        confidence: of the interval.
        seed: of the resampling.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(
            f"correlations need two samples of one length, all finite: got {x.shape} and {y.shape}"
        )
    if n < 3:
        nothing = Correlation(np.nan, np.nan, np.nan, n)
        return {"pearson": nothing, "spearman": nothing, "kendall": nothing}
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, n, size=(bootstrap, n))
    identity = np.arange(n)[None]
    results = {}
    for name, coefficient in _COEFFICIENTS.items():
        value = float(coefficient(x, y, identity)[0])
        resampled = coefficient(x, y, rows)
        resampled = resampled[np.isfinite(resampled)]
        tail = (1 - confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail]) if len(resampled) else (np.nan, np.nan)
        least, most = _normal_interval(name, value, n, confidence)
        results[name] = Correlation(value, min(float(low), least), max(float(high), most), n)
    return results


def _normal_interval(name: str, value: float, n: int, confidence: float) -> tuple[float, float]:
    """The interval for normal variables; all that r can be where there are too few points."""
    if not np.isfinite(value):
        return np.nan, np.nan
    if name in get_args(Coefficient):
        return rank_interval(cast(Coefficient, name), value, n, confidence)
    if n <= 3:
        return -1.0, 1.0
    half = ndtri(0.5 + confidence / 2) / np.sqrt(n - 3)
    centre = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def _pearson(x: Vector, y: Vector, rows: Vector) -> Vector:
    return _row_correlation(x[rows], y[rows])


def _spearman(x: Vector, y: Vector, rows: Vector) -> Vector:
    from scipy.stats import rankdata  # takes as long to import as all of SciPy that is used

    return _row_correlation(rankdata(x[rows], axis=1), rankdata(y[rows], axis=1))


def _kendall(x: Vector, y: Vector, rows: Vector) -> Vector:
    """tau-b from the matrices of pairwise signs, which resampling only re-indexes."""
    signs_x, signs_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    result = np.empty(len(rows))
    for i, row in enumerate(rows):
        a, b = signs_x[np.ix_(row, row)], signs_y[np.ix_(row, row)]
        with np.errstate(invalid="ignore", divide="ignore"):
            result[i] = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return result


def _row_correlation(a: Vector, b: Vector) -> Vector:
    # A constant row has no correlation; after subtracting its mean only rounding would be left.
    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(constant, np.nan, r)


_COEFFICIENTS = {"pearson": _pearson, "spearman": _spearman, "kendall": _kendall}
