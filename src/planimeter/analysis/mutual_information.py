r"""How much a quantity tells of an outcome's order beyond what the factors tell.

With :math:`V_\mu = \mathrm{sgn}(\mu_1 - \mu_2)` and :math:`V_g` likewise over pairs of networks
that agree in the factors of a set S,

.. math:: K = \min_{|S| \le 2} \frac{I(V_\mu; V_g \mid S)}{H(V_g \mid S)},

between 0 (nothing) and 1. Pairs of equal outcome have no order and do not count.

Source: Jiang et al. 2019 (arXiv 1912.02178), Section 2.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from planimeter.analysis.jackknife import jackknife
from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, check_confidence
from planimeter.errors import InputError

REPETITIONS = 12
"""Members of a setting below which the bias of K is not under control."""


@dataclass(frozen=True)
class ConditionalInformation(Result):
    """K, with the set of factors that gives it.

    Arguments:
        factors: the set S.
        p_value: the share of random orders of the quantity, within equal settings of S, that do as
            well.
    """

    factors: tuple[str, ...] = field(default=(), kw_only=True)
    p_value: float = field(default=np.nan, kw_only=True)


def conditional_mutual_information(
    population: Population,
    quantity: str,
    outcome: str,
    *,
    factors: Sequence[str] | None = None,
    most: int = 2,
    permutations: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> ConditionalInformation:
    """K of a quantity and an outcome.

    Information estimated from a sample is too large. Value and interval are the jackknife's, which
    takes that off to first order; where a setting of the factors has fewer than 12 members more is
    left of it than the interval says, and its low end is 0 (a note says so). With 12 and more
    it covers in 89 to 96 of 100 cases. Whether K is more than chance is the p value's to say.

    Arguments:
        population: of which; members that lack either number do not count.
        quantity, outcome: columns.
        factors: which to condition on; None for all.
        most: the largest number of factors at once.
        permutations: how many.
        confidence: of the interval.
        seed: of the permutations.

    Raises:
        InputError: no such column or factor, or `most` is negative.
    """
    check_confidence(confidence)
    if most < 0:
        raise InputError(f"most must not be negative, got {most}")
    whole = population.finite(quantity, outcome)
    names = list(population.factors if factors is None else factors)
    sets = [s for size in range(min(most, len(names)) + 1) for s in combinations(names, size)]
    same = [_agree(whole, chosen) for chosen in sets]
    x, y = whole.column(quantity).values, whole.column(outcome).values
    n = len(whole)
    rng = np.random.default_rng(seed)

    other = np.sign(y[:, None] - y)

    def information(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        kept = np.ones(n, dtype=bool) if weights is None else weights > 0
        one, counted = np.sign(x[:, None] - x), kept[:, None] & kept
        return np.array(
            [_normalised(one, other, labels, agree & counted) for agree, labels in same]
        )

    def least(x: np.ndarray, weights: np.ndarray | None = None) -> float:
        each = information(x, weights)
        return float(np.nanmin(each)) if np.isfinite(each).any() else np.nan

    each = information(x)
    if not np.isfinite(each).any():
        return ConditionalInformation(np.nan, np.nan, np.nan, n, confidence=confidence)
    chosen = int(np.nanargmin(each))
    value = float(each[chosen])
    found = jackknife(
        partial(least, x), whole, names, confidence, range_of=(0.0, 1.0), unbiased=True
    )
    few = most > 0 and bool((np.bincount(same[-1][1]) < REPETITIONS).any())
    notes = (
        (f"settings with fewer than {REPETITIONS} members: K is rather too large",) if few else ()
    )
    labels = same[chosen][1]
    luck = []
    for _ in range(permutations):
        shuffled = x.copy()
        for label in np.unique(labels):
            inside = np.flatnonzero(labels == label)
            shuffled[inside] = x[rng.permutation(inside)]
        luck.append(least(shuffled))
    reached = sum(lucky >= value - 1e-12 for lucky in luck)
    return ConditionalInformation(
        found.value, 0.0 if few else found.low, found.high, n, confidence=confidence,
        notes=notes, factors=sets[chosen],
        p_value=(1 + reached) / (1 + permutations),
    )  # fmt: skip


def _agree(population: Population, factors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which members agree in all factors, and a number for each setting."""
    keys: list[tuple[Any, ...]] = [()] * len(population)
    if factors:
        keys = list(zip(*(population.factor(f).tolist() for f in factors), strict=True))
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    labels = np.array([numbers[key] for key in keys], dtype=int)
    return labels[:, None] == labels, labels


def _normalised(
    one: Float[np.ndarray, "n n"],
    other: Float[np.ndarray, "n n"],
    labels: np.ndarray,
    counted: np.ndarray,
) -> float:
    """I(V_mu; V_g | S) / H(V_g | S) over the pairs that count; NaN where H is 0."""
    keep = np.triu(counted, 1) & (other != 0)
    rows, columns = np.nonzero(keep)
    if not len(rows):
        return np.nan
    # Either order of a pair counts, which makes both signs equally likely.
    a = np.concatenate([one[rows, columns], -one[rows, columns]]).astype(int) + 1
    b = np.concatenate([other[rows, columns], -other[rows, columns]]).astype(int) + 1
    group = np.tile(labels[rows], 2)
    joint = np.zeros((int(group.max()) + 1, 3, 3))
    np.add.at(joint, (group, a, b), 1.0)
    joint /= joint.sum()
    whole = joint.sum((1, 2), keepdims=True)
    of_a, of_b = joint.sum(2, keepdims=True), joint.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nansum(joint * np.log(joint * whole / (of_a * of_b)))
        entropy = -np.nansum(of_b * np.log(of_b / whole))
    return float(information / entropy) if entropy > 0 else np.nan
