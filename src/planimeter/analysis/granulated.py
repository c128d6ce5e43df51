r"""Whether a quantity orders networks as an outcome does where one factor alone was changed.

Over pairs of networks that differ in factor i and agree in all other factors,

.. math:: \psi_i = \mathrm{mean}\ \mathrm{sgn}(\Delta\mu)\, \mathrm{sgn}(\Delta g), \qquad
          \Psi = \frac1k \sum_i \psi_i,

the mean being taken over the settings of the other factors first: Kendall's coefficient in
granules, so that a quantity cannot score by following one strong factor. The *sign-error* of an
environment, a pair of settings that differ in one factor, is :math:`\frac12 (1 - \tau)` over its
networks; its mean and its worst say whether a quantity can be trusted everywhere.

Source: Jiang et al. 2019 (arXiv 1912.02178), Eq. 6; Dziugaite et al. 2020 (arXiv 2010.11924).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from planimeter.analysis.jackknife import Weights, jackknife
from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, TooFewError, check_confidence
from planimeter.errors import InputError


@dataclass(frozen=True)
class GranulatedTau(Result):
    """Psi, and psi of each factor.

    Arguments:
        by_factor: psi by factor; NaN for a factor that no pair differs in alone.
    """

    by_factor: dict[str, Result] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class SignError(Result):
    """The mean sign-error over environments, 0 where every order is right.

    Arguments:
        worst: of an environment.
        worst_environment: its factor, the two values, and the setting of the other factors.
        environments: how many there are.
    """

    worst: float = field(default=np.nan, kw_only=True)
    worst_environment: tuple[str, Any, Any, dict[str, Any]] | None = field(
        default=None, kw_only=True
    )
    environments: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of members that differ in one factor, and the granule that each belongs to."""

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]
    granule: Int[np.ndarray, " p"]
    environment: Int[np.ndarray, " p"]
    names: list[tuple[Any, Any, dict[str, Any]]]


def granulated_tau(
    population: Population,
    quantity: str,
    outcome: str,
    *,
    factors: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> GranulatedTau:
    """Psi of a quantity against an outcome, and psi of each factor.

    The intervals come from the jackknife over members (`planimeter.analysis.jackknife`), widened by
    Student's t.

    Arguments:
        population: of which; members that lack either number do not count.
        quantity, outcome: columns.
        factors: which may differ one at a time; None for all. Members that agree in all of them
            (seeds that are no factor here) are repetitions.
        confidence: of the intervals.

    Raises:
        InputError: no such column or factor.
        TooFewError: no two members differ in one factor alone.
    """
    check_confidence(confidence)
    whole, names = _prepared(population, (quantity, outcome), factors)
    signs = _signs(whole, quantity, outcome)
    pairs = {name: _pairs(whole, name, names) for name in names}
    pairs = {name: found for name, found in pairs.items() if len(found.first)}
    if not pairs:
        raise TooFewError(f"no two members differ in one of {', '.join(names)} alone")

    def psi(found: _Pairs, weights: Weights) -> float:
        return _mean_of_means(signs, found, found.granule, weights)

    by_factor = {
        name: jackknife(lambda w, p=found: psi(p, w), whole, names, confidence)
        for name, found in pairs.items()
    }
    missing = {
        name: Result(np.nan, np.nan, np.nan, len(whole), confidence=confidence)
        for name in names
        if name not in pairs
    }
    total = jackknife(
        lambda w: float(np.mean([psi(found, w) for found in pairs.values()])),
        whole,
        names,
        confidence,
    )
    return GranulatedTau(
        total.value,
        total.low,
        total.high,
        total.n,
        confidence=confidence,
        by_factor=by_factor | missing,
    )


def sign_error(
    population: Population,
    quantity: str,
    outcome: str,
    *,
    factors: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> SignError:
    """The sign-error of a quantity over all environments: mean with interval, and worst.

    Arguments: as of `granulated_tau`.

    Raises:
        InputError, TooFewError: as of `granulated_tau`.
    """
    check_confidence(confidence)
    whole, names = _prepared(population, (quantity, outcome), factors)
    signs = _signs(whole, quantity, outcome)
    pairs = {name: _pairs(whole, name, names) for name in names}
    if not any(len(found.first) for found in pairs.values()):
        raise TooFewError(f"no two members differ in one of {', '.join(names)} alone")

    def errors(weights: Weights) -> np.ndarray:
        parts = [_means(signs, found, found.environment, weights) for found in pairs.values()]
        return (1 - np.concatenate(parts)) / 2

    every = errors(np.ones(len(whole)))
    mean = jackknife(lambda w: float(np.nanmean(errors(w))), whole, names, confidence)
    worst = int(np.nanargmax(every))
    all_names = [(name, *own) for name, found in pairs.items() for own in found.names]
    return SignError(
        mean.value,
        max(0.0, mean.low),
        min(1.0, mean.high),
        mean.n,
        confidence=confidence,
        worst=float(every[worst]),
        worst_environment=all_names[worst],
        environments=len(every),
    )


def _prepared(
    population: Population, columns: tuple[str, ...], factors: Sequence[str] | None
) -> tuple[Population, list[str]]:
    whole = population.finite(*columns)
    names = list(population.factors if factors is None else factors)
    for name in names:
        population.factor(name)
    if not names:
        raise InputError("the population has no factors: nothing was changed one at a time")
    return whole, names


def _signs(population: Population, quantity: str, outcome: str) -> Float[np.ndarray, "n n"]:
    a, b = population.column(quantity).values, population.column(outcome).values
    return np.sign(a[:, None] - a) * np.sign(b[:, None] - b)


def _pairs(population: Population, name: str, factors: list[str]) -> _Pairs:
    """The pairs that differ in `name` alone."""
    others = [f for f in factors if f != name]
    own = population.factor(name).tolist()
    granules: dict[tuple[Any, ...], list[int]] = {}
    keys = zip(*(population.factor(f).tolist() for f in others), strict=True)
    for row, key in enumerate(keys if others else [()] * len(population)):
        granules.setdefault(tuple(key), []).append(row)
    level = {value: i for i, value in enumerate(dict.fromkeys(own))}
    first, second, granule, environment = [], [], [], []
    names: dict[tuple[int, Any, Any], int] = {}
    settings = [dict(zip(others, key, strict=True)) for key in granules]
    for number, rows in enumerate(granules.values()):
        for place, i in enumerate(rows):
            for j in rows[place + 1 :]:
                if own[i] == own[j]:
                    continue
                low, high = sorted((own[i], own[j]), key=lambda v: level[v])
                first.append(i)
                second.append(j)
                granule.append(number)
                environment.append(names.setdefault((number, low, high), len(names)))
    return _Pairs(
        np.array(first, dtype=int),
        np.array(second, dtype=int),
        np.array(granule, dtype=int),
        np.array(environment, dtype=int),
        [(low, high, settings[number]) for number, low, high in names],
    )


def _means(
    signs: Float[np.ndarray, "n n"], pairs: _Pairs, group: Int[np.ndarray, " p"], weights: Weights
) -> Float[np.ndarray, " g"]:
    """The mean sign of each group's pairs, NaN where none is left."""
    if not len(pairs.first):
        return np.empty(0)
    of_pair = weights[pairs.first] * weights[pairs.second]
    count = int(group.max()) + 1
    total = np.bincount(group, of_pair * signs[pairs.first, pairs.second], count)
    size = np.bincount(group, of_pair, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, total / size, np.nan)


def _mean_of_means(
    signs: Float[np.ndarray, "n n"], pairs: _Pairs, group: Int[np.ndarray, " p"], weights: Weights
) -> float:
    means = _means(signs, pairs, group, weights)
    return float(np.nanmean(means)) if np.isfinite(means).any() else np.nan
