"""Classes as they are read off outputs, and the labels that are compared with them.

Which axis of the outputs holds the classes is said by the shapes: the second, as torch has it, or
the last one, where the loss turns sequences round. Labels that the loss ignores, and labels that
are no class, are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from planimeter.errors import NotApplicableError
from planimeter.landscape.denominators import KnownLoss, known_loss
from planimeter.losses import Loss, binary_cross_entropy

_OF_NUMBERS = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.kl_div,
)  # fmt: skip
_OF_LOGITS = (binary_cross_entropy, F.binary_cross_entropy_with_logits, F.soft_margin_loss)


@dataclass(frozen=True)
class Predictions:
    """How the classes of rows are read off.

    Arguments:
        axis: of the outputs that holds the classes; None where every output is a label of its own,
            0 or 1.
        threshold: above which such an output means 1.
        ignored: the label that is not counted.
        soft: whether targets are probabilities, of which the largest is the class.
    """

    axis: int | None
    threshold: float = 0.0
    ignored: int | None = None
    soft: bool = False

    def hits(self, outputs: Tensor, targets: Tensor) -> Bool[Tensor, " m"]:
        """Whether each label that counts is predicted; NaN predicts nothing."""
        if self.axis is None:
            h, y = outputs.reshape(-1), targets.reshape(-1)
            counted = (y == 0) | (y == 1) | (y == -1)
            return (((h > self.threshold) == (y > 0)) & ~h.isnan())[counted]
        scores, labels = self.labelled(outputs, targets)
        return (scores.argmax(1) == labels) & ~scores.isnan().any(1)

    def labelled(
        self, outputs: Shaped[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."]
    ) -> tuple[Float[Tensor, "m c"], Int[Tensor, " m"]]:
        """The outputs of every label that counts, and the labels; where classes have an axis."""
        assert self.axis is not None
        scores = outputs.movedim(self.axis, -1).flatten(0, -2)
        if self.soft:
            return scores, targets.movedim(self.axis, -1).flatten(0, -2).argmax(1)
        labels = targets.reshape(-1).long()
        counted = (labels >= 0) & (labels < scores.shape[1])
        if self.ignored is not None:
            counted &= labels != self.ignored
        return scores[counted], labels[counted]


def predictions_of(
    loss: Loss, scalar: Callable[[Any, Tensor], Tensor], outputs: Any, targets: Any
) -> Predictions:
    """How classes are read off the outputs of a network.

    Arguments:
        loss: as it was given.
        scalar: the same as a scalar of outputs and targets.
        outputs, targets: of a few rows.

    Raises:
        NotApplicableError: the targets are no classes.
    """
    known = known_loss(loss)
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise NotApplicableError(
            f"this needs one tensor of outputs and one of classes, not a "
            f"{type(outputs).__name__} and a {type(targets).__name__}"
        )
    if known is not None and known.function in _OF_NUMBERS:
        raise NotApplicableError(
            "this needs classes: the loss is one of numbers (a regression), whose error is "
            "the loss itself"
        )
    same = outputs.shape == targets.shape
    if targets.is_floating_point() and same and known is not None and known.of_classes:
        return Predictions(axis=1, soft=True)
    if outputs.numel() == targets.numel() and (same or outputs.numel() == len(outputs)):
        return _of_signs(known, scalar, outputs, targets)
    if not targets.is_floating_point():
        axis = _class_axis(known, scalar, outputs, targets)
        if axis is not None:
            return Predictions(axis, ignored=None if known is None else known.ignored)
    raise NotApplicableError(
        f"this needs classes: the targets are {_kind(targets)} of shape "
        f"{tuple(targets.shape)}, for outputs of shape {tuple(outputs.shape)}"
    )


def _of_signs(
    known: KnownLoss | None, scalar: Callable[[Any, Tensor], Tensor], outputs: Tensor, y: Tensor
) -> Predictions:
    """Labels of their own: 0 and 1, or -1 and 1."""
    signed = bool(((y == -1) | (y == 1)).all()) and bool((y == -1).any())
    if not signed and not bool(((y == 0) | (y == 1)).all()):
        raise NotApplicableError(
            f"this needs classes: with one output a label, the targets have to be 0 and 1, and "
            f"are {float(y.min()):g} to {float(y.max()):g}"
        )
    if signed or (known is not None and known.function in _OF_LOGITS):
        return Predictions(axis=None)
    if known is not None and known.function is F.binary_cross_entropy:
        return Predictions(axis=None, threshold=0.5)
    # Of logits, a loss wants those of class 0 below any number; of values, at 0.
    try:
        with torch.enable_grad():
            h = torch.full_like(outputs, -1.0).requires_grad_()
            (slope,) = torch.autograd.grad(scalar(h, torch.zeros_like(y)), h)
        return Predictions(axis=None, threshold=0.0 if float(slope.sum()) > 0 else 0.5)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return Predictions(axis=None, threshold=0.5)  # -1 is no probability


def _class_axis(
    known: KnownLoss | None, scalar: Callable[[Any, Tensor], Tensor], outputs: Tensor, y: Tensor
) -> int | None:
    """The axis without which the outputs have the shape of the targets."""
    shape = tuple(outputs.shape)
    fits = [
        axis
        for axis in dict.fromkeys((1, outputs.ndim - 1))
        if axis and shape[:axis] + shape[axis + 1 :] == tuple(y.shape)
    ]
    if not fits and outputs.ndim == 2 and len(outputs) == y.numel():
        return 1
    if len(fits) < 2 or (known is not None and known.of_classes):
        return fits[0] if fits else None
    return fits[0] if _looks_along(scalar, outputs, y, fits[0]) else fits[1]


def _looks_along(
    scalar: Callable[[Any, Tensor], Tensor], outputs: Tensor, y: Tensor, axis: int
) -> bool:
    """Whether another label at one place changes the slopes along the axis, at that place."""
    some = outputs[:1].detach().float() if outputs.dtype == torch.float16 else outputs[:1].detach()
    label = y[:1].clone()
    place = tuple([0] * label.ndim)
    try:
        with torch.enable_grad():
            h = some.requires_grad_()
            (before,) = torch.autograd.grad(scalar(h, label), h)
            other = label.clone()
            other[place] = (label[place] + 1) % outputs.shape[axis]
            (after,) = torch.autograd.grad(scalar(h, other), h)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return True
    changed = (after - before).abs()
    last = changed.ndim - 1
    along = changed[place[: last - 0]] if axis == last else changed.movedim(axis, last)[place]
    return bool(along.sum() >= changed.sum() - along.sum())


def _kind(targets: Tensor) -> str:
    return str(targets.dtype).removeprefix("torch.")
