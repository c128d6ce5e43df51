"""Whether the tensors of a batch can be cut into rows, or belong together, as those of a graph do.

A tuple or dict of inputs may hold tensors that have no entry a row. Some are shared by all rows (a
mask, positions) and stay as they are when rows are cut. Nodes and edges of graphs have lengths of
their own, and rows cannot be told apart in them: such a batch is run whole.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

import planimeter.landscape.landscape as home
from planimeter.errors import InputError
from planimeter.landscape.denominators import known_loss
from planimeter.landscape.means import MeanCheck
from planimeter.machine.memory import is_out_of_memory
from planimeter.network.returned import tensors_of
from planimeter.network.running import run_first
from planimeter.products.batches import copied, cut_rows, tensors_in

LOOKED_AT = 4
"""Batches on whose outputs a loss is tried."""


def is_indivisible(landscape: home.LossLandscape) -> bool:
    """Whether a model of several inputs takes a batch, but no two rows of it (a graph and its
    matrix, with as many rows as nodes)."""
    inputs, targets = next(iter(landscape.data))
    rows = len(targets)
    if len(tensors_in(inputs)) < 2 or rows < 3:
        return False

    def takes(some: object) -> bool:
        try:
            run_first(landscape.model, landscape.parameters, landscape.state, copied(some))
        except InputError:
            return False
        return True

    with torch.random.fork_rng([]), torch.enable_grad(), landscape.mode():
        return not takes(cut_rows(inputs, slice(2), rows)) and takes(inputs)


def belong_together(landscape: home.LossLandscape) -> bool:
    """Whether a part of the first batch gives other outputs than the same rows of the whole.

    Raises:
        InputError: it does, and the data are tensors of which a batch was to be cut; or outputs
            are not one a target.
    """
    inputs, targets = next(iter(landscape.data))
    rows, part = len(targets), slice(max(1, len(targets) // 2))
    with torch.enable_grad(), landscape.mode():
        whole = landscape.forward(landscape.parameters, inputs)
        try:
            if rows > 1 and any(len(t) == rows for t in tensors_in(inputs) if t.ndim):
                cut = landscape.forward(landscape.parameters, cut_rows(inputs, part, rows))
                if _same_rows(whole, cut, part, rows, 1e3 * torch.finfo(landscape.dtype).eps):
                    return False
        except Exception as error:  # an edge without its node, in the user's own code
            if is_out_of_memory(error):
                raise
    if isinstance(whole, Tensor) and (whole.ndim == 0 or len(whole) != rows):
        raise InputError(
            f"the model gives outputs of shape {tuple(whole.shape)} for {rows} targets: inputs of "
            f"{_lengths(inputs)} entries are run whole, and have to give one output a target"
        )
    data = landscape.data
    if data.tensors is not None and data.cut and data.batch_size < rows:
        raise InputError(
            f"inputs of {_lengths(inputs)} entries for {rows} targets belong together and cannot "
            f"be cut into batches of {data.batch_size}: leave out batch_size, or pass a list of "
            f"batches that are whole graphs"
        )
    return True


def check_batches(landscape: home.LossLandscape) -> None:
    """Refuse a loss that is no mean over rows, where several whole batches are put together.

    Rows of the outputs are cut here, not of the inputs.

    Raises:
        InputError: it is none on the first batches.
    """
    function, known = landscape.function, known_loss(landscape.loss_function)
    batches = list(islice(landscape.data, LOOKED_AT))
    if len(batches) == 1 or (known is not None and known.reduction == "mean"):
        return
    own = function.row_weights
    check = MeanCheck(
        function.loss,
        (lambda outputs, targets: float(len(targets))) if own is None else own.total,
        lambda: landscape.num_rows,
    )
    with torch.enable_grad(), landscape.mode():
        for inputs, targets in batches:
            if not check.look(landscape.forward(landscape.parameters, inputs), targets, inputs):
                raise InputError(check.refusal())


def _same_rows(whole: object, cut: object, part: slice, rows: int, slack: float) -> bool:
    pairs = [
        (a.detach(), b.detach()) for a, b in zip(tensors_of(whole), tensors_of(cut), strict=True)
    ]
    return all(
        one.ndim > 0
        and len(one) == rows
        and one[part].shape == two.shape
        and bool(
            torch.isclose(one[part], two, rtol=slack, atol=slack * float(one.abs().max())).all()
        )
        for one, two in pairs
    )


def _lengths(inputs: object) -> str:
    return ", ".join(str(len(t)) for t in tensors_in(inputs) if t.ndim)
