r"""Whether the losses of batches can be put together to the loss of the whole.

They can where the loss is a mean over rows whose weights are known,

.. math:: L(A \cup B) = \frac{w(A) L(A) + w(B) L(B)}{w(A) + w(B)},

which is tried with the rows of every batch cut in several places, and with rows of other batches
put beside them: a class's weight shows only where two classes meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.operators.memory import is_out_of_memory

Scalar = Callable[[Any, Tensor], Tensor]
Weight = Callable[[Any, Tensor], float]
MIXED = 8
"""Rows of a batch that are tried beside those of other batches."""
KEPT = 64
"""Rows of earlier batches that are kept for that, as long as they are few numbers."""
NUMBERS = 2**22


class MeanCheck:
    """Tries a loss on the outputs of one batch after the other, each of them once.

    Arguments:
        loss: a scalar of outputs and targets.
        weight: of some rows, by outputs and targets.
        rows: of the data, for words.
    """

    def __init__(self, loss: Scalar, weight: Weight, rows: Callable[[], int]) -> None:
        self.loss, self.weight, self.rows = loss, weight, rows
        self.kept: tuple[Tensor, Tensor] | None = None
        self.mean, self.sum = True, True
        """Whether all that was tried is a mean over rows, or a sum over them."""
        self.words = ""
        self.complete = False

    def look(self, outputs: Any, targets: Tensor) -> bool:
        """Whether the loss is a mean over rows on this batch, and with rows of others.

        Outputs that are no tensor are not cut: only the model knows how.
        """
        if not isinstance(outputs, Tensor):
            return self.mean
        outputs = outputs.detach()
        with torch.enable_grad():  # a loss may differentiate inside
            self._try(outputs, targets, cuts(len(targets)))
            few = _head(outputs, targets, slice(MIXED))
            if self.kept is not None and (joined := _joined(self.kept, few)) is not None:
                self._try(*joined, [len(self.kept[1])])
        self._keep(outputs, targets)
        return self.mean

    def __call__(self, outputs: Any, targets: Tensor) -> None:
        """Look at a batch, until all of them were.

        Raises:
            InputError: the loss is no mean over its rows, or over those of it and others.
        """
        if not self.complete and not self.look(outputs, targets):
            raise InputError(self.refusal())

    def refusal(self) -> str:
        """What was found, and the way out."""
        return f"the loss is not a mean over rows: {self.words}; {way_out(self.rows())}"

    def _try(self, outputs: Tensor, targets: Tensor, places: list[int]) -> None:
        """The loss of all the rows against that of two parts of them."""
        size = len(targets)
        for place in places:
            values, weights = [], []
            try:
                for part in (slice(None), slice(place), slice(place, None)):
                    some = _head(outputs, targets, part)
                    weights.append(self.weight(*some))
                    value = self.loss(*some) if weights[-1] else torch.zeros(())
                    if value.ndim:
                        return  # no scalar: said where it is used
                    values.append(float(value.detach()))
            except Exception as error:  # whatever a user's own code raises
                if is_out_of_memory(error):
                    raise
                if size > 3 and min(place, size - place) == 1:
                    continue  # a loss that squeezes does not take a single row
                first = (str(error).splitlines() or [""])[0] or type(error).__name__
                self.mean = self.sum = False
                self.words = f"it does not take {size} rows cut into {place} and {size - place}: "
                self.words += first
                return
            (whole, left, right), (_, w, v) = values, weights
            slack = max(min(0.1, 100 * torch.finfo(value.dtype).eps), 1e-10)
            mean = (w * left + v * right) / (w + v) if w + v else whole
            self.sum &= _agree(whole, left + right, slack)
            if not _agree(whole, mean, slack):
                self.mean = False
                self.words = (
                    f"{whole:.6g} on {size} rows, but {mean:.6g} from {place} and {size - place} "
                    f"of them put together"
                )

    def _keep(self, outputs: Tensor, targets: Tensor) -> None:
        """A few rows, spread over the batch, for the batches to come."""
        if not len(targets):
            return
        room = KEPT if self.kept is None else KEPT - len(self.kept[1])
        room = min(room, MIXED, NUMBERS // KEPT // max(1, outputs[0].numel()))
        if room <= 0:
            return
        some = _head(outputs, targets, slice(None, None, -(-len(targets) // room)))
        joined = some if self.kept is None else _joined(self.kept, some)
        self.kept = joined or self.kept


def cuts(rows: int) -> list[int]:
    """Where to cut: one row alone on either side, a third, and next to the middle."""
    return sorted({cut for cut in (1, rows // 3, rows // 2 - 1, rows - 1) if 0 < cut < rows})


def way_out(rows: int) -> str:
    """What can be done about a loss whose batches cannot be put together."""
    return (
        "let it return (sum, count), the sum over the rows and the number it is divided by; or "
        "pass LossLandscape(..., weight=...), from targets to the weights of their rows; or "
        f"divide a sum by a constant (reduction='sum', divided by {rows} for the mean over all "
        "rows); or pass all rows as one batch"
    )


def _head(outputs: Tensor, targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    return outputs[part], targets[part]


def _agree(one: float, other: float, slack: float) -> bool:
    return one == other or abs(one - other) <= slack * max(abs(one), abs(other))


def _joined(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Rows of two batches as one, or None where they do not fit together."""
    if any(a.shape[1:] != b.shape[1:] for a, b in zip(one, other, strict=True)):
        return None
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])
