r"""The covariance of an activation's outputs under a Gaussian: the dual activation.

For :math:`(z, z') \sim N(0, \Sigma)` with variances v, w and covariance c, an activation
:math:`\varphi` maps the covariance to :math:`E[\varphi(z)\varphi(z')]` and a feature's mean to
:math:`E[\varphi(z)]`. With :math:`\rho = c/\sqrt{vw}`:

.. math::
   \mathrm{ReLU}: & \quad \tfrac{\sqrt{vw}}{2\pi} \left(\sqrt{1-\rho^2}
       + (\pi - \arccos\rho)\,\rho\right), \quad \sqrt{v/2\pi} \\
   \mathrm{leaky}: & \quad (1-a)^2\, \mathrm{ReLU}(c) + a\,c, \quad (1-a)\sqrt{v/2\pi} \\
   \mathrm{erf}: & \quad \tfrac{2}{\pi} \arcsin \frac{2c}{\sqrt{(1+2v)(1+2w)}}, \quad 0 \\
   \mathrm{GELU}: & \quad \tfrac{c}{4} + \tfrac{c}{2\pi} \arcsin\frac{c}{\sqrt{(1+v)(1+w)}}
       + \frac{vw + c^2\left(\frac{1}{1+v} + \frac{1}{1+w} - 1\right)}
              {2\pi\sqrt{(1+v)(1+w) - c^2}}, \quad \frac{v}{\sqrt{2\pi(1+v)}}

Sources: Cho & Saul 2009 (ReLU); Tsuchida et al. 2018 (leaky ReLU); Williams 1997 (erf);
Tsuchida et al. 2021 (GELU; derived anew in docs/kernels.md).

Every function here works on any shapes that broadcast: c of a tile of pairs, v of its rows and w of
its columns. `c` is overwritten: no pass makes a new array that it can do without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Covariance = Callable[
    [Float[Tensor, "*pairs"], Float[Tensor, "*rows"], Float[Tensor, "*columns"]],
    Float[Tensor, "*pairs"],
]

OfVariance = Callable[[Float[Tensor, "*rows"]], Float[Tensor, "*rows"]]


@dataclass(frozen=True)
class Dual:
    """An activation as its action on covariances.

    Arguments:
        name: it and its parameters; what tells two duals apart.
        covariance: of c and what `prepared` makes of v and w; it may overwrite c.
        mean: of v.
        prepared: of v, once for all the pairs that a row is in.
    """

    name: str
    covariance: Covariance = field(repr=False)
    mean: OfVariance = field(repr=False)
    prepared: OfVariance = field(default=torch.clone, repr=False)


def relu(slope: float = 0.0) -> Dual:
    """ReLU, or leaky ReLU with a slope below zero; slope -1 is the absolute value."""
    name = "relu" if slope == 0 else f"leaky_relu({slope})"

    def covariance(c: Tensor, row: Tensor, column: Tensor) -> Tensor:
        steep = _relu(c.clone() if slope else c, row, column)
        return steep.mul_((1 - slope) ** 2).add_(c, alpha=slope) if slope else steep

    def mean(v: Tensor) -> Tensor:
        return (v / (2 * math.pi)).sqrt_().mul_(1 - slope)

    return Dual(name, covariance, mean, torch.sqrt)


def erf() -> Dual:
    """The error function."""

    def covariance(c: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return c.mul_(row).mul_(column).clamp_(-1.0, 1.0).asin_().mul_(2 / math.pi)

    def prepared(v: Tensor) -> Tensor:
        return (v + 0.5).rsqrt_()

    return Dual("erf", covariance, torch.zeros_like, prepared)


def gelu() -> Dual:
    """x times the normal distribution function of x, not its approximation by tanh."""

    def covariance(c: Tensor, v: Tensor, w: Tensor) -> Tensor:
        square = c.square()
        numerator = square * ((1 + v).reciprocal_() + ((1 + w).reciprocal_() - 1))
        numerator.addcmul_(v, w)
        product = (1 + v) * (1 + w)
        # (1 + v)(1 + w) - c^2 is at least 1 + v + w; rounding must not take it below.
        numerator.div_((product - square).sqrt_())
        angle = torch.div(c, product.sqrt_(), out=square).asin_()
        return c.mul_(angle.mul_(1 / (2 * math.pi)).add_(0.25)).add_(
            numerator, alpha=1 / (2 * math.pi)
        )

    def mean(v: Tensor) -> Tensor:
        return v / (2 * math.pi * (1 + v)).sqrt_()

    return Dual("gelu", covariance, mean)


def _relu(c: Tensor, row: Tensor, column: Tensor) -> Tensor:
    norms = row * column
    if bool(row.all()) and bool(column.all()):
        c.div_(norms)
    else:  # inputs without variance have no direction: their cosine counts as 0, their result is 0
        c.copy_(torch.where(norms > 0, c / norms, 0.0))
    c.clamp_(-1.0, 1.0)
    one = torch.ones((), dtype=c.dtype, device=c.device)
    sine = torch.addcmul(one, c, c, value=-1).sqrt_()
    angle = torch.acos(c).sub_(math.pi)  # minus the angle between x and -x'
    torch.addcmul(sine, angle, c, value=-1, out=c)
    return c.mul_(norms).mul_(1 / (2 * math.pi))
