"""What all estimates from random vectors share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from planimeter.estimate import Estimate
from planimeter.operators import CurvatureOperator

NORMAL = 1.959963984540054


def standard_error(samples: Float[Tensor, " s"]) -> float:
    r"""Standard error of the mean of samples, widened for few of them.

    .. math:: \frac{t_{0.975, s-1}}{1.96}\, \frac{\mathrm{std}}{\sqrt s},

    so that value ± 1.96 errors covers 95 % also when the spread comes from a handful of samples.
    """
    count = len(samples)
    widening = float(student.ppf(0.975, count - 1)) / NORMAL
    return widening * float(samples.std()) / math.sqrt(count)


def mean_estimate(
    samples: Float[Tensor, " s"],
    method: str,
    products: int,
    operator: CurvatureOperator,
    seed: int,
    *,
    offset: float = 0.0,
    converged: bool = True,
    seconds: float = 0.0,
) -> Estimate:
    """offset + the mean of samples, with its standard error."""
    return Estimate(
        offset + float(samples.mean()),
        standard_error(samples),
        method,
        products,
        converged,
        seed,
        str(operator.dtype).removeprefix("torch."),
        str(operator.device),
        seconds,
    )


def rademacher(
    operator: CurvatureOperator, count: int, generator: torch.Generator
) -> Float[Tensor, "P count"]:
    """Columns of independent signs."""
    signs = torch.randint(0, 2, (count, operator.size), generator=generator, dtype=torch.int8)
    return signs.to(operator.device).double().mul_(2).sub_(1).T


def gaussian(
    operator: CurvatureOperator, count: int, generator: torch.Generator
) -> Float[Tensor, "P count"]:
    """Columns of independent standard normal numbers."""
    numbers = torch.randn(count, operator.size, generator=generator, dtype=torch.float64)
    return numbers.to(operator.device).T


def identity_columns(operator: CurvatureOperator, width: int) -> Iterator[Float[Tensor, "P k"]]:
    """The unit vectors, `width` at a time."""
    for start in range(0, operator.size, width):
        count = min(width, operator.size - start)
        columns = torch.zeros(operator.size, count, dtype=torch.float64, device=operator.device)
        columns[range(start, start + count), range(count)] = 1.0
        yield columns
