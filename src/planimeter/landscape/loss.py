"""The loss as a landscape takes it: a scalar, in words where it is none, and its rows' weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves as leaves

from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape.broadcasting import refuse_broadcasting
from planimeter.landscape.denominators import (
    is_pair,
    known_loss,
    quotient,
    summed_rows,
)
from planimeter.landscape.means import MeanCheck, way_out
from planimeter.losses import Loss
from planimeter.machine.memory import is_out_of_memory
from planimeter.network.returned import described, refuse_complex_loss, tensors_of
from planimeter.products.batches import (
    Batch,
    RowWeights,
    as_leaves,
    copied,
    cut_rows,
    is_changed,
)

if TYPE_CHECKING:
    from planimeter.landscape.landscape import LossLandscape

FEW = 64
"""Rows that a loss is tried on."""
LOOKED_AT = 4
"""Batches that are looked at at once, and their rows at most; the others when they are used."""
ROWS = 2048


def scalar_loss(landscape: LossLandscape, weight: Callable[[Tensor], Any] | None) -> Loss:
    """The loss as a scalar; its rows' weights become those of the landscape's function.

    Raises:
        InputError: the loss does not take the outputs with the targets, torch broadcasts them, or
            the weights are none.
    """
    function = landscape.function
    outputs, targets, value = function.surviving(lambda: _tried(landscape))
    own = landscape.loss_function
    pair = is_pair(value)
    scalar: Loss = quotient(own) if pair else own
    refuse_broadcasting(scalar, outputs, targets)
    known = known_loss(own)
    if weight is not None:
        function.row_weights = RowWeights(
            _given(weight), lambda _, targets: float(_total(weight(targets), targets))
        )
    elif pair:
        count = _counts(own)
        _refuse_moving(landscape, count, outputs, targets)
        function.row_weights = RowWeights(
            _one_by_one(count), count, lambda batch: _outputs(landscape, batch)
        )
    elif known is not None and known.of_classes and known.reduction == "mean":
        own_weights = known.row_weights
        function.row_weights = RowWeights(
            lambda _, targets: own_weights(targets),
            lambda _, targets: float(own_weights(targets).sum()),
        )
    return scalar


def put_together(landscape: LossLandscape, given: bool) -> None:
    """See that batches can be put together, and let those that cannot stay whole.

    Arguments:
        given: whether the weights of rows are the caller's.

    Raises:
        InputError: the loss is no mean over rows, and the data comes in several batches.
    """
    function, known = landscape.function, known_loss(landscape.loss_function)
    several = len(list(islice(landscape.data, 2))) > 1
    if known is not None and known.reduction == "sum":
        rows = landscape.num_rows
        if several:
            raise InputError(
                f"the loss is not a mean over rows but a sum, and the data has several batches: "
                f"use reduction='mean', or divide the sum by a constant (lambda outputs, targets: "
                f"loss(outputs, targets) / {rows})"
            )
        said = f"everything is {rows} times what it is for the mean; use reduction='mean'"
        _take_sum(landscape, said)
    elif known is None or given:
        check = _looked(landscape)
        if not check.mean and several and check.kept is not None:
            refuse_broadcasting(landscape.scalar_loss, *check.kept)  # batches of one row hide it
        if not check.mean and function.row_weights is not None:
            raise InputError(
                f"the loss is not the mean of rows with these weights: {check.words}; the weights "
                f"of a batch have to add up to what the loss divides by there, and rows of weight "
                f"0 to add nothing; else divide a sum by a constant, or pass all rows as one batch"
            )
        if not check.mean and check.sum:
            rows = landscape.num_rows
            said = f"the total over all {rows} rows is measured, which is {rows} times their mean "
            _take_sum(landscape, said + "unless the loss divides by a constant")
            check = _looked(landscape)
        if not check.mean:
            _keep_whole(landscape, several, check.refusal(), check.words)
            return
        function.check = check if several else None
    words = function.surviving(lambda: _mixed_rows(landscape))
    if words:
        _keep_whole(landscape, several, words, words)


def _tried(landscape: LossLandscape) -> tuple[Any, Tensor, Any]:
    """Outputs, targets and what the loss returns on a few rows, or on the batch if it must be."""
    # A model or a loss may differentiate inside.
    devices = [landscape.device] if landscape.device.type == "cuda" else []
    forked = torch.random.fork_rng(devices)
    with forked, torch.enable_grad(), landscape.mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size")  # it is refused, in more words
        batch = landscape.first_rows(FEW)
        try:
            outputs, targets, value = _twice(landscape, batch)
            refuse_complex_loss(value)
            return outputs, targets, value
        except InputError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            whole = next(iter(landscape.data))
            if len(whole[1]) > len(batch[1]):
                try:  # weights of its own for every row, perhaps
                    return _twice(landscape, whole)
                except (IndexError, RuntimeError, TypeError, ValueError):
                    pass
            outputs, targets = _run(landscape, batch)
            kind = str(targets.dtype).removeprefix("torch.")
            raise InputError(
                f"the loss does not take outputs {described(outputs)} with {kind} targets of shape "
                f"{tuple(targets.shape)}, which are {targets.min():g} to {targets.max():g}: "
                f"{str(error).splitlines()[0]}"
            ) from error


def _twice(landscape: LossLandscape, batch: Batch) -> tuple[Any, Tensor, Any]:
    """Outputs, targets and the loss, which takes copies from then on of what it writes to.

    Raises:
        InputError: it is another one when it is computed again.
    """
    loss = landscape.loss_function
    outputs, targets = _run(landscape, batch)
    versions = [tensor._version for tensor in tensors_of(outputs)]
    given = targets.clone()
    first = loss(outputs, given)
    if known_loss(loss) is not None:
        return outputs, targets, first
    if versions != [tensor._version for tensor in tensors_of(outputs)]:
        landscape.loss_function = lambda h, y: loss(copied(h), y.clone())
        outputs, _ = _run(landscape, batch)
    elif is_changed(targets, given):
        landscape.loss_function = lambda h, y: loss(h, y.clone())
    again = landscape.loss_function(outputs, targets)
    for one, two in zip(_numbers(first), _numbers(again), strict=False):
        if abs(one - two) > 100 * torch.finfo(landscape.dtype).eps * max(abs(one), abs(two)):
            raise InputError(
                f"the loss is another one when it is computed again on the same outputs ({one:.6g} "
                f"and {two:.6g}): it draws random numbers, counts its calls or keeps something "
                f"from one to the next; draw noise once and pass it with the inputs or targets, "
                f"and hold what changes"
            )
    return outputs, targets, first


def _numbers(value: Any) -> list[float]:
    """Of what a loss returned: a number or (sum, count), or what is refused later."""
    parts = [part for part in leaves(value) if isinstance(part, Tensor | int | float)]
    return [float(torch.as_tensor(part).detach().abs().sum()) for part in parts]


def _looked(landscape: LossLandscape) -> MeanCheck:
    """A look at the first batches, and at rows from all over the data."""
    function = landscape.function

    def forward(inputs: Any) -> Any:
        return landscape.forward(landscape.parameters, inputs)

    check = MeanCheck(function.loss, _weight(landscape), lambda: landscape.num_rows, forward)
    landscape.function.surviving(lambda: _look(landscape, check))
    return check


def _look(landscape: LossLandscape, check: MeanCheck) -> None:
    seen, room = 0, landscape.function.rows or ROWS
    with torch.enable_grad(), landscape.mode():
        for batch in islice(landscape.data, LOOKED_AT):
            some = slice(max(0, min(ROWS - seen, room)))
            inputs, targets = batch
            part = cut_rows(inputs, some, len(targets)), targets[some]
            if len(part[1]):
                check.look(*_run(landscape, part), part[0])
            seen += len(part[1])
        spread = landscape.data.spread(min(FEW, room))
        if spread is not None:
            check.look(*_run(landscape, spread), spread[0])


def _mixed_rows(landscape: LossLandscape) -> str:
    """What is wrong where the model's outputs for a row depend on the others."""
    weight, losses, weights = _weight(landscape), [], []
    inputs, targets = landscape.first_rows(ROWS)
    rows = len(targets)
    cut = rows // 3 if rows > 5 else rows // 2
    try:
        with torch.enable_grad(), landscape.mode():
            for part in (slice(None), slice(cut), slice(cut, None)) if cut else ():
                outputs, some = _run(landscape, (cut_rows(inputs, part, rows), targets[part]))
                weights.append(weight(outputs, some))
                value = landscape.function.loss(outputs, some) if weights[-1] else torch.zeros(())
                losses.append(float(value.detach().mean()))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        if min(cut, rows - cut) == 1:
            return ""  # a loss that squeezes does not take a single row
        first = (str(error).splitlines() or [""])[0]
        return (
            f"the loss is not a mean over rows: model and loss do not take {len(some)} of the "
            f"{rows} rows by themselves ({first}), as where the first dimension of the inputs is "
            f"time (batch_first=True) or a node of a graph: pass all rows as one batch"
        )
    if not sum(weights):
        return ""
    (whole, left, right), (_, w, v) = losses, weights
    parts = (w * left + v * right) / (w + v)
    slack = min(0.1, 100 * torch.finfo(landscape.dtype).eps)
    if abs(whole - parts) <= slack * max(abs(whole), abs(parts)):
        return ""
    why = "since the model's outputs for a row depend on the others: pass all rows as one batch"
    if not isinstance(outputs, Tensor):  # a structure, which only the model can cut
        why = f"by the model or by the loss: {way_out(landscape.num_rows)}"
    return (
        f"the loss is not a mean over rows: {whole:.6g} on {rows} rows, but {parts:.6g} from {cut} "
        f"and {rows - cut} of them put together, {why}"
    )


def _keep_whole(landscape: LossLandscape, several: bool, refusal: str, words: str) -> None:
    """Measure in one batch what cannot be cut, and say so."""
    landscape.function.separable = False
    if several:
        if landscape.data.tensors is None:
            raise InputError(refusal)
        landscape.data.whole = True
    warnings.warn(
        f"the loss cannot be cut into batches ({words.partition('; ')[0]}): all "
        f"{landscape.num_rows} rows are measured in one, and what needs the loss of single rows is "
        f"refused; {way_out(landscape.num_rows)}",
        MeasurementWarning,
        stacklevel=4,
    )


def _take_sum(landscape: LossLandscape, words: str) -> None:
    """Make a mean of a sum over rows, N times as large."""
    total, rows = landscape.scalar_loss, landscape.num_rows

    def mean(outputs: Any, targets: Tensor) -> Tensor:
        return total(outputs, targets) * (rows / len(targets))

    landscape.take_loss(mean)
    warnings.warn(f"the loss is a sum over rows: {words}", MeasurementWarning, stacklevel=4)


def _run(landscape: LossLandscape, batch: Batch) -> tuple[Any, Tensor]:
    inputs, targets = batch
    return landscape.forward(landscape.parameters, inputs), targets


def _outputs(landscape: LossLandscape, batch: Batch) -> Any:
    with torch.enable_grad(), landscape.mode():
        return landscape.forward(landscape.parameters, batch[0])


def _weight(landscape: LossLandscape) -> Callable[[Any, Tensor], float]:
    """The weight of some rows, by outputs and targets."""
    own = landscape.function.row_weights
    return (lambda outputs, targets: float(len(targets))) if own is None else own.total


def _total(found: Any, targets: Tensor) -> Tensor:
    rows = summed_rows(found, targets)
    return torch.as_tensor(found) if rows is None else rows.sum()


def _given(weight: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """The weights of rows; of one after the other where only their total is given."""

    def rows(outputs: Any, targets: Tensor) -> Tensor:
        found = summed_rows(weight(targets), targets)
        if found is not None:
            return found
        each = [float(_total(weight(one), one)) for one in targets.split(1)]
        return torch.tensor(each, dtype=torch.float64, device=targets.device)

    return rows


def _refuse_moving(
    landscape: LossLandscape,
    count: Callable[[Any, Tensor], float],
    outputs: Any,
    targets: Tensor,
) -> None:
    """Refuse a count that other outputs change: derivatives would have a part of it."""
    if not isinstance(outputs, Tensor):
        if _bends(landscape):
            raise InputError(
                "the loss returned (sum, count) with a count that depends on the parameters: it "
                "has to be a number that targets and inputs say; let the loss divide by it itself"
            )
        return
    found = [count(some, targets) for some in (outputs, 0.5 * outputs, outputs.roll(1, 0))]
    if max(found) > min(found):
        raise InputError(
            f"the loss returned (sum, count) with a count that depends on the outputs "
            f"({min(found):g} or {max(found):g}): it has to be a number that the targets say"
        )


def _bends(landscape: LossLandscape) -> bool:
    """Whether the count has a gradient."""
    with torch.enable_grad(), landscape.mode():
        inputs, targets = landscape.first_rows(2)
        outputs = landscape.forward(as_leaves(landscape.parameters), inputs)
        count = landscape.loss_function(outputs, targets)[1]
    return isinstance(count, Tensor) and count.requires_grad


def _counts(loss: Callable[..., Any]) -> Callable[[Any, Tensor], float]:
    def count(outputs: Any, targets: Tensor) -> float:
        return float(loss(outputs, targets)[1])

    return count


def _one_by_one(count: Callable[[Any, Tensor], float]) -> Callable[[Any, Tensor], Tensor]:
    def rows(outputs: Any, targets: Tensor) -> Tensor:
        each = [
            count(cut_rows(outputs, slice(i, i + 1), len(targets)), targets[i : i + 1])
            for i in range(len(targets))
        ]
        return torch.tensor(each, dtype=torch.float64, device=targets.device)

    return rows
