"""Losses that a binary, single-output network needs and torch does not have in this form.

Every loss here is a mean over the rows of a batch, as `LossLandscape` requires.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from planimeter.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(
    logits: Float[Tensor, n * one], labels: Shaped[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Mean logistic loss :math:`\frac1n \sum_i \log(1 + e^{-(2 y_i - 1) h_i})`.

    Arguments:
        logits: one output a row, (n,) or (n, 1); positive means class 1.
        labels: 0 or 1, (n,), of any dtype.

    Raises:
        InputError: the network has more than one output, or a label is outside 0 to 1.
    """
    if logits.numel() != labels.numel():
        raise InputError(
            f"binary_cross_entropy needs one output a row, got outputs of shape "
            f"{tuple(logits.shape)} for {labels.numel()} labels: use cross_entropy for "
            f"several classes"
        )
    if bool((labels < 0).any()) or bool((labels > 1).any()):
        raise InputError(
            f"binary_cross_entropy needs labels 0 and 1, got values from "
            f"{labels.min().item():g} to {labels.max().item():g}"
        )
    targets = labels.reshape(logits.shape).to(logits.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": torch.nn.functional.cross_entropy,
    "mse": torch.nn.functional.mse_loss,
}


def predicted_classes(outputs: Float[Tensor, n * c]) -> Shaped[Tensor, " n"]:
    """Class of each row: the sign of a single output (0 or 1), the arg-max of several."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return (outputs.reshape(-1) > 0).long()
    return outputs.argmax(dim=1)
