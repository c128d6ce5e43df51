"""What all estimates from random vectors share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.estimate import Estimate, standard_error
from planimeter.operator import CurvatureOperator

WIDTH = 16
"""Vectors that are multiplied at a time."""


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
        len(samples) - 1,
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
    # One by one: a block of several is filled in another order than the same vectors in turn.
    rows = [
        torch.randn(operator.size, generator=generator, dtype=torch.float64) for _ in range(count)
    ]
    return torch.stack(rows).to(operator.device).T if rows else rademacher(operator, 0, generator)


def identity_columns(operator: CurvatureOperator, width: int) -> Iterator[Float[Tensor, "P k"]]:
    """The unit vectors, `width` at a time."""
    for start in range(0, operator.size, width):
        count = min(width, operator.size - start)
        columns = torch.zeros(operator.size, count, dtype=torch.float64, device=operator.device)
        columns[range(start, start + count), range(count)] = 1.0
        yield columns


def products_with(
    operator: CurvatureOperator, vectors: Float[Tensor, "P k"]
) -> Float[Tensor, "P k"]:
    """A V, a few columns at a time."""
    return torch.cat([operator @ part for part in vectors.split(WIDTH, dim=1)], dim=1)
