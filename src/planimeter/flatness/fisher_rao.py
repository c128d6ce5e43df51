r"""The Fisher-Rao norm: the length of the parameters where the Fisher matrix measures lengths.

.. math:: \|\theta\|_{FR} = (\theta^T F \theta)^{1/2},

where :math:`F = J^T C J` needs only :math:`J \theta`, one forward derivative of the outputs.

BatchNorms are folded (`planimeter.flatness.folding`). (Liang et al. 2017, arXiv 1711.01530,
Definition 2.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from planimeter.estimate import Estimate
from planimeter.flatness.folding import folded
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator
from planimeter.products.batches import BatchedLoss, Inputs, Parameters
from planimeter.products.curvatures import loss_curvature


def fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""The length of the parameters in the Fisher metric, :math:`(\theta^T F \theta)^{1/2}`, with F
    the Fisher matrix of labels from the model (the Gauss-Newton matrix).

    For a network without biases and with d layers of a piecewise linear activation,
    :math:`\sum_i \theta_i \partial_i h = d\,h`, so this is
    :math:`d\,(E\, h^T \nabla_h^2 \ell\, h)^{1/2}`.

    Raises:
        InputError: the loss is not convex in the outputs.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2 and Theorem 3.1.
    """
    landscape = folded(landscape)
    return _metric_length(landscape, landscape.gauss_newton(), _curved_square)


def empirical_fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""`fisher_rao_norm` with the data's own labels, :math:`(\frac1N \sum_n \langle g_n, \theta
    \rangle^2)^{1/2}`, which vanishes at a minimum that fits them.

    Raises:
        InputError: rows have no gradients of their own.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2, over the training rows.
    """
    landscape = folded(landscape)
    return _metric_length(landscape, landscape.empirical_fisher(), _slope_square)


def _metric_length(
    landscape: LossLandscape,
    matrix: CurvatureOperator,
    square_of: Callable[[BatchedLoss, Tensor, Tensor, Tensor], float],
) -> Estimate:
    """The root of theta' A theta for A = J' C J, with C acting on the outputs of a batch."""
    theta, function = landscape.parameters, landscape.function

    def square() -> float:
        total, counted = 0.0, 0.0
        for _, weight, (inputs, targets) in function.pieces():
            outputs, pushed = torch.func.jvp(
                partial(_outputs, landscape, inputs), (theta,), (theta,)
            )
            total += weight * square_of(function, outputs, targets, pushed)
            counted += weight
        return total / counted

    how = "one forward derivative"
    try:
        with landscape.mode():
            value: float = function.surviving(square)
    except (NotImplementedError, RuntimeError):  # an operation without a forward derivative
        value, how = float(landscape.theta @ (matrix @ landscape.theta)), "one product"
    return Estimate(math.sqrt(max(value, 0.0)), method=f"{matrix.name}, {how}", products=1)


def _curved_square(
    function: BatchedLoss, outputs: Tensor, targets: Tensor, pushed: Tensor
) -> float:
    """d' C d for a direction of the outputs."""
    curved = loss_curvature(function, outputs, targets, pushed)
    return float((pushed.double() * curved.double()).sum())


def _slope_square(function: BatchedLoss, outputs: Tensor, targets: Tensor, pushed: Tensor) -> float:
    """The same of the outer products of the rows' gradients, whose entries float32 may not hold."""
    slopes = torch.func.grad(lambda h: function.loss(h, targets))(outputs.detach())
    along = (slopes.double() * pushed.double()).reshape(len(outputs), -1).sum(1)
    if function.row_weights is None:
        return len(outputs) * float(along.square().sum())
    weights = function.row_weights.rows(outputs, targets).double()
    counted = weights > 0
    return float(weights.sum() * (along[counted].square() / weights[counted]).sum())


def _outputs(landscape: LossLandscape, inputs: Inputs, parameters: Parameters) -> Tensor:
    return landscape.outputs(parameters, inputs)
