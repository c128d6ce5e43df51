r"""How a column moves along a factor: the slope of a straight line.

.. math:: y = \text{block} + \beta x + \text{noise}, \qquad
          \hat\beta \pm t_\nu\, \frac{s}{\sqrt{\sum_i \tilde x_i^2}},

with x centred within blocks (a seed, a network followed over epochs), which may each have a level
of their own. x is the factor, its logarithm, or its rank among the levels, where only the order
matters; y may be a logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from planimeter.analysis.correlation import numbers
from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, TooFewError, check_confidence
from planimeter.errors import InputError

Scale = Literal["linear", "log", "rank"]


@dataclass(frozen=True)
class Trend(Result):
    """A slope: units of the column for one of the factor, its e-fold, or its level.

    Arguments:
        scale: of the factor.
        logarithm: whether the column was taken as its logarithm.
    """

    scale: Scale = field(default="linear", kw_only=True)
    logarithm: bool = field(default=False, kw_only=True)


def trend(
    population: Population,
    column: str,
    factor: str,
    *,
    scale: Scale = "linear",
    logarithm: bool = False,
    blocks: str | None = None,
    confidence: float = 0.95,
) -> Trend:
    """The slope of a column along a factor.

    Arguments:
        population: of which.
        column: quantity or outcome.
        factor: a numerical factor (or any column).
        scale: "linear"; "log", which needs positive values; "rank", levels numbered 0, 1, 2, ….
        logarithm: take the logarithm of the column.
        blocks: a factor whose values have levels of their own; None for one level.
        confidence: of the interval.

    Raises:
        InputError: no such column or scale, or a logarithm that is none.
        TooFewError: the factor has one level, or too few members are left beside the blocks.
    """
    check_confidence(confidence)
    if scale not in ("linear", "log", "rank"):
        raise InputError(f"scale is linear, log or rank, not {scale!r}")
    logs = [name for name, on in ((column, logarithm), (factor, scale == "log")) if on]
    (y, _), (x, _) = numbers(population, (column, factor), logs)
    whole = population.finite(column, factor)
    if scale == "rank":
        x = np.unique(x, return_inverse=True)[1].astype(float)
    groups = np.zeros(len(y), dtype=int)
    if blocks is not None:
        levels = whole.levels(blocks)
        groups = np.array([levels.index(v) for v in whole.factor(blocks).tolist()], dtype=int)
    for group in np.unique(groups):
        inside = groups == group
        x[inside] -= x[inside].mean()
        y[inside] -= y[inside].mean()
    size = float(x @ x)
    freedom = len(y) - 1 - len(np.unique(groups))
    if size <= 1e-24 * max(1.0, float(np.abs(x).max(initial=0.0))):
        raise TooFewError(
            f"{factor!r} has one value{' in every block' if blocks else ''}: there is no trend "
            f"along it"
        )
    if freedom < 1:
        raise TooFewError(
            f"{len(y)} members in {len(np.unique(groups))} blocks leave nothing to see the noise by"
        )
    slope = float(x @ y) / size
    noise = float(np.sum((y - slope * x) ** 2)) / freedom
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * np.sqrt(noise / size)
    return Trend(
        slope, slope - half, slope + half, len(y), confidence=confidence, scale=scale,
        logarithm=logarithm,
    )  # fmt: skip
