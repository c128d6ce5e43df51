r"""Bounds on the rank of Hessian and Gauss-Newton matrix, each with what it assumes.

With r the rank of the output curvature (C - 1 for the softmax, C otherwise), d the inputs of a row
and :math:`N_{\mathrm{hidden}}` the number of hidden neurons,

.. math:: \mathrm{rank}\, G \le \min(P, N r), \qquad
          \mathrm{rank}\, H \le r (d + 1) + 2 C N_{\mathrm{hidden}}.

The first always holds. The second holds when the same neurons are active for every row, as in a
linear network. There the Jacobian of a row is :math:`B (I_C \otimes \tilde x)` with one matrix B
for all rows, which bounds the first term; and the gradient by layer l is
:math:`A_{>l}^T S_l` with both factors of rank at most C, so the change of the residual part has at
most :math:`C (n_l + n_{l-1})` dimensions there, without the input and output layers. The bound of
granziol2020, :math:`2 C (N_{\mathrm{hidden}} + C)`, leaves the inputs out, and logistic regression
already breaks it. For ReLU networks, whose patterns differ from row to row, the averaged Hessian
breaks either: compare with the numerical rank, whose tolerance is explicit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.losses import predicts_classes
from planimeter.operators.batches import cut_rows

_NEURONS = (
    nn.Linear, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Tanh, nn.Sigmoid,
    nn.GELU, nn.ELU, nn.SiLU, nn.Softplus,
)  # fmt: skip


@dataclass(frozen=True)
class RankBound:
    """An upper bound on a rank.

    Arguments:
        value: the bound.
        formula: in plain text.
        assumption: what it needs to hold; "none" where it always does.
    """

    value: int
    formula: str
    assumption: str

    def __str__(self) -> str:
        return f"rank ≤ {self.value} = {self.formula} (assumes: {self.assumption})"


def gauss_newton_rank_bound(landscape: LossLandscape) -> RankBound:
    """min(P, N r), which always holds.

    Source: granziol2020, Section 3.
    """
    outputs = _outputs(landscape)
    softmax = predicts_classes(landscape.loss_function)
    rank, name = (outputs - 1, "(C - 1)") if softmax and outputs > 1 else (outputs, "C")
    value = min(landscape.num_parameters, landscape.num_rows * rank)
    return RankBound(value, f"min(P, N {name})", "none")


def hessian_rank_bound(landscape: LossLandscape) -> RankBound:
    """r (d + 1) + 2 C (hidden neurons), under its assumption.

    Raises:
        InputError: the network has other layers than fully connected ones, for which the number of
            neurons is not defined here.
    """
    widths, inputs = _widths(landscape)
    outputs = _outputs(landscape)
    rank = outputs - 1 if predicts_classes(landscape.loss_function) and outputs > 1 else outputs
    value = min(landscape.num_parameters, rank * (inputs + 1) + 2 * outputs * sum(widths[:-1]))
    return RankBound(
        value,
        f"{'(C - 1)' if rank < outputs else 'C'} (inputs + 1) + 2 C (hidden neurons)",
        "the same neurons are active for every row, as in a linear network; not so for ReLU",
    )


def published_rank_bound(landscape: LossLandscape) -> RankBound:
    """2 C (hidden neurons + C), as it is published.

    Raises:
        InputError: as for `hessian_rank_bound`.

    Source: granziol2020, Section 4.
    """
    widths, _ = _widths(landscape)
    outputs = _outputs(landscape)
    value = min(landscape.num_parameters, 2 * outputs * (sum(widths[:-1]) + outputs))
    return RankBound(
        value,
        "2 C (hidden neurons + C)",
        "the same neurons are active for every row, and few inputs: linear networks of many inputs "
        "break it",
    )


def _widths(landscape: LossLandscape) -> tuple[list[int], int]:
    """Outputs of the fully connected layers, and inputs of the first."""
    for path, module in landscape.model.named_modules():
        if not any(True for _ in module.children()) and not isinstance(module, _NEURONS):
            raise InputError(
                f"the rank bound counts the neurons of fully connected layers, and "
                f"{path or 'the model'!r} is a {type(module).__name__}"
            )
    layers = [m for m in landscape.model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise InputError("the rank bound counts neurons, and the model has no nn.Linear layer")
    return [layer.out_features for layer in layers], layers[0].in_features


def _outputs(landscape: LossLandscape) -> int:
    inputs, targets = next(landscape.batches())
    with torch.no_grad(), landscape.mode():
        one = landscape.outputs(landscape.parameters, cut_rows(inputs, slice(1), len(targets)))
    return one.numel()
