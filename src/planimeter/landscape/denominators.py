r"""What a loss divides by: the weights of rows with which batches are put together.

A loss that is a weighted mean,

.. math:: L = \frac{\sum_n w_n \ell_n}{\sum_n w_n},

has :math:`w_n = 1` where every row counts alike, 0 for a row that is ignored, the sum over its
tokens where a row has several, and the class's weight for weighted classes. The losses of torch
say theirs by their arguments; any other loss may return ``(sum, count)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from planimeter.errors import InputError
from planimeter.losses import Loss, binary_cross_entropy

WeightOf = Callable[[Tensor], Any]
"""Targets to the weights of their rows: (n,), (n, ...) to be summed over a row, or their total."""
Settings = dict[str, Any]


@dataclass(frozen=True)
class KnownLoss:
    """A loss of torch, or of this package, by its arguments.

    Arguments:
        function: of `torch.nn.functional`.
        settings: its keyword arguments.
    """

    function: Callable[..., Tensor]
    settings: Settings

    @property
    def reduction(self) -> str:
        """ "mean", "sum" or "none"."""
        return str(self.settings.get("reduction", "mean"))

    @property
    def of_classes(self) -> bool:
        """Whether targets are classes, of which one may be ignored and each may have a weight."""
        return self.function in _OF_CLASSES

    @property
    def ignored(self) -> int | None:
        """The label that does not count; None where all do."""
        return int(self.settings.get("ignore_index", -100)) if self.of_classes else None

    def row_weights(self, targets: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, " n"]:
        """The part of every row in the denominator."""
        if not self.of_classes:
            return targets.new_ones(len(targets), dtype=torch.float32)
        if targets.is_floating_point():  # probabilities of the classes: all rows count alike
            terms = targets[:1].numel() // max(1, targets.shape[1] if targets.ndim > 1 else 1)
            return targets.new_full((len(targets),), float(terms))
        counted = targets.ne(self.settings.get("ignore_index", -100))
        weight = self.settings.get("weight")
        if weight is None:
            return counted.flatten(1).sum(1) if counted.ndim > 1 else counted
        own = weight.to(targets.device)[targets.clamp(0, len(weight) - 1)]
        own = torch.where(counted, own.double(), 0.0)
        return own.flatten(1).sum(1) if own.ndim > 1 else own


def known_loss(loss: Loss) -> KnownLoss | None:
    """What is known of a loss by its name and arguments; None for a user's own.

    Arguments:
        loss: a function of `torch.nn.functional`, `functools.partial` of one with keyword
            arguments, or one of its modules.
    """
    settings: Settings = {}
    while isinstance(loss, partial):
        if loss.args:
            return None
        settings, loss = {**loss.keywords, **settings}, loss.func
    if isinstance(loss, nn.Module):
        function = _MODULES.get(type(loss))
        if function is None or settings:
            return None
        names = ("reduction", "weight", "pos_weight", "ignore_index", "label_smoothing")
        settings = {name: getattr(loss, name) for name in names if hasattr(loss, name)}
    else:
        function = loss if loss in _FUNCTIONS else None
    if function is None or {"size_average", "reduce"} & settings.keys():
        return None
    weight = settings.get("weight")
    if weight is not None and (function not in _OF_CLASSES or not isinstance(weight, Tensor)):
        return None  # of every row, every output or every class: only trying tells
    return KnownLoss(function, settings)


def summed_rows(found: Any, targets: Tensor) -> Float[Tensor, " n"] | None:
    """Weights of rows from what a user's `weight` gives; None where that is a total.

    Raises:
        InputError: they are of another length, negative or not finite.
    """
    weights = found if isinstance(found, Tensor) else torch.as_tensor(found)
    weights = weights.detach()
    if weights.ndim and len(weights) != len(targets):
        raise InputError(
            f"weight gave a tensor of shape {tuple(weights.shape)} for {len(targets)} rows of "
            f"targets: it has to give one weight a row, or their total"
        )
    if weights.is_complex() or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InputError("weight gave values that are negative or not finite")
    if not weights.ndim:
        return None
    return weights.flatten(1).sum(1) if weights.ndim > 1 else weights


def quotient(loss: Callable[..., Any]) -> Loss:
    """The loss of a function that returns (sum, count)."""

    def mean(outputs: Any, targets: Tensor) -> Tensor:
        total, count = loss(outputs, targets)
        result: Tensor = total / count
        return result

    return mean


def is_pair(value: Any) -> bool:
    """Whether a loss returned (sum, count), both numbers or scalars.

    Raises:
        InputError: it returned anything else, or a count that is negative or not finite.
    """
    if isinstance(value, Tensor):
        return False
    if not isinstance(value, tuple | list) or len(value) != 2:
        end = "drop its .item() or float()" if isinstance(value, int | float) else "return that one"
        raise InputError(
            f"the loss returned a {type(value).__name__}; it has to be a scalar tensor, a mean "
            f"over the rows, or (sum, count): {end}"
        )
    total, count = value
    number = isinstance(count, Tensor | int | float)
    if not isinstance(total, Tensor) or total.ndim or not number or torch.as_tensor(count).ndim:
        raise InputError(
            "the loss returned a pair that is not (sum, count), a scalar tensor with the sum over "
            "the rows and the number it is divided by"
        )
    if not math.isfinite(float(count)) or float(count) < 0:
        raise InputError(f"the loss returned (sum, count) with the count {float(count):g}")
    return True


_OF_CLASSES = (F.cross_entropy, F.nll_loss)
_PLAIN = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.soft_margin_loss, F.poisson_nll_loss, F.kl_div,
    F.multilabel_soft_margin_loss, F.multilabel_margin_loss, binary_cross_entropy,
)  # fmt: skip
_FUNCTIONS: tuple[Callable[..., Tensor], ...] = (*_OF_CLASSES, *_PLAIN)
_MODULES: dict[type, Callable[..., Tensor]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.KLDivLoss: F.kl_div,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
}
