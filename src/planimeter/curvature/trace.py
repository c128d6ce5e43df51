r"""Trace and Frobenius norm from products with random vectors.

For v with independent ±1 entries (Rademacher), :math:`E[v^T A v] = \mathrm{tr} A` and
:math:`E\|A v\|^2 = \|A\|_F^2` (Hutchinson 1990). The standard error comes from the spread of the
probes. When as many probes are asked for as there are coordinates, the coordinate vectors are
used and the result is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.operators import CurvatureOperator

Progress = Callable[[int, int], None]


def trace(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The trace, :math:`\frac1s \sum_j v_j^T A v_j`.

    Arguments:
        operator: size P.
        probes: s, at least 2; one product each.
        seed: of the probes.
        progress: called after each product with the products done and their number.

    Raises:
        InputError: fewer than 2 probes, which leave no standard error.

    Source: Hutchinson 1990.
    """
    return _probed(operator, lambda v, product: float(v @ product), probes, seed, "trace", progress)


def frobenius_norm(
    operator: CurvatureOperator,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The Frobenius norm, :math:`\sqrt{\frac1s \sum_j \|A v_j\|^2}`.

    Arguments, errors and source as for `trace`; the error of the root is to first order.
    """
    return _probed(
        operator,
        lambda v, product: float(product @ product),
        probes,
        seed,
        "squared norm",
        progress,
    ).sqrt()


def _probed(
    operator: CurvatureOperator,
    statistic: Callable[[Tensor, Tensor], float],
    probes: int,
    seed: int,
    what: str,
    progress: Progress,
) -> Estimate:
    if probes < 2:
        raise InputError(f"{probes} probes leave no standard error: use at least 2")
    size = operator.size
    if probes >= size:
        identity = torch.eye(size, dtype=torch.float64, device=operator.device)
        terms = []
        for j, e in enumerate(identity, start=1):
            terms.append(statistic(e, operator @ e))
            progress(j, size)
        value = math.fsum(terms)
        return Estimate(value, 0.0, f"exact {what}, coordinate vectors", size)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.empty(probes, dtype=torch.float64)
    for j in range(probes):
        v = _rademacher(size, generator).to(operator.device)
        samples[j] = statistic(v, operator @ v)
        progress(j + 1, probes)
    stderr = float(samples.std() / math.sqrt(probes))
    return Estimate(float(samples.mean()), stderr, f"Hutchinson {what}, {probes} probes", probes)


def _rademacher(size: int, generator: torch.Generator) -> Float[Tensor, " P"]:
    return torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
