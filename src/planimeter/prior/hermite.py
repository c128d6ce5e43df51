r"""Dual activations without a closed form, by a Hermite series whose error is bounded.

For :math:`(z, z')` standard normal with correlation :math:`\rho` (Mehler),

.. math:: E[\varphi(sz)\,\varphi(s'z')] = \sum_{k \ge 0} a_k(s)\, a_k(s')\, \rho^k, \qquad
          a_k(s) = E\!\left[\varphi(sz)\, \mathrm{He}_k(z)\right] / \sqrt{k!}.

By Cauchy and Schwarz, what is cut off after K terms is at most :math:`\sqrt{R(s) R(s')}` with
:math:`R(s) = E[\varphi(sz)^2] - \sum_{k<K} a_k(s)^2`, which is known. K doubles until that is below
`TOLERANCE` times the largest :math:`E[\varphi(sz)^2]`. Coefficients come from the trapezoidal rule,
which converges geometrically for functions that are analytic in a strip around the real line.

Source: Daniely, Frostig & Singer 2016, Section 5 (dual activations and Hermite expansions).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior.activations import Dual

TOLERANCE = 1e-8
"""Largest error of a covariance, over the largest second moment of the activation."""
MOST_TERMS = 512
# The normal density is 1e-35 there, and a step of 0.025 resolves He_512 (wavelength 0.28).
_REACH, _NODES = 12.5, 1001


def smooth(name: str, function: Callable[[Tensor], Tensor]) -> Dual:
    """The dual of a smooth function.

    Raises (when evaluated):
        InputError: the variances are so large that the series does not reach `TOLERANCE`.
    """

    def covariance(c: Tensor, row: Tensor, column: Tensor) -> Tensor:
        row, column = row.double(), column.double()
        left, right = coefficients(name, function, row, column)
        norms = row * column
        cosine = torch.where(norms > 0, c / norms, 0.0).clamp_(-1.0, 1.0)
        total = left[-1] * right[-1]
        for a, b in zip(reversed(left[:-1]), reversed(right[:-1]), strict=True):
            total.mul_(cosine)
            if bool(a.any()):
                total.addcmul_(a, b)
        return c.copy_(total)

    def mean(v: Tensor) -> Tensor:
        z, weight = _nodes(v.device)
        return (function(v.double().sqrt()[..., None] * z) @ weight).to(v.dtype)

    return Dual(name, covariance, mean, torch.sqrt)


def coefficients(
    name: str,
    function: Callable[[Tensor], Tensor],
    row: Float[Tensor, "*rows"],
    column: Float[Tensor, "*columns"],
) -> tuple[Tensor, Tensor]:
    """a_k of all standard deviations, for as many k as `TOLERANCE` needs."""
    z, weight = _nodes(row.device)
    values = [function(s[..., None] * z) for s in (row, column)]
    moments = [value.square() @ weight for value in values]
    largest = max(float(moment.max()) for moment in moments)
    terms = 16
    while True:
        basis = _hermite(z, terms) * weight
        # Coefficients that rounding alone made, such as the even ones of tanh, count as none.
        found = [torch.einsum("...z,kz->k...", value, basis) for value in values]
        found = [torch.where(a.abs() > 1e-16 * largest**0.5, a, 0.0) for a in found]
        left_out = max(
            float((moment - a.square().sum(0)).max())
            for moment, a in zip(moments, found, strict=True)
        )
        if left_out <= TOLERANCE * largest:
            return found[0], found[1]
        if terms >= MOST_TERMS:
            raise InputError(
                f"{name} is too steep at standard deviations up to "
                f"{max(float(row.max()), float(column.max())):g}: {terms} terms of its series "
                f"leave an error of {left_out:.1e}; use a smaller sigma_w, or empirical_kernel"
            )
        terms *= 2


def _nodes(device: torch.device) -> tuple[Float[Tensor, " z"], Float[Tensor, " z"]]:
    z = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64, device=device)
    step = 2 * _REACH / (_NODES - 1)
    return z, torch.exp(-z.square() / 2) * (step / math.sqrt(2 * math.pi))


def _hermite(z: Float[Tensor, " z"], terms: int) -> Float[Tensor, "k z"]:
    """He_k / sqrt(k!), by the three-term recurrence in that normalisation."""
    rows = [torch.ones_like(z), z]
    for k in range(1, terms - 1):
        rows.append((z * rows[-1] - math.sqrt(k) * rows[-2]) / math.sqrt(k + 1))
    return torch.stack(rows)
