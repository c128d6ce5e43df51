r"""Trace, diagonal and Frobenius norm from products with random vectors.

For v with independent ±1 entries (Rademacher), :math:`E[v^T A v] = \mathrm{tr} A` and
:math:`E\|A v\|^2 = \|A\|_F^2` (Hutchinson 1990). Where few eigenvalues dominate, Hutch++ takes a
subspace Q that holds them exactly and probes only the rest,

.. math:: \mathrm{tr} A = \mathrm{tr}\, Q^T A Q + E[g^T (I - QQ^T) A (I - QQ^T) g],

and XTrace (Epperly, Tropp and Webber 2024) uses every vector for both, leaving it out of its own
subspace. The standard error comes from the spread of the probes. When as many products are asked
for as there are coordinates, the coordinate vectors are used and the result is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature.stochastic import (
    WIDTH,
    identity_columns,
    mean_estimate,
    products_with,
    rademacher,
)
from planimeter.curvature.xtrace import xtrace
from planimeter.errors import InputError
from planimeter.estimate import Estimate, standard_error, widening
from planimeter.operator import CurvatureOperator, check_operator
from planimeter.printing import short_repr

Progress = Callable[[int, int], None]
METHODS = ("hutchinson", "hutch++", "xtrace")
LEAST = 8
"""Probes before an early stop is considered."""


def trace(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    method: str = "hutch++",
    tolerance: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The trace.

    Arguments:
        operator: size P.
        probes: products at most; from P on, the result is exact.
        method: "hutchinson", "hutch++" or "xtrace".
        tolerance: stop when the standard error is at most this part of |trace|; 0 uses all
            probes. With a tolerance that `probes` do not reach, `converged` is False.
        seed: of the probes.
        progress: called with the products done and their greatest number.

    Raises:
        InputError: too few probes for a standard error, an unknown method, or a negative tolerance.

    Source: Hutchinson 1990; Meyer et al. 2021 (Hutch++); Epperly et al. 2024 (XTrace).
    """
    started = time.perf_counter()
    _check(operator, probes, tolerance)
    if method not in METHODS:
        raise InputError(f"no trace method {method!r}; there are {', '.join(METHODS)}")
    if probes >= operator.size:
        return _exact(_total(operator, _along)[0], "trace", operator, started)
    if method == "xtrace":
        result = xtrace(operator, probes, tolerance, seed, progress)
    else:
        (result,) = _probed(operator, [_TRACE], method, probes, tolerance, seed, progress)
    return replace(result, seconds=time.perf_counter() - started)


def frobenius_norm(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    method: str = "hutch++",
    tolerance: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The Frobenius norm, from :math:`\|A\|_F^2 = \|A Q\|_F^2 + E \|A (I - QQ^T) g\|^2`.

    Arguments, errors and source as for `trace` without "xtrace"; the error of the root is to
    first order.
    """
    started = time.perf_counter()
    _check(operator, probes, tolerance)
    if method not in METHODS[:2]:
        raise InputError(f"no norm method {method!r}; there are {', '.join(METHODS[:2])}")
    if probes >= operator.size:
        total = math.sqrt(_total(operator, _squared)[0])
        return _exact(total, "Frobenius norm", operator, started)

    # The relative error of a root is half of that of what it is taken of.
    (square,) = _probed(operator, [_SQUARE], method, probes, 2 * tolerance, seed, progress)
    return replace(square.sqrt(), seconds=time.perf_counter() - started)


def trace_and_frobenius_norm(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Estimate, Estimate]:
    """`trace` and `frobenius_norm` by Hutch++ from the same products, digit by digit as alone.

    Arguments, errors and source as for `trace`.
    """
    started = time.perf_counter()
    _check(operator, probes, 0.0)
    if probes >= operator.size:
        total, square = _total(operator, _along, _squared)
        return (
            _exact(total, "trace", operator, started),
            _exact(math.sqrt(square), "Frobenius norm", operator, started),
        )
    one, two = _probed(operator, [_TRACE, _SQUARE], "hutch++", probes, 0.0, seed, progress)
    spent = time.perf_counter() - started
    return replace(one, seconds=spent), replace(two.sqrt(), seconds=spent)


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal of a matrix, entry by entry.

    Arguments:
        values: (P,).
        stderr: (P,) standard errors, 0 where exact.
        method, products: how they were obtained.
        seed, dtype, device, seconds: of the computation.
    """

    values: Float[Tensor, " P"]
    stderr: Float[Tensor, " P"]
    method: str
    products: int
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)


def diagonal(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> DiagonalEstimate:
    r"""The diagonal, :math:`\frac1s \sum_j v_j \circ A v_j` with signs :math:`v_j`.

    Arguments and errors as for `trace`; the variance of entry i is
    :math:`\sum_{j \ne i} A_{ij}^2 / s`.

    Source: Bekas, Kokiopoulou and Saad 2007.
    """
    started = time.perf_counter()
    _check(operator, probes, 0.0)
    size = operator.size
    if probes >= size:
        parts = [(c * (operator @ c)).sum(1) for c in identity_columns(operator, WIDTH)]
        exact = torch.stack(parts).sum(0)
        return DiagonalEstimate(
            exact,
            torch.zeros_like(exact),
            "exact diagonal, coordinate vectors",
            size,
            None,
            str(operator.dtype).removeprefix("torch."),
            str(operator.device),
            time.perf_counter() - started,
        )
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(size, dtype=torch.float64, device=operator.device)
    squares, done = torch.zeros_like(total), 0
    while done < probes:
        v = rademacher(operator, min(WIDTH, probes - done), generator)
        terms = v * (operator @ v)
        total += terms.sum(1)
        squares += (terms**2).sum(1)
        done += v.shape[1]
        progress(done, probes)
    mean = total / probes
    spread = (squares / probes - mean**2).clamp_min(0) * probes / (probes - 1)
    return DiagonalEstimate(
        mean,
        widening(probes) * (spread / probes).sqrt(),
        f"Hutchinson diagonal, {probes} probes",
        probes,
        seed,
        str(operator.dtype).removeprefix("torch."),
        str(operator.device),
        time.perf_counter() - started,
    )


def _check(operator: CurvatureOperator, probes: int, tolerance: float) -> None:
    check_operator(operator)
    if probes < 2:
        raise InputError(f"{probes} probes leave no standard error: use at least 2")
    if tolerance < 0:
        raise InputError(f"tolerance must not be negative, got {tolerance}")


def _exact(value: float, what: str, operator: CurvatureOperator, started: float) -> Estimate:
    return Estimate(
        value,
        0.0,
        f"exact {what}, coordinate vectors",
        operator.size,
        dtype=str(operator.dtype).removeprefix("torch."),
        device=str(operator.device),
        seconds=time.perf_counter() - started,
    )


Statistic = Callable[[Tensor, Tensor], Tensor]


def _along(v: Float[Tensor, "P k"], product: Float[Tensor, "P k"]) -> Float[Tensor, " k"]:
    return (v * product).sum(0)


def _squared(v: Float[Tensor, "P k"], product: Float[Tensor, "P k"]) -> Float[Tensor, " k"]:
    return (product * product).sum(0)


_TRACE, _SQUARE = (_along, "trace"), (_squared, "squared Frobenius norm")


def _total(operator: CurvatureOperator, *statistics: Statistic) -> list[float]:
    """The sums of statistics(v, A v) over the coordinate vectors."""
    totals = [0.0] * len(statistics)
    for columns in identity_columns(operator, WIDTH):
        images = operator @ columns
        for place, statistic in enumerate(statistics):
            totals[place] += float(statistic(columns, images).sum())
    return totals


def _sketch(method: str, probes: int) -> int:
    """Columns of the subspace of Hutch++, each of which costs two products; a third of them all."""
    return probes // 3 if method == "hutch++" and probes >= 6 else 0


def _probed(
    operator: CurvatureOperator,
    wanted: Sequence[tuple[Statistic, str]],
    method: str,
    probes: int,
    tolerance: float,
    seed: int,
    progress: Progress,
) -> list[Estimate]:
    """Sums over an orthonormal basis of `statistic(v, A v)`: exact on a sketch, probed outside.

    Arguments:
        wanted: statistics and their names; the tolerance is that of the first.
    """
    generator = torch.Generator().manual_seed(seed)
    sketch = _sketch(method, probes)
    done, known = 0, [0.0] * len(wanted)
    basis = torch.zeros(operator.size, 0, dtype=torch.float64, device=operator.device)
    if sketch:
        images = products_with(operator, rademacher(operator, sketch, generator))
        basis, _ = torch.linalg.qr(images)
        images = products_with(operator, basis)
        known = [float(statistic(basis, images).sum()) for statistic, _ in wanted]
        done = 2 * sketch
        progress(done, probes)
    samples: list[list[Tensor]] = [[] for _ in wanted]
    reached = False
    while done < probes and not reached:
        v = rademacher(operator, min(WIDTH, probes - done), generator)
        v = v - basis @ (basis.T @ v)
        images = operator @ v
        for own, (statistic, _) in zip(samples, wanted, strict=True):
            own.append(statistic(v, images))
        done += v.shape[1]
        progress(done, probes)
        if tolerance and sum(map(len, samples[0])) >= LEAST:
            found = torch.cat(samples[0])
            reached = standard_error(found) <= tolerance * abs(known[0] + float(found.mean()))
    results = []
    for own, offset, (_, what) in zip(samples, known, wanted, strict=True):
        found = torch.cat(own).cpu()
        name = f"Hutch++ {what}, {sketch} vectors and" if sketch else f"Hutchinson {what},"
        results.append(
            mean_estimate(
                found,
                f"{name} {len(found)} probes",
                done,
                operator,
                seed,
                offset=offset,
                converged=reached or not tolerance,
            )
        )
    return results
