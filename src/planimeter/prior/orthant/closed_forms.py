r"""Orthant probabilities in closed form: up to three variables.

With angles :math:`\theta_{ij} = \arccos(-\rho_{ij})`,

.. math:: P_1 = \tfrac12, \qquad P_2 = \frac{\theta_{12}}{2\pi}
          = \frac14 + \frac{\arcsin \rho}{2\pi}, \qquad
          P_3 = \frac{\theta_{12} + \theta_{13} + \theta_{23} - \pi}{4\pi} .

The second form of :math:`P_2` loses all digits where :math:`\rho \to -1`; the angle keeps them.
The orthant of a covariance of rank 2 is a cone in the plane, an angle over :math:`2 \pi`.
Source: Sheppard 1899; David, A note on the evaluation of the multivariate normal integral,
Biometrika 1953.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

LARGEST = 3
# What is smaller, in nats, is no error.
_SMALL_ERROR = 1e-9


def exact_log_orthant(
    correlation: Float[Tensor, "n n"], eps: float = 2.0**-52
) -> tuple[float, float]:
    """log P(z > 0) for at most three variables, and its error from rounding.

    Arguments:
        correlation: unit diagonal, float64.
        eps: rounding of its entries.
    """
    n = len(correlation)
    if n == 1:
        return math.log(0.5), 0.0
    pairs = [float(correlation[i, j].clamp(-1, 1)) for i in range(n) for j in range(i)]
    angles = [math.acos(-rho) for rho in pairs]
    # Of an angle, to first order; where rho is 1 or -1, of the order of the root.
    errors = [eps / max(math.sqrt(1 - rho * rho), math.sqrt(eps)) for rho in pairs]
    if n == 2:
        if angles[0] == 0:
            return -math.inf, math.inf
        error = errors[0] / angles[0]
        return math.log(angles[0] / (2 * math.pi)), error if error > _SMALL_ERROR else 0.0
    excess = sum(angles) - math.pi
    if excess <= 0:
        return -math.inf, math.inf
    error = (math.hypot(*errors) + 4 * math.pi * 1e-15) / excess
    return math.log(excess / (4 * math.pi)), error


def exact_log_cone(factor: Float[Tensor, "n 2"], eps: float = 2.0**-52) -> tuple[float, float]:
    r"""log P(A u > 0) in the plane, and its error from rounding.

    The half-planes :math:`a_i \cdot u > 0` leave a cone between the two outermost a_i turned by a
    right angle: of angle :math:`\pi - \max_{ij} \angle(a_i, a_j)`, over :math:`2 \pi`.

    Arguments:
        factor: rows a_i; the cone is not empty.
        eps: their rounding.
    """
    x, y = factor.T
    # The pair with the widest angle: the one whose product is smallest.
    products = (factor @ factor.T) / (x.hypot(y) * x.hypot(y)[:, None])
    i, j = divmod(int(products.argmin()), len(factor))
    cross, dot = float(x[i] * y[j] - y[i] * x[j]), float(factor[i] @ factor[j])
    angle = math.atan2(abs(cross), -dot)
    if angle == 0:
        return -math.inf, math.inf
    error = eps / angle
    return math.log(angle / (2 * math.pi)), error if error > _SMALL_ERROR else 0.0
