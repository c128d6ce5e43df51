"""How a module is run at given tensors: its own are not used, and what it writes does not last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.machine.memory import is_out_of_memory
from planimeter.network.checkpointing import Unchecked
from planimeter.network.returned import tensors_of
from planimeter.products.batches import Inputs, is_finite, tensors_in

State = Mapping[str, Tensor]
_version = attrgetter("_version")

ONE_ROW = "Expected more than 1 value per channel when training"
"""How torch's message begins, where BatchNorm has one row."""


def run(
    model: nn.Module, state: dict[str, Tensor], inputs: Inputs, written: Collection[str] = ()
) -> Any:
    """What the model returns at given parameters and buffers, in whatever mode it is in.

    Gradients are on: a module may differentiate inside `forward`. No graph is kept for one that
    does not, as long as nothing in `state` requires a gradient.

    Arguments:
        model: its own parameters and buffers are left alone.
        state: tensors by name; the dict, not the tensors, is used up.
        inputs: a tensor; a tuple is its arguments, a dict its keyword arguments.
        written: names of buffers that the model writes to; it gets copies of them.

    Raises:
        InputError: the model writes to another tensor of the state; or BatchNorm is to take the
            statistics of a single row.
    """
    for name in written:
        state[name] = state[name].clone()
    tensors = list(state.values())  # what a module assigns to its buffers replaces those in `state`
    before = list(map(_version, tensors))
    result = _called(model, state, inputs)
    if before != list(map(_version, tensors)):
        pairs = zip(state, tensors, before, strict=True)
        changed = [n for n, t, version in pairs if t._version != version and n not in written]
        if changed:
            raise InputError(_writes(changed))
    return result


def run_first(
    model: nn.Module, parameters: State, fixed: State, inputs: Inputs
) -> tuple[Any, frozenset[str]]:
    """What a model returns on an example, and the names of the buffers that it writes to.

    Arguments:
        model: what it writes to its own tensors, by another name or way, is put back.
        parameters, fixed: copies of the model's own parameters and buffers, in values.
        inputs: of some rows.

    Raises:
        InputError: it writes to a parameter, or does not take the inputs; says so in words.
    """
    state = {**fixed, **parameters}
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # Inference tensors count no versions, and refuse what is written to them themselves.
    own = {name: tensor for name, tensor in own.items() if not tensor.is_inference()}
    versions = {name: tensor._version for name, tensor in own.items()}
    copies = {name: tensor.clone() for name, tensor in state.items()}
    try:
        result = _called(model, dict(copies), inputs)
    except InputError:
        raise
    except Exception as error:  # whatever the user's own code raises
        if is_out_of_memory(error):
            raise
        raise InputError(_misfit(error, inputs)) from error
    finally:
        held = [name for name, tensor in own.items() if tensor._version != versions[name]]
        with torch.no_grad():
            for name in held:
                own[name].copy_(state[name])
    changed = {name for name, copy in copies.items() if not _same(copy, state[name])} | {*held}
    if changed & {name for name, _ in model.named_parameters()} or held:
        raise InputError(_writes(sorted(changed)))
    bad = [n for n, t in fixed.items() if t.is_floating_point() and bool(t.isnan().any())]
    if bad and not all(map(is_finite, tensors_of(result))):
        raise InputError(
            f"the outputs are not finite, and {bad[0]!r}, which no gradient is taken by, has NaN: "
            f"the checkpoint or the training run is broken"
        )
    return result, frozenset(changed)


def without_graph(compute: Callable[[], Any]) -> Any:
    """`compute()` without gradients, or with them where a module in it differentiates itself."""
    try:
        with torch.no_grad():
            return compute()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return compute()


def one_row(error: ValueError) -> InputError | None:
    """torch's error on a batch of one row with the way out, or None for another error."""
    if ONE_ROW not in str(error):
        return None
    return InputError(
        f"a batch has one row, and BatchNorm in training mode cannot take the statistics of one "
        f"({str(error).splitlines()[0]}): choose a batch size that leaves no single row at the "
        f"end, drop the last batch, or let BatchNorm use its running statistics (eval)"
    )


def _called(model: nn.Module, state: dict[str, Tensor], inputs: Inputs) -> Any:
    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(inputs, dict):
        keywords = inputs
    else:
        positional = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        if torch.is_grad_enabled():
            with Unchecked():
                return torch.func.functional_call(model, state, positional, keywords)
        with torch.enable_grad(), Unchecked():
            return torch.func.functional_call(model, state, positional, keywords)
    except ValueError as error:
        words = one_row(error)
        if words is None:
            raise
        raise words from error


def _writes(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:4])) + (" and others" if len(names) > 4 else "")
    return (
        f"the model changes {shown} when it runs, in evaluation mode too, and a landscape is that "
        f"of given weights: let forward work on a copy, or write only where self.training is set"
    )


def _misfit(error: Exception, inputs: Inputs) -> str:
    """What the model was given and what it raised, with the usual reasons."""
    tensors = tensors_in(inputs)
    kinds = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
    lines = str(error).strip().splitlines() or ["no more is known"]
    words = f"the model does not take inputs of {kinds}: {type(error).__name__}: {lines[0]}"
    if any(t.dtype == torch.uint8 for t in tensors):
        words += "; bytes are no numbers to a network: pass inputs.float() / 255"
    elif isinstance(inputs, dict):
        words += (
            f"; a dict is its keyword arguments ({', '.join(map(str, inputs))}): for a model of "
            f"one argument, pass pairs: [(batch[{next(iter(inputs))!r}], batch[...]) for batch in "
            f"loader]"
        )
    elif isinstance(inputs, tuple):
        words += (
            f"; a tuple is its {len(inputs)} arguments, and the last part of a batch the targets: "
            f"if there is an index or weight among them, pass pairs: "
            f"[(x, y) for x, y, _ in loader]"
        )
    return words


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors have the same values, NaN counted as one."""
    if torch.equal(one, two):
        return True
    nans = one.isnan() & two.isnan()
    return bool((nans | (one == two)).all())
