r"""Products with a curvature from first derivatives alone, by central differences.

.. math:: H v \approx \frac{\nabla L(\theta + t v) - \nabla L(\theta - t v)}{2 t}, \qquad
          J v \approx \frac{h(\theta + t v) - h(\theta - t v)}{2 t},

and the same for the curvature of the loss by the outputs. They need no second derivative: they
witness whether one is right, and stand in where there is none. In float64 they keep half of the
digits, so that is what a model runs in here wherever it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from planimeter.products.batches import Batch, BatchedLoss, Parameters, as_leaves, derivatives

NARROW = (torch.float32, torch.float16, torch.bfloat16)
STEP = 1e-6
"""Length of a step in float64, as a part of the length of what it changes."""


def gradient_at(
    function: BatchedLoss, parameters: Parameters, batch: Batch
) -> tuple[float, list[Tensor] | None]:
    """The loss of one batch and its gradient, which is None where the loss has none."""
    leaves = as_leaves(parameters)
    with torch.enable_grad():
        value = function.batch_loss(leaves, batch)
        slopes = derivatives(value, leaves) if value.requires_grad else None
    return float(value.detach()), slopes


def moved(parameters: Parameters, directions: list[Tensor], step: float) -> Parameters:
    """The parameters, a step along the directions away."""
    pairs = zip(parameters.items(), directions, strict=True)
    return {name: value.detach() + step * along for (name, value), along in pairs}


def hessian_difference(
    function: BatchedLoss,
    parameters: Parameters,
    batch: Batch,
    directions: list[Tensor],
    step: float,
) -> list[Tensor]:
    """H v from two gradients."""
    ends = [
        gradient_at(function, moved(parameters, directions, s), batch)[1] for s in (step, -step)
    ]
    zeros = [torch.zeros_like(value) for value in parameters.values()]
    ahead, behind = (zeros if end is None else end for end in ends)
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def gauss_newton_difference(
    curve: Callable[[BatchedLoss, Tensor, Tensor, Tensor], Tensor] | None,
    function: BatchedLoss,
    parameters: Parameters,
    batch: Batch,
    directions: list[Tensor],
    step: float,
) -> list[Tensor]:
    """J^T C J v from two outputs, C, and one reverse derivative.

    Without a `curve`, C is the Hessian of the loss by the outputs, and C J v the difference of its
    slopes at the two outputs.
    """
    inputs, targets = batch
    ahead, behind = (
        function.forward(moved(parameters, directions, s), inputs).detach() for s in (step, -step)
    )
    leaves = as_leaves(parameters)
    with torch.enable_grad():
        outputs = function.forward(leaves, inputs)
        if curve is None:
            slopes = [_slope(function, h, targets) for h in (ahead, behind)]
            curved = (slopes[0] - slopes[1]) / (2 * step)
        else:
            curved = curve(function, outputs.detach(), targets, (ahead - behind) / (2 * step))
        return derivatives((outputs * curved.detach()).sum(), leaves)


def _slope(function: BatchedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    leaf = outputs.requires_grad_()
    return derivatives(function.loss(leaf, targets), {"": leaf})[0]


def step_along(point: list[Tensor], directions: list[Tensor]) -> float:
    """How far to go: a fixed part of the point's own length, by its dtype."""
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in point)
    part = STEP if epsilon < 1e-12 else epsilon ** (1 / 3)
    length, along = _length(point), _length(directions)
    own = length if length > 0 else sum(tensor.numel() for tensor in point) ** 0.5
    return part * own / along if along > 0 else part


def cut_off(values: Any) -> Any:
    """Tensors without the graph they come from, in whatever they are packed."""
    return tree_map(lambda one: one.detach() if isinstance(one, Tensor) else one, values)


def widened(values: Any) -> Any:
    """Floating tensors as float64, in whatever they are packed."""

    def wide(one: Any) -> Any:
        return one.double() if isinstance(one, Tensor) and one.dtype in NARROW else one

    return tree_map(wide, values)


@contextmanager
def asking_for_float64() -> Iterator[None]:
    """A model that asks for float32 inside, by a cast or by torch's default, gets float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(default)


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return Tensor.double(args[0])
        return func(*map(_wide, args), **{k: _wide(v) for k, v in (kwargs or {}).items()})


def _wide(argument: Any) -> Any:
    is_narrow = isinstance(argument, torch.dtype) and argument in NARROW
    return torch.float64 if is_narrow else argument


def _length(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.detach().double().norm() for t in tensors]).norm())
