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
from collections.abc import Callable
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
from planimeter.operators import CurvatureOperator, check_operator

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
        terms = [
            (columns * (operator @ columns)).sum(0) for columns in identity_columns(operator, WIDTH)
        ]
        return _exact(float(torch.cat(terms).sum()), "trace", operator, started)
    if method == "xtrace":
        result = xtrace(operator, probes, tolerance, seed, progress)
    else:

        def along(v: Tensor, product: Tensor) -> Tensor:
            return (v * product).sum(0)

        result = _probed(
            operator, along, _sketch(method, probes), probes, tolerance, seed, progress, "trace"
        )
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
        terms = [((operator @ columns) ** 2).sum() for columns in identity_columns(operator, WIDTH)]
        total = math.sqrt(float(torch.stack(terms).sum()))
        return _exact(total, "Frobenius norm", operator, started)

    def squared(v: Tensor, product: Tensor) -> Tensor:
        return (product * product).sum(0)

    # The relative error of a root is half of that of what it is taken of.
    square = _probed(
        operator,
        squared,
        _sketch(method, probes),
        probes,
        2 * tolerance,
        seed,
        progress,
        "squared Frobenius norm",
    )
    return replace(square.sqrt(), seconds=time.perf_counter() - started)


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


def _sketch(method: str, probes: int) -> int:
    """Columns of the subspace of Hutch++, each of which costs two products; a third of them all."""
    return probes // 3 if method == "hutch++" and probes >= 6 else 0


def _probed(
    operator: CurvatureOperator,
    statistic: Callable[[Tensor, Tensor], Tensor],
    sketch: int,
    probes: int,
    tolerance: float,
    seed: int,
    progress: Progress,
    what: str,
) -> Estimate:
    """A sum over an orthonormal basis of `statistic(v, A v)`: exact on a sketch, probed outside."""
    generator = torch.Generator().manual_seed(seed)
    done, known = 0, 0.0
    basis = torch.zeros(operator.size, 0, dtype=torch.float64, device=operator.device)
    if sketch:
        images = products_with(operator, rademacher(operator, sketch, generator))
        basis, _ = torch.linalg.qr(images)
        known = float(statistic(basis, products_with(operator, basis)).sum())
        done = 2 * sketch
        progress(done, probes)
    samples: list[Tensor] = []
    reached = False
    while done < probes and not reached:
        v = rademacher(operator, min(WIDTH, probes - done), generator)
        v = v - basis @ (basis.T @ v)
        samples.append(statistic(v, operator @ v))
        done += v.shape[1]
        progress(done, probes)
        if tolerance and sum(map(len, samples)) >= LEAST:
            found = torch.cat(samples)
            reached = standard_error(found) <= tolerance * abs(known + float(found.mean()))
    found = torch.cat(samples).cpu()
    name = f"Hutch++ {what}, {sketch} vectors and" if sketch else f"Hutchinson {what},"
    return mean_estimate(
        found,
        f"{name} {len(found)} probes",
        done,
        operator,
        seed,
        offset=known,
        converged=reached or not tolerance,
    )
