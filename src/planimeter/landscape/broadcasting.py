"""Targets that torch broadcasts against the outputs, so that rows are compared with one another.

Outputs (n, 1) and targets (n,) make a difference of shape (n, n): the mean of its squares compares
every output with every target, and is no loss of the network at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from planimeter.errors import InputError
from planimeter.landscape.denominators import known_loss
from planimeter.losses import Loss

_OF_ONE_SHAPE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss)


def refuse_broadcasting(loss: Loss, outputs: object, targets: object) -> None:
    """Refuse a loss that compares outputs and targets of different rows.

    Where it does, its slopes do not depend on which target stands beside which outputs: the rows
    of the outputs alone are put in another order, and the slopes come out in that order. So they
    do where targets do not matter, or as a set only: an operation has to broadcast them, too.

    Arguments:
        loss: of which one scalar comes out.
        outputs, targets: a few rows.

    Raises:
        InputError: it does; names the line that mends it.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if outputs.shape == targets.shape or not outputs.is_floating_point():
        return
    if not outputs.ndim or not targets.ndim or len(outputs) != len(targets):
        return
    known = known_loss(loss)
    if known is not None:
        if known.function in _OF_ONE_SHAPE:
            raise InputError(_words(outputs, targets))
        return
    if len(targets) < 2 or bool((targets == targets[:1]).all()):
        return  # nothing to compare: broadcast or not, the loss is the same
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(outputs), device=outputs.device)
    shuffled = torch.randperm(len(outputs), generator=generator).to(outputs.device)
    orders = [rows.roll(1), shuffled]  # pairs of rows may look alike after a roll
    # Where a loss is linear (absolute values, all of one sign), slopes say nothing: elsewhere too.
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    own, size = outputs.detach(), float(targets.abs().max())
    spread = max(float(own.abs().max()), size)
    levels = targets.reshape(-1)[torch.randint(targets.numel(), own.shape, generator=generator)]
    among = levels.to(own) + 0.1 * float(targets.double().std()) * noise
    places = (own, own + spread * noise, size * noise, among)
    found = {_mixes(loss, at, targets, orders) for at in places}
    if True in found and False not in found and _broadcasts(loss, own, targets):
        raise InputError(_words(outputs, targets))


def _mixes(loss: Loss, outputs: Tensor, targets: Tensor, orders: list[Tensor]) -> bool | None:
    """Whether outputs in other orders have the same slopes in those, and targets matter.

    None where nothing is said: the targets do not matter, or the loss is not defined there.
    """
    try:
        slopes = _slopes(loss, outputs, targets)
        slack = 1e3 * torch.finfo(slopes.dtype).eps * float(slopes.abs().max())
        if not 0 < slack < math.inf:
            return None
        for order in orders:
            if _apart(_slopes(loss, outputs[order], targets), slopes[order], slack):
                return False
        for row in (0, len(targets) // 2, len(targets) - 1):
            alike = targets[row : row + 1].expand_as(targets).clone()
            if _apart(_slopes(loss, outputs, alike), slopes, slack):
                return True
    except Exception:  # whatever a user's own code raises: it is said where the loss is used
        pass
    return None


def _broadcasts(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether an operation in the loss aligns rows with another dimension than the first."""
    with torch.enable_grad(), _Aligned(len(targets)) as seen:
        loss(outputs, targets)
    return seen.found


class _Aligned(TorchDispatchMode):
    """Notes operations on tensors of fewer dimensions whose first is as long as the rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.found = rows, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
        if len(given) > 1 or func is torch.ops.aten.expand.default:
            most = max(t.ndim for t in [*given, *([out] if isinstance(out, Tensor) else [])])
            shorter = [t for t in given if 0 < t.ndim < most]
            self.found |= any(len(t) == self.rows for t in shorter)
        return out


def _apart(one: Tensor, other: Tensor, slack: float) -> bool:
    return float((one - other).abs().max()) > slack


def _slopes(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(loss(leaf, targets), leaf)
    return slopes


def _words(outputs: Tensor, targets: Tensor) -> str:
    try:
        together = tuple(torch.broadcast_shapes(outputs.shape, targets.shape))
    except RuntimeError:
        together = ()
    one, other = tuple(outputs.shape), tuple(targets.shape)
    if outputs.ndim == targets.ndim + 1 and outputs.shape[1] == 1:
        mend = "pass targets[:, None], or let the model return outputs.squeeze(1)"
    elif targets.ndim == outputs.ndim + 1 and targets.shape[1] == 1:
        mend = "pass targets.squeeze(1), or let the model return outputs[:, None]"
    else:
        mend = "give the targets the shape of the outputs"
    return (
        f"the loss compares outputs of shape {one} with targets of shape {other}, which torch "
        f"broadcasts{f' to {together}' if together else ''}, so that outputs meet targets that "
        f"are not theirs: {mend}"
    )
