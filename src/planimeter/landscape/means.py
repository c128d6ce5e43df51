r"""Whether the losses of batches can be put together to the loss of the whole.

They can where the loss is a mean over rows whose weights are known,

.. math:: L(A \cup B) = \frac{w(A) L(A) + w(B) L(B)}{w(A) + w(B)},

which is tried with the rows of every batch cut in several places, and with rows of other batches
put beside them: a class's weight shows only where two classes meet. One tensor of outputs with one
entry a row is cut itself; where they are a structure, or of another length (every token a row of
its own), the inputs are cut, and the model runs on the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.machine.memory import is_out_of_memory
from planimeter.products.batches import Inputs, cut_rows, tensors_in

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
        forward: from inputs to outputs; None where inputs cannot be cut.
    """

    def __init__(
        self,
        loss: Scalar,
        weight: Weight,
        rows: Callable[[], int],
        forward: Callable[[Inputs], Any] | None = None,
    ) -> None:
        self.loss, self.weight, self.rows, self.forward = loss, weight, rows, forward
        self.kept: tuple[Any, Tensor] | None = None
        self.by_model = False
        """Whether what is cut and kept are inputs."""
        self.mean, self.sum = True, True
        """Whether all that was tried is a mean over rows, or a sum over them."""
        self.words = ""
        self.complete = False

    def look(self, outputs: Any, targets: Tensor, inputs: Inputs) -> bool:
        """Whether the loss is a mean over rows on this batch, and with rows of others."""
        rows = len(targets)
        by_model = not (isinstance(outputs, Tensor) and outputs.ndim and len(outputs) == rows)
        if by_model and self.forward is None:
            return self.mean
        if by_model != self.by_model:
            self.kept, self.by_model = None, by_model
        values = inputs if by_model else outputs.detach()
        places = cuts(rows)
        with torch.enable_grad():  # a loss may differentiate inside
            # Every cut by the model is two more runs of it: one row alone, and a third.
            self._try(values, targets, places[:2] if by_model else places)
            few = _head(values, targets, slice(MIXED))
            if self.kept is not None and (joined := _joined(self.kept, few)) is not None:
                self._try(*joined, [len(self.kept[1])])
        self._keep(values, targets)
        return self.mean

    def __call__(self, outputs: Any, targets: Tensor, inputs: Inputs) -> None:
        """Look at a batch, until all of them were.

        Raises:
            InputError: the loss is no mean over its rows, or over those of it and others.
        """
        if not self.complete and not self.look(outputs, targets, inputs):
            raise InputError(self.refusal())

    def refusal(self) -> str:
        """What was found, and the way out."""
        return f"the loss is not a mean over rows: {self.words}; {way_out(self.rows())}"

    def _try(self, rows: Any, targets: Tensor, places: list[int]) -> None:
        """The loss of all the rows against that of two parts of them."""
        size = len(targets)
        for place in places:
            values, weights = [], []
            try:
                for part in (slice(None), slice(place), slice(place, None)):
                    some = _head(rows, targets, part)
                    if self.by_model:
                        assert self.forward is not None
                        some = self.forward(some[0]), some[1]
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

    def _keep(self, rows: Any, targets: Tensor) -> None:
        """A few rows, spread over the batch, for the batches to come."""
        if not len(targets):
            return
        room = KEPT if self.kept is None else KEPT - len(self.kept[1])
        numbers = sum(t.numel() for t in tensors_in(rows)) // len(targets)
        room = min(room, MIXED, NUMBERS // KEPT // max(1, numbers))
        if room <= 0:
            return
        some = _head(rows, targets, slice(None, None, -(-len(targets) // room)))
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


def _head(rows: Any, targets: Tensor, part: slice) -> tuple[Any, Tensor]:
    return cut_rows(rows, part, len(targets)), targets[part]


def _agree(one: float, other: float, slack: float) -> bool:
    return one == other or abs(one - other) <= slack * max(abs(one), abs(other))


def _joined(one: tuple[Any, Tensor], other: tuple[Any, Tensor]) -> tuple[Any, Tensor] | None:
    """Rows of two batches as one, or None where they do not fit together."""
    sizes = len(one[1]), len(other[1])
    try:
        return _beside(one[0], other[0], sizes), _beside(one[1], other[1], sizes)
    except ValueError:
        return None


def _beside(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.ndim and other.ndim and (len(one), len(other)) == sizes:
            if one.shape[1:] == other.shape[1:]:
                return torch.cat([one, other])
        elif torch.equal(one, other):  # shared by all rows
            return one
        raise ValueError
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _beside(value, other[key], sizes) for key, value in one.items()}
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return tuple(_beside(a, b, sizes) for a, b in zip(one, other, strict=True))
    if one is other:
        return one
    raise ValueError
