r"""A mean loss over batches, its value and its gradient.

With batches :math:`b` of :math:`n_b` rows and mean losses :math:`L_b`,

.. math:: L = \sum_b \tfrac{n_b}{N} L_b, \qquad N = \sum_b n_b,

so batches weigh by their size (uneven last batches are the classic silent error), or by what the
loss itself divides by, where rows count differently. Sums accumulate in float64. A batch that does
not fit into memory is cut into halves, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, MeasurementWarning
from planimeter.losses import Loss
from planimeter.machine.memory import is_out_of_memory

Parameters = dict[str, Tensor]
Inputs = Any  # a tensor, or a tuple or dict of tensors, which the model takes as its arguments
Batch = tuple[Inputs, Tensor]
NOTHING = "the data has no batches, or none with a row that counts: every target is ignored"


@dataclass(frozen=True)
class RowWeights:
    """What the rows count in the mean that a loss is.

    Arguments:
        rows: outputs and targets to the weights (n,) of the rows.
        total: outputs and targets to the sum of those.
        outputs: those of a batch, where the weights need them; None where targets are enough.
    """

    rows: Callable[[Any, Tensor], Float[Tensor, " n"]]
    total: Callable[[Any, Tensor], float]
    outputs: Callable[[Batch], Any] | None = None


@runtime_checkable
class Check(Protocol):
    """Refuses a loss that turns out not to be what it seemed to be on the first batches."""

    complete: bool

    def __call__(self, outputs: Any, targets: Tensor, inputs: Inputs) -> None:
        """Look at a batch's outputs, targets and inputs."""


@dataclass
class BatchedLoss:
    """The mean of `loss(forward(parameters, inputs), targets)` over all rows of all batches.

    Arguments:
        forward: outputs of the network as a function of its parameters and inputs; a tensor, or
            whatever the loss takes.
        loss: mean loss over the rows of a batch.
        batches: makes a fresh pass over the batches, the same ones every time.
        separable: whether a batch may be cut into pieces (no layer mixes its rows).
        rows: the most rows of a piece; falls when memory runs out.
        row_weights: of which the loss is the weighted mean; None where all rows count alike.
        check: looks at outputs and targets until one pass was complete.
        weights: of pieces, by their place: each is asked for once.
    """

    forward: Callable[[Parameters, Inputs], Any]
    loss: Loss
    batches: Callable[[], Iterator[Batch]]
    separable: bool = True
    rows: int | None = field(default=None)
    row_weights: RowWeights | None = None
    check: Check | None = None
    weights: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def batch_loss(self, parameters: Parameters, batch: Batch, index: int = 0) -> Float[Tensor, ""]:
        """Mean loss of one batch; refuses losses that are not finite or not scalars."""
        inputs, targets = batch
        outputs = self.forward(parameters, inputs)
        try:
            value = self.loss(outputs, targets)
        except IndexError as error:
            raise InputError(f"batch {index} does not fit the loss: {error}") from error
        if value.ndim != 0:
            raise InputError(
                f"the loss must be a mean over the batch (a scalar), it returned shape "
                f"{tuple(value.shape)}: use reduction='mean'"
            )
        if not bool(torch.isfinite(value)):
            raise InputError(
                f"the loss is {value.item()} on batch {index}: {_culprit(parameters, inputs)}"
            )
        if self.check is not None:
            self.check(outputs, targets, inputs)
        return value

    def pieces(self, *, uncounted: bool = False) -> Iterator[tuple[int, float, Batch]]:
        """Batches, cut to at most `rows` rows, with the batch's index and the piece's weight.

        Arguments:
            uncounted: pieces of which no row counts too.
        """
        for index, batch in enumerate(self.batches()):
            inputs, targets = batch
            size = len(targets)
            if self.rows is None or size <= self.rows or not self.separable:
                weight = self._weight(index, 0, batch)
                if weight or uncounted:
                    yield index, weight, batch
                continue
            for start in range(0, size, self.rows):
                part = slice(start, start + self.rows)
                cut = cut_rows(inputs, part, size), targets[part]
                weight = self._weight(index, start, cut)
                if weight or uncounted:
                    yield index, weight, cut

    def weight(self, batch: Batch) -> float:
        """What a batch counts: its rows, or the sum of their weights."""
        own, (_, targets) = self.row_weights, batch
        if own is None:
            return float(len(targets))
        return own.total(None if own.outputs is None else own.outputs(batch), targets)

    def _weight(self, index: int, start: int, piece: Batch) -> float:
        if self.row_weights is None:
            return float(len(piece[1]))
        place = index, start, len(piece[1])
        if place not in self.weights:
            self.weights[place] = self.weight(piece)
        return self.weights[place]

    def surviving(self, compute: Callable[[], Any]) -> Any:
        """`compute()`, again on smaller pieces for as long as memory runs out."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.shrink(str(error))

    def shrink(self, reason: str) -> None:
        """Halve the rows of a piece, and say so.

        Raises:
            InputError: nothing is left to halve.
        """
        largest = self.rows or max(len(targets) for _, targets in self.batches())
        if largest <= 1 or not self.separable:
            raise InputError(f"not enough memory for {largest} rows at a time ({reason})")
        self.rows = (largest + 1) // 2
        warnings.warn(
            f"out of memory with {largest} rows at a time: going on with {self.rows}",
            MeasurementWarning,
            stacklevel=4,
        )


def mean_loss(function: BatchedLoss, parameters: Parameters) -> float:
    """L, in float64."""

    def compute() -> float:
        total, rows = 0.0, 0.0
        with torch.enable_grad():  # a model or a loss may differentiate inside
            for index, weight, batch in function.pieces():
                total += weight * float(function.batch_loss(parameters, batch, index).detach())
                rows += weight
        if not rows:
            raise InputError(NOTHING)
        if function.check is not None:
            function.check.complete = True
        return total / rows

    result: float = function.surviving(compute)
    return result


def loss_and_gradient(
    function: BatchedLoss, parameters: Parameters
) -> tuple[float, Float[Tensor, " P"]]:
    """L and its gradient, flat; parameters that the loss does not use give zeros."""

    refuse_inference_mode()

    def compute() -> tuple[float, Tensor]:
        leaves = as_leaves(parameters)
        total, loss, rows = None, 0.0, 0.0
        with torch.enable_grad():  # also for a caller inside torch.no_grad()
            for index, weight, batch in function.pieces():
                value = function.batch_loss(leaves, batch, index)
                own = weight * flatten(derivatives(value, leaves))
                total, rows = own if total is None else total + own, rows + weight
                loss += weight * float(value.detach())
        if total is None:
            raise InputError(NOTHING)
        if function.check is not None:
            function.check.complete = True
        return loss / rows, total / rows

    result: tuple[float, Tensor] = function.surviving(compute)
    return result


def cut_rows(inputs: Inputs, part: slice, rows: int) -> Inputs:
    """The same rows of every tensor that has one entry a row."""
    if isinstance(inputs, Tensor):
        return inputs[part] if inputs.ndim and len(inputs) == rows else inputs
    if isinstance(inputs, dict):
        return {key: cut_rows(value, part, rows) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(cut_rows(value, part, rows) for value in inputs)
    return inputs


def copied(inputs: Inputs) -> Inputs:
    """The same with tensors of their own."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, dict):
        return {key: copied(value) for key, value in inputs.items()}
    return tuple(map(copied, inputs)) if isinstance(inputs, tuple | list) else inputs


def is_changed(before: Inputs, copies: Inputs) -> bool:
    """Whether something has written to copies that were just made."""
    pairs = zip(tensors_in(before), tensors_in(copies), strict=True)
    return any(copy._version or not torch.equal(one, copy) for one, copy in pairs)


def tensors_in(inputs: Inputs) -> list[Tensor]:
    """The tensors of a batch's inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, dict) else inputs
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def flatten(tensors: list[Tensor]) -> Float[Tensor, " P"]:
    """One flat float64 vector, in the order given."""
    return torch.cat([t.detach().reshape(-1).to(torch.float64) for t in tensors])


def unflatten(vector: Float[Tensor, " P"], like: Parameters) -> Parameters:
    """The inverse of `flatten`: named tensors with the shapes and dtypes of `like`."""
    pieces = vector.split([t.numel() for t in like.values()])
    return {
        name: piece.reshape(t.shape).to(t.dtype)
        for (name, t), piece in zip(like.items(), pieces, strict=True)
    }


def as_leaves(parameters: Parameters) -> Parameters:
    """The same values, for autograd to differentiate by."""
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}


def derivatives(value: Tensor, leaves: Parameters, *, create_graph: bool = False) -> list[Tensor]:
    """Derivatives of a scalar; zeros for parameters that do not reach it."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
    )
    return [slope.to_dense() if slope.layout is torch.sparse_coo else slope for slope in found]


def refuse_inference_mode() -> None:
    """Raise where derivatives would silently be zero."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "nothing can be differentiated inside torch.inference_mode(): call this outside of it, "
            "or use torch.no_grad() instead"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether there are no NaN or infinite values; the sum tells mostly, and needs no copy."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def first_non_finite(parameters: Parameters) -> str | None:
    """The name of the first parameter with NaN or infinite values."""
    return next((name for name, value in parameters.items() if not is_finite(value)), None)


def _culprit(parameters: Parameters, inputs: Inputs) -> str:
    """Why a loss is not finite, as far as a look at what goes in can tell."""
    parameter = first_non_finite(parameters)
    if parameter is not None:
        return f"parameter {parameter!r} has values that are not finite"
    if not all(map(is_finite, tensors_in(inputs))):
        return "its inputs contain values that are not finite"
    return "parameters and inputs are finite, so the network or the loss overflows there"
