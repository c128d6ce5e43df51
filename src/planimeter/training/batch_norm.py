r"""BatchNorm's running statistics, computed afresh over all rows of one or several sets.

For each channel of a layer, over the m numbers that reach it from all rows (and pixels),

.. math:: \mu = \frac{1}{m} \sum_i a_i, \qquad v = \frac{1}{m - 1} \sum_i (a_i - \mu)^2,

where the activations :math:`a_i` are those of the network whose earlier BatchNorm layers already
have their new statistics. So every row counts once, and how rows are cut into batches does not.
(A mean over batches, as `torch.optim.swa_utils.update_bn` takes, weighs a small batch like a large
one, and normalises deeper layers by the statistics of each.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from planimeter.network.modes import batch_norms
from planimeter.network.running import without_graph
from planimeter.training.evaluation import Rows, device_of, pieces, rows_per_piece


def recompute_batch_norm(model: nn.Module, *sets: Rows) -> None:
    """BatchNorm's running statistics of a model from all rows of these sets together.

    Rows that fit into one piece cost one pass; else a layer is computed after the other, each with
    a pass that ends at it. Dropout draws as it does in training; torch's global random numbers are
    left where they were.
    """
    norms = [norm for norm in batch_norms(model) if norm.running_mean is not None]
    if not norms:
        return
    device = device_of(model)
    together = _together([rows for rows in sets if not isinstance(rows, tuple) or len(rows[1])])
    if not together:
        return
    with _all_but_norms_training(model):
        first = together[0]
        if len(together) == 1 and isinstance(first, tuple) and _one_piece(first[0]):
            with _own_generator(device):
                whole = first[0].to(device)
                without_graph(lambda: _in_one_pass(model, norms, whole))
            return
        waiting = set(norms)
        while waiting:
            with _own_generator(device):  # the same draws in every pass: one network throughout
                found = without_graph(lambda: _next_layer(model, waiting, together, device))
            if found is None:
                return  # what is left never runs
            waiting.remove(found)


class _Moments:
    """Count, mean and sum of squared deviations of each channel, in float64, by Chan's merging."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(
            (), dtype=torch.float64
        )  # moves to the activations' device

    def add(self, activations: Tensor) -> None:
        rest = [d for d in range(activations.dim()) if d != 1]
        exact = activations if activations.dtype == torch.float64 else activations.float()
        variance, mean = torch.var_mean(exact, rest, correction=0)
        count = activations.numel() // max(activations.shape[1], 1)
        if not count:
            return
        total = self.count + count
        step = mean.double() - self.mean
        apart = step**2 * (self.count * count / total)
        self.squares = self.squares + variance.double() * count + apart
        self.mean = self.mean + step * (count / total)
        self.count = total

    def write(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / max(self.count - 1, 1))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(1)


def _in_one_pass(model: nn.Module, norms: list[_BatchNorm], inputs: Tensor) -> None:
    """Every layer gets its statistics from what reaches it, and passes on what they make of it."""
    moments = {norm: _Moments() for norm in norms}

    def see(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        moments[norm].add(
            arguments[0].detach()
        )  # a layer that is applied several times sees all of it
        moments[norm].write(norm)

    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """A pass has seen all that its layer is given."""


def _next_layer(
    model: nn.Module, waiting: set[_BatchNorm], sets: Sequence[Rows], device: torch.device
) -> _BatchNorm | None:
    """The first layer that waits gets its statistics; None if a pass meets no such layer."""
    found: list[_BatchNorm] = []
    moments, calls, expected = _Moments(), 0, 0

    def see(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal calls
        assert isinstance(norm, _BatchNorm)
        if not found:
            found.append(norm)
        if norm is not found[0]:
            return
        moments.add(arguments[0].detach())
        calls += 1
        if calls == expected:
            raise _Reached

    handles = [norm.register_forward_pre_hook(see) for norm in waiting]
    try:
        for number, (inputs, _) in enumerate(part for rows in sets for part in pieces(rows)):
            calls = 0
            with suppress(_Reached):
                model(inputs.to(device))
            if number == 0:
                expected = calls  # a layer may be applied several times; it is met as often again
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return None
    moments.write(found[0])
    return found[0]


def _together(sets: Sequence[Rows]) -> Sequence[Rows]:
    """Sets of tensors that fit into one piece together, as one."""
    tensors = [rows for rows in sets if isinstance(rows, tuple)]
    alike = len(tensors) > 1 and all(
        rows[0].shape[1:] == tensors[0][0].shape[1:] and rows[0].device == tensors[0][0].device
        for rows in tensors
    )
    count = sum(len(rows[1]) for rows in tensors)
    if len(tensors) == len(sets) and alike and count <= rows_per_piece(tensors[0][0]):
        return [(torch.cat([x for x, _ in tensors]), torch.cat([y for _, y in tensors]))]
    return sets


def _one_piece(inputs: Tensor) -> bool:
    return len(inputs) <= rows_per_piece(inputs)


@contextmanager
def _all_but_norms_training(model: nn.Module) -> Iterator[None]:
    """Modules in training mode inside, BatchNorm in evaluation mode; their flags given back."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.train()
        for norm in batch_norms(model):
            norm.training = False
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def _own_generator(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
