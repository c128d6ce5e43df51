r"""Orthant probabilities in closed form: up to three variables.

With angles :math:`\theta_{ij} = \arccos(-\rho_{ij})`,

.. math:: P_1 = \tfrac12, \qquad P_2 = \frac{\theta_{12}}{2\pi}
          = \frac14 + \frac{\arcsin \rho}{2\pi}, \qquad
          P_3 = \frac{\theta_{12} + \theta_{13} + \theta_{23} - \pi}{4\pi} .

The second form of :math:`P_2` loses all digits where :math:`\rho \to -1`; the angle keeps them.
Source: Sheppard 1899; David, A note on the evaluation of the multivariate normal integral,
Biometrika 1953.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

LARGEST = 3


def exact_log_orthant(correlation: Float[Tensor, "n n"]) -> tuple[float, float]:
    """log P(z > 0) for at most three variables, and its error from rounding.

    Arguments:
        correlation: unit diagonal, float64.
    """
    n = len(correlation)
    if n == 1:
        return math.log(0.5), 0.0
    angles = [math.acos(-float(correlation[i, j].clamp(-1, 1))) for i in range(n) for j in range(i)]
    if n == 2:
        return math.log(angles[0] / (2 * math.pi)), 0.0
    probability = (sum(angles) - math.pi) / (4 * math.pi)
    if probability <= 0:
        return -math.inf, math.inf
    return math.log(probability), 1e-15 / probability
