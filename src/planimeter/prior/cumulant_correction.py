r"""Second-order cumulant correction of EP's log Z.

EP matches the first two moments of every tilted marginal; what it leaves out is governed by their
higher cumulants. To second order, with :math:`c_l = \kappa_l / l!`,

.. math:: \log Z - \log Z_{EP} \approx \tfrac12 \sum_{i \ne j} \sum_{l = 3, 4}
          l!\, c_{l,i}\, c_{l,j} \left(\frac{\Sigma_{ij}}{\Sigma_{ii} \Sigma_{jj}}\right)^{l} .

The ratio of the fourth-order to the third-order term is an alarm: small where the series works,
large where it over-corrects.

Source: Opper, Paquet & Winther, JMLR 14 (2013), Section 4.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from planimeter.prior.expectation_propagation import EPSolution
from planimeter.prior.in_place import panels
from planimeter.prior.truncated import third_and_fourth_cumulants


def cumulant_correction(
    solution: EPSolution, covariance: Float[Tensor, "n n"]
) -> tuple[float, float]:
    """The correction to add to log Z_EP, in nats, and the ratio of its orders.

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
    return third + fourth, abs(fourth / third) if third else 0.0
