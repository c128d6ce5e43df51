r"""Second-order cumulant correction of EP's log Z.

EP matches the first two moments of every tilted marginal; what it leaves out is governed by their
higher cumulants. To second order, with :math:`c_l = \kappa_l / l!`,

.. math:: \log Z - \log Z_{EP} \approx \tfrac12 \sum_{i \ne j} \sum_{l = 3, 4}
          l!\, c_{l,i}\, c_{l,j} \left(\frac{\Sigma_{ij}}{\Sigma_{ii} \Sigma_{jj}}\right)^{l} .

The ratio of the fourth-order to the third-order term is an alarm: small where the series works,
large where it over-corrects.

The third-order term is a twelfth of the sum of squares of the tilted distribution's third
cumulants, in coordinates in which the EP posterior is a standard normal, less those of single
outputs. Where one direction has most of it, the skewness along it,

.. math:: s = \max_w \sum_i \kappa_{3,i} \left(\frac{y_i}{\Sigma_{ii}}\right)^3, \qquad
          y = \Sigma w / \sqrt{w^T \Sigma w},

is collective: all outputs move together (one class, strong correlation), further out than the EP
posterior knows.

Source: Opper, Paquet & Winther, JMLR 14 (2013), Section 4.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from planimeter.prior.orthant.expectation_propagation import EPSolution
from planimeter.prior.orthant.in_place import panels
from planimeter.prior.orthant.truncated import third_and_fourth_cumulants

# Steps of the power method towards the direction of the largest skewness: where all outputs move
# together the first is there, and elsewhere it is not asked for.
_POWER_STEPS = 3


def cumulant_correction(
    solution: EPSolution, covariance: Float[Tensor, "n n"]
) -> tuple[float, float]:
    """The correction to add to log Z_EP, in nats, and the ratio of its orders.

    Arguments:
        solution: a converged EP run.
        covariance: its posterior covariance Sigma; panels of its rows are the only temporaries.
    """
    third, fourth = correction_orders(solution, covariance)
    return third + fourth, abs(fourth / third) if third else 0.0


def correction_orders(
    solution: EPSolution, covariance: Float[Tensor, "n n"]
) -> tuple[float, float]:
    """The terms of third and of fourth order, in nats.

    Arguments:
        solution: a converged EP run.
        covariance: its posterior covariance Sigma; panels of its rows are the only temporaries.
    """
    cumulants = third_and_fourth_cumulants(solution.cavity_mean, solution.cavity_variance)
    precision = covariance.diagonal().reciprocal()
    orders = [0.0, 0.0]
    for start, stop in panels(len(precision)):
        ratio = covariance[start:stop] * precision
        ratio *= precision[start:stop, None]
        ratio[:, start:stop].diagonal().zero_()
        power = ratio.square()
        for position, (order, cumulant) in enumerate(zip((3, 4), cumulants, strict=True)):
            power *= ratio
            pairs = float(cumulant[start:stop] @ (power @ cumulant))
            orders[position] += 0.5 / math.factorial(order) * pairs
    third, fourth = orders
    return third, fourth


def collective_skewness(
    solution: EPSolution, covariance: Float[Tensor, "n n"], third_order: float
) -> float:
    """s of the module's docstring, and 0 where it is less than half of the third-order term.

    Arguments:
        solution: a converged EP run.
        covariance: its posterior covariance Sigma.
        third_order: the correction's term.
    """
    third, _ = third_and_fourth_cumulants(solution.cavity_mean, solution.cavity_variance)
    variance = covariance.diagonal()
    weights = third / variance**1.5
    skewness = 0.0
    for _ in range(_POWER_STEPS):
        pushed = covariance @ weights
        length = float(weights @ pushed)
        if not length > 0:
            return 0.0
        ratio = pushed / (math.sqrt(length) * variance)
        skewness = float(third @ ratio**3)
        weights = third * ratio.square() / variance
    return skewness if skewness**2 > 0.5 * abs(12 * third_order) else 0.0
