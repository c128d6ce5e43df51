"""Products in a unit of the matrix's own size, so that norms of them stay within float32's range.

A norm squares: of float32 numbers below 1e-19 nothing is left, and those above 1e19 overflow.
Krylov bases are float32 under a float32 model, and a loss may have any scale. Powers of two change
no digit, so that a loss times c gives the same iteration whatever c is.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.operator import CurvatureOperator

SAFE = 2.0**24
"""Largest entries between its inverse and this need no unit: squares and residuals fit."""


def unit_of(images: Tensor) -> float:
    """A power of two near the largest entry; 1 where that is neither large nor small, 0 for 0."""
    largest = float(images.abs().max()) if images.numel() else 0.0
    if largest == 0.0 or 1 / SAFE < largest < SAFE or not math.isfinite(largest):
        return float(largest != 0.0)
    return math.ldexp(1.0, math.frexp(largest)[1])


class UnitProducts:
    """v to A v / unit, the unit that of the first product that is not zero.

    Arguments:
        operator: A.
        dtype: of the rows that come back.
        unit: if it is known already.
    """

    def __init__(
        self, operator: CurvatureOperator, dtype: torch.dtype, unit: float | None = None
    ) -> None:
        self.operator, self.dtype, self._unit = operator, dtype, unit or 0.0

    @property
    def unit(self) -> float:
        """1 as long as all products were zero."""
        return self._unit or 1.0

    def __call__(self, rows: Float[Tensor, "b P"]) -> Float[Tensor, "b P"]:
        """The products with rows, as rows."""
        images = self.operator @ rows.T.double()
        if not self._unit:
            self._unit = unit_of(images)
        return (images if self.unit == 1.0 else images / self.unit).to(self.dtype).T
