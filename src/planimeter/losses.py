"""Losses that a binary, single-output network needs and torch does not have in this form.

Every loss here is a mean over the rows of a batch, as `LossLandscape` requires.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from planimeter.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(
    logits: Float[Tensor, " n *one"], labels: Shaped[Tensor, " n"]
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


def predicted_classes(outputs: Float[Tensor, " n *c"]) -> Shaped[Tensor, " n"]:
    """Class of each row: the sign of a single output (0 or 1), the arg-max of several."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return (outputs.reshape(-1) > 0).long()
    return outputs.argmax(dim=1)


def in_float64(loss: Loss) -> Loss:
    """The loss of the same outputs, and its slopes, computed in float64.

    In float32 the probability of a row that is fitted well rounds to 1, so that 1 - p, which its
    gradient and curvature are made of, keeps hardly a digit. Slopes come back in the dtype of the
    outputs. Of outputs that are a structure, all tensors of real numbers are widened.
    """
    own = widened(loss)

    def wide(outputs: Any, targets: Tensor) -> Tensor:
        outputs = outputs.double() if isinstance(outputs, Tensor) else _widened(outputs)
        return own(outputs, targets.double() if targets.is_floating_point() else targets)

    return wide


def _widened(outputs: Any) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        own = getattr(value, "__dict__", None)
        if not own or not any(isinstance(part, Tensor) for part in own.values()):
            return value
        other = copy.copy(value)  # an object, with its tensors as attributes
        other.__dict__.update({name: leaf(part) for name, part in own.items()})
        return other

    return tree_map(leaf, outputs)


def widened(loss: Loss) -> Loss:
    """The same loss with the weights that it holds (of classes, of positive labels) in float64."""
    if isinstance(loss, nn.Module):
        stock = type(loss).__module__ == "torch.nn.modules.loss"
        held = any(b.is_floating_point() for b in loss.buffers())
        return copy.deepcopy(loss).double() if stock and held else loss
    if isinstance(loss, partial):
        given = {k: _wide(v) for k, v in loss.keywords.items()}
        return partial(widened(loss.func), *map(_wide, loss.args), **given)
    return loss


def _wide(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


@dataclass(frozen=True)
class RowLoss:
    """A loss row by row, for outputs (..., n, c) and targets (..., n) with any leading dimensions.

    Arguments:
        values: outputs and targets to the (..., n) losses whose mean is the loss.
        slopes: the same to their derivatives by the outputs, (..., n, c).
    """

    values: Callable[[Tensor, Tensor], Tensor]
    slopes: Callable[[Tensor, Tensor], Tensor]

    def in_float64(self) -> RowLoss:
        """The same computed in float64, as `in_float64` does; slopes in the dtype of outputs."""

        def wide(targets: Tensor) -> Tensor:
            return targets.double() if targets.is_floating_point() else targets

        return RowLoss(
            lambda outputs, targets: self.values(outputs.double(), wide(targets)),
            lambda outputs, targets: self.slopes(outputs.double(), wide(targets)).to(outputs.dtype),
        )


def row_loss(loss: Loss) -> RowLoss:
    r"""The losses :math:`\ell(h_n, y_n)` of which a loss is the mean, and their slopes.

    Those of the logistic loss and of cross-entropy are written out; any other loss is given one
    row at a time, whose mean is the row's own loss.
    """
    if loss is binary_cross_entropy:
        return RowLoss(_logistic, _logistic_slope)
    if loss is torch.nn.functional.cross_entropy:
        return RowLoss(_softmax_loss, _softmax_slope)

    def one(outputs: Tensor, target: Tensor) -> Tensor:
        return loss(outputs[None], target[None])

    def over_rows(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def mapped(outputs: Tensor, targets: Tensor) -> Tensor:
            result = function
            for _ in range(outputs.ndim - 1):
                result = torch.vmap(result)
            return result(outputs, targets)

        return mapped

    return RowLoss(over_rows(one), over_rows(torch.func.grad(one)))


def _logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    h = outputs.squeeze(-1)
    return torch.nn.functional.binary_cross_entropy_with_logits(
        h, targets.to(h.dtype), reduction="none"
    )


def _logistic_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.sigmoid(outputs) - targets[..., None].to(outputs.dtype)


def _softmax_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return -torch.log_softmax(outputs, -1).gather(-1, targets[..., None]).squeeze(-1)


def _softmax_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    one = torch.ones_like(targets[..., None], dtype=outputs.dtype)
    return torch.softmax(outputs, -1).scatter_add(-1, targets[..., None], -one)


@dataclass(frozen=True)
class Likelihood:
    """The distribution p(y|h) of which a loss is the negative logarithm, up to factor and constant.

    Arguments:
        sample: outputs and a generator to targets drawn from p(y|h).
        terms: outputs to the number of losses that are averaged within one row.
    """

    sample: Callable[[Tensor, torch.Generator], Tensor]
    terms: Callable[[Tensor], int]


def likelihood_of(loss: Loss) -> Likelihood:
    r"""The likelihood behind a loss: categorical, Bernoulli, or Gaussian of variance 1/2.

    Raises:
        InputError: the loss is none of those known; names them.
    """
    plain = (
        getattr(loss, "reduction", "mean") == "mean"
        and getattr(loss, "label_smoothing", 0.0) == 0.0
        and getattr(loss, "weight", None) is None
        and getattr(loss, "pos_weight", None) is None
    )
    for functions, module, likelihood in _LIKELIHOODS:
        if plain and (loss in functions or type(loss) is module):
            return likelihood
    raise InputError(
        f"no likelihood is known for the loss {getattr(loss, '__name__', type(loss).__name__)!r}: "
        f"labels can be drawn for cross_entropy, binary_cross_entropy and mse_loss (plain means, "
        f"without weights or label smoothing)"
    )


def _categorical(outputs: Tensor, generator: torch.Generator) -> Tensor:
    p = torch.softmax(outputs.detach().double(), dim=1).movedim(1, -1)
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator)
    return drawn.reshape(p.shape[:-1])


def _bernoulli(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(torch.sigmoid(outputs.detach()), generator=generator)


def _gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.empty_like(outputs.detach()).normal_(generator=generator)
    return outputs.detach() + noise / 2**0.5


_LIKELIHOODS: list[tuple[tuple[Loss, ...], type, Likelihood]] = [
    (
        (torch.nn.functional.cross_entropy,),
        torch.nn.CrossEntropyLoss,
        Likelihood(_categorical, lambda h: h.numel() // (h.shape[0] * h.shape[1])),
    ),
    (
        (binary_cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits),
        torch.nn.BCEWithLogitsLoss,
        Likelihood(_bernoulli, lambda h: h.numel() // h.shape[0]),
    ),
    (
        (torch.nn.functional.mse_loss,),
        torch.nn.MSELoss,
        Likelihood(_gaussian, lambda h: h.numel() // h.shape[0]),
    ),
]


def predicts_classes(loss: Loss) -> bool:
    """Whether a loss is the cross-entropy of a softmax, which ignores a shift of all outputs."""
    softmax = (torch.nn.functional.cross_entropy, torch.nn.CrossEntropyLoss)
    return loss is softmax[0] or type(loss) is softmax[1]
