r"""How much a column differs between two conditions.

The difference of means, or on logarithms the ratio of geometric means. Where the conditions share
a factor (a seed), members are paired by it and what the pairs have in common drops out:

.. math:: \bar d \pm t_{m-1}\, \frac{s_d}{\sqrt m} \quad\text{(paired)}, \qquad
          \bar x - \bar y \pm t_\nu \sqrt{\tfrac{s_x^2}{n_x} + \tfrac{s_y^2}{n_y}}
          \quad\text{(Welch)}.

The errors of measurement are part of the spread, so they are in the interval already; with one
member a condition they are all that there is.

Source: Student 1908; Welch 1947.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from planimeter.analysis.population import Column, Population
from planimeter.analysis.result import Result, TooFewError, check_confidence
from planimeter.errors import InputError


@dataclass(frozen=True)
class Contrast(Result):
    """A difference or ratio of two conditions; n counts pairs where there are pairs.

    Arguments:
        paired: whether members were paired.
        ratio: whether it is a ratio, whose null value is 1, not 0.
    """

    paired: bool = field(default=False, kw_only=True)
    ratio: bool = field(default=False, kw_only=True)

    def __str__(self) -> str:
        text = super().__str__()
        return (
            f"× {text.removeprefix('+').replace('[+', '[').replace(', +', ', ')}"
            if (self.ratio and np.isfinite(self.value))
            else text
        )


def contrast(
    population: Population,
    column: str,
    condition: Mapping[str, Any],
    against: Mapping[str, Any],
    *,
    pair: str | tuple[str, ...] | None = None,
    ratio: bool = False,
    confidence: float = 0.95,
) -> Contrast:
    """The mean of a column under one condition less (or over) that under another.

    Arguments:
        population: of which.
        column: quantity, outcome or numerical factor.
        condition, against: values of factors, as of `Population.where`.
        pair: factors by which members of the two are paired; each combination of their values must
            occur at most once in a condition. None for independent members.
        ratio: the ratio of geometric means; all numbers must be positive.
        confidence: of the interval.

    Raises:
        InputError: no such column or factor, a member of both, or a number without logarithm.
        TooFewError: a condition has no member, or there is no pair.
    """
    check_confidence(confidence)
    one, other = population.where(**condition), population.where(**against)
    if set(one.members) & set(other.members):
        raise InputError(f"{dict(condition)} and {dict(against)} have members in common")
    one, other = one.finite(column), other.finite(column)
    sides = [_numbers(side, column, ratio) for side in (one, other)]
    left_out: tuple[str, ...] = ()
    if pair is not None:
        factors = (pair,) if isinstance(pair, str) else pair
        first, second = (_by_pair(side, factors) for side in (one, other))
        common = [key for key in first if key in second]
        if not common:
            raise TooFewError(
                f"no value of {', '.join(factors)} occurs under both {dict(condition)} and "
                f"{dict(against)}: there are no pairs"
            )
        alone = len(first) + len(second) - 2 * len(common)
        if alone:
            left_out = (f"{alone} members have no partner and are left out",)
        rows = [first[k] for k in common], [second[k] for k in common]
        a, b = (
            Column(side.values[row], side.errors[row])
            for side, row in zip(sides, rows, strict=True)
        )
        n = len(common)
        middle = float(np.mean(a.values - b.values))
        spread = float(np.std(a.values - b.values, ddof=1)) / np.sqrt(n) if n > 1 else np.nan
        freedom = n - 1.0
    else:
        a, b = sides
        n = len(a.values) + len(b.values)
        if not len(a.values) or not len(b.values):
            raise TooFewError(f"{column!r} has no finite values under one of the two conditions")
        middle = float(a.values.mean() - b.values.mean())
        spread, freedom = _welch(a.values, b.values)
    if np.isfinite(spread):
        half = float(stdtrit(freedom, 0.5 + confidence / 2)) * spread
        notes = left_out
    else:  # a single member of each: only the errors of measurement are known
        errors = np.sqrt(
            np.mean(a.errors**2) / len(a.errors) + np.mean(b.errors**2) / len(b.errors)
        )
        half = float(ndtri(0.5 + confidence / 2) * errors) if errors > 0 else np.inf
        notes = (*left_out, "one member a condition: the spread between members is not known")
    ends = np.array([middle, middle - half, middle + half])
    value, low, high = (float(v) for v in (np.exp(ends) if ratio else ends))
    return Contrast(
        value, low, high, n, confidence=confidence, notes=notes, paired=pair is not None,
        ratio=ratio,
    )  # fmt: skip


def _numbers(side: Population, name: str, ratio: bool) -> Column:
    column = side.column(name)
    if not ratio:
        return column
    if (column.values <= 0).any():
        worst = int(np.argmin(column.values))
        raise InputError(
            f"{name!r} of {side.members[worst]} is {column.values[worst]:g}: a ratio needs "
            f"positive numbers"
        )
    return Column(np.log(column.values), column.errors / column.values)


def _by_pair(side: Population, factors: tuple[str, ...]) -> dict[tuple[Any, ...], int]:
    keys = list(zip(*(side.factor(name).tolist() for name in factors), strict=True))
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(
            f"{dict(zip(factors, twice, strict=True))} occurs more than once under one condition: "
            f"pair by more factors"
        )
    return {key: row for row, key in enumerate(keys)}


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of means, and its degrees of freedom."""
    if len(a) < 2 or len(b) < 2:
        return np.nan, np.nan
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    if parts.sum() == 0:
        return 0.0, 1.0
    freedom = parts.sum() ** 2 / (parts**2 / (np.array([len(a), len(b)]) - 1)).sum()
    return float(np.sqrt(parts.sum())), float(freedom)
