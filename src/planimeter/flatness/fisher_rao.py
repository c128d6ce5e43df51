r"""The Fisher-Rao norm: the length of the parameters where the Fisher matrix measures lengths.

.. math:: \|\theta\|_{FR} = (\theta^T F \theta)^{1/2}.

(Liang et al. 2017, arXiv 1711.01530, Definition 2.)
"""

from __future__ import annotations

import math

from torch import Tensor

from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape


def fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""The length of the parameters in the Fisher metric, :math:`(\theta^T F \theta)^{1/2}`, with F
    the Fisher matrix of labels from the model (the Gauss-Newton matrix).

    For a network without biases and with d layers of a piecewise linear activation,
    :math:`\sum_i \theta_i \partial_i h = d\,h`, so this is
    :math:`d\,(E\, h^T \nabla_h^2 \ell\, h)^{1/2}`. It costs one product.

    Raises:
        InputError: the loss is not convex in the outputs.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2 and Theorem 3.1.
    """
    return _metric_length(landscape, landscape.gauss_newton() @ landscape.theta, "Gauss-Newton")


def empirical_fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""`fisher_rao_norm` with the data's own labels, :math:`(\frac1N \sum_n \langle g_n, \theta
    \rangle^2)^{1/2}`, which vanishes at a minimum that fits them.

    Raises:
        InputError: rows have no gradients of their own.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2, over the training rows.
    """
    product = landscape.empirical_fisher() @ landscape.theta
    return _metric_length(landscape, product, "empirical Fisher")


def _metric_length(landscape: LossLandscape, product: Tensor, kind: str) -> Estimate:
    square = max(float(landscape.theta @ product), 0.0)
    return Estimate(math.sqrt(square), method=f"{kind}, one product", products=1)
