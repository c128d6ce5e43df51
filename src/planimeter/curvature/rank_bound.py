r"""Bounds on the rank of Hessian and Gauss-Newton matrix, each with what it assumes.

.. math:: \mathrm{rank}\, G \le \min(P, N r), \qquad
          \mathrm{rank}\, H \le 2 C (N_{\mathrm{hidden}} + C),

with r the rank of the output curvature (C - 1 for the softmax, C otherwise) and
:math:`N_{\mathrm{hidden}}` the number of hidden neurons. The second holds when the pattern of
active neurons is the same for every row, as in a linear network. For ReLU networks, whose patterns
differ from row to row, the averaged Hessian breaks it, so it is never asserted: compare it with
the numerical rank, whose tolerance is explicit.
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
    """2 C (hidden neurons + C), under its assumption.

    Raises:
        InputError: the network has other layers than fully connected ones, for which the number of
            neurons is not defined here.

    Source: granziol2020, Section 4.
    """
    leaves = [
        (path, m)
        for path, m in landscape.model.named_modules()
        if not any(True for _ in m.children())
    ]
    for path, module in leaves:
        if not isinstance(module, _NEURONS):
            raise InputError(
                f"the rank bound counts the neurons of fully connected layers, and "
                f"{path or 'the model'!r} is a {type(module).__name__}"
            )
    widths = [m.out_features for _, m in leaves if isinstance(m, nn.Linear)]
    outputs, hidden = _outputs(landscape), sum(widths[:-1])
    value = min(landscape.num_parameters, 2 * outputs * (hidden + outputs))
    return RankBound(
        value,
        "2 C (hidden neurons + C)",
        "the same neurons are active for every row, as in a linear network; not so for ReLU",
    )


def _outputs(landscape: LossLandscape) -> int:
    inputs, targets = next(landscape.batches())
    with torch.no_grad(), landscape.mode():
        one = landscape.forward(landscape.parameters, cut_rows(inputs, slice(1), len(targets)))
    return one.numel()
