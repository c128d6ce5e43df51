r"""What one batch contributes to each kind of curvature, as a linear function of a direction.

.. math:: H v = \nabla(\nabla L \cdot v), \qquad
          G v = J^T C\, J v,

with J the Jacobian of the outputs and C acting on the outputs: the loss's own Hessian
:math:`\nabla^2_h L` (generalised Gauss-Newton), :math:`n \, \mathrm{diag}_i(s_i s_i^T)` with
:math:`s_i = \nabla_{h_i} L` (empirical Fisher, n rows), or the same with labels drawn from the
model (Monte-Carlo Fisher). Each comes in two forms, which check one another: by forward
derivatives, and by reverse derivatives of a graph that is built once; and in a third without
second derivatives, which is rough and checks both (`planimeter.products.differences`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from planimeter.products.batches import Batch, BatchedLoss, Parameters, as_leaves, derivatives
from planimeter.products.differences import gauss_newton_difference, hessian_difference
from planimeter.products.tape import RealZeros

Directions = list[Tensor]  # one tensor a parameter, of its shape
LinearMap = Callable[[Directions], Directions]


@runtime_checkable
class Curvature(Protocol):
    """A symmetric matrix that is a mean over batches."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def forward(self, function: BatchedLoss, parameters: Parameters, batch: Batch) -> LinearMap:
        """By forward derivatives; nothing is kept between calls."""

    def graph(
        self, function: BatchedLoss, parameters: Parameters, batch: Batch, index: int
    ) -> LinearMap:
        """By reverse derivatives of a graph that is kept."""

    def difference(
        self,
        function: BatchedLoss,
        parameters: Parameters,
        batch: Batch,
        directions: Directions,
        step: float,
    ) -> Directions:
        """A product by central differences of first derivatives."""


class Hessian:
    """The second derivative of the loss."""

    name = "Hessian"

    def __init__(self) -> None:
        # Real zeros cost small networks a quarter of a product: only where they are needed.
        self.zeros: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self, function: BatchedLoss, parameters: Parameters, batch: Batch) -> LinearMap:
        """Forward over reverse: the directional derivative of the gradient."""
        inputs, targets = batch
        frozen = {name: value.detach() for name, value in parameters.items()}

        def loss_of(p: Parameters) -> Tensor:
            return function.loss(function.forward(p, inputs), targets)

        slope = torch.func.grad(loss_of)

        def product(directions: Directions) -> Directions:
            along = dict(zip(frozen, directions, strict=True))
            try:
                with self.zeros():
                    _, derivative = torch.func.jvp(slope, (frozen,), (along,))
            except RuntimeError as error:
                if "ZeroTensor" not in str(error):
                    raise
                self.zeros = RealZeros
                return product(directions)
            return list(derivative.values())

        return product

    def graph(
        self, function: BatchedLoss, parameters: Parameters, batch: Batch, index: int
    ) -> LinearMap:
        """Reverse over reverse."""
        leaves = as_leaves(parameters)
        with torch.enable_grad():
            value = function.batch_loss(leaves, batch, index)
            slopes = derivatives(value, leaves, create_graph=True)
        return _pullback(slopes, leaves)

    def difference(
        self,
        function: BatchedLoss,
        parameters: Parameters,
        batch: Batch,
        directions: Directions,
        step: float,
    ) -> Directions:
        """Of gradients."""
        return hessian_difference(function, parameters, batch, directions, step)


OutputCurvature = Callable[[BatchedLoss, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GaussNewton:
    """:math:`J^T C J` for one of the matrices C below.

    Arguments:
        name: what messages call it.
        curve: (function, outputs, targets, direction of the outputs) to C times the direction.
    """

    name: str
    curve: OutputCurvature

    def forward(self, function: BatchedLoss, parameters: Parameters, batch: Batch) -> LinearMap:
        """A forward derivative, C, and a reverse derivative."""
        inputs, targets = batch
        frozen = {name: value.detach() for name, value in parameters.items()}

        def outputs_of(p: Parameters) -> Tensor:
            return function.forward(p, inputs)

        def product(directions: Directions) -> Directions:
            along = dict(zip(frozen, directions, strict=True))
            outputs, pushed = torch.func.jvp(outputs_of, (frozen,), (along,))
            curved = self.curve(function, outputs, targets, pushed)
            _, pull = torch.func.vjp(outputs_of, frozen)
            return list(pull(curved)[0].values())

        return product

    def graph(
        self, function: BatchedLoss, parameters: Parameters, batch: Batch, index: int
    ) -> LinearMap:
        """The forward derivative as the derivative of a reverse one, which is linear."""
        inputs, targets = batch
        leaves = as_leaves(parameters)
        with torch.enable_grad():
            outputs = function.forward(leaves, inputs)
            weights = torch.zeros_like(outputs, requires_grad=True)
            pulled = derivatives((outputs * weights).sum(), leaves, create_graph=True)
        push, pull = _pullback(pulled, {"": weights}), _pullback([outputs], leaves)

        def product(directions: Directions) -> Directions:
            (pushed,) = push(directions)
            return pull([self.curve(function, outputs.detach(), targets, pushed.detach())])

        return product

    def difference(
        self,
        function: BatchedLoss,
        parameters: Parameters,
        batch: Batch,
        directions: Directions,
        step: float,
    ) -> Directions:
        """Of outputs, and of the loss's slopes where C is its Hessian."""
        curve = None if self.curve is loss_curvature else self.curve
        return gauss_newton_difference(curve, function, parameters, batch, directions, step)


def loss_curvature(
    function: BatchedLoss, outputs: Tensor, targets: Tensor, direction: Tensor
) -> Tensor:
    """The Hessian of the mean loss by the outputs, times a direction of the outputs.

    Twice in reverse, which it may be since it is symmetric: not every loss of torch has the
    forward derivative of its gradient.
    """

    def slope(h: Tensor) -> Tensor:
        return torch.func.grad(lambda h: function.loss(h, targets))(h)

    _, pull = torch.func.vjp(slope, outputs.detach())
    curved: Tensor = pull(direction)[0]
    return curved


def empirical_fisher_curvature(
    function: BatchedLoss, outputs: Tensor, targets: Tensor, direction: Tensor
) -> Tensor:
    """The outer products of the rows' own gradients by their outputs, times a direction.

    The slope of row n of a mean with weights w has a factor w_n, its square must have one only.
    """
    products = _outer(function, outputs, targets, direction)
    if function.row_weights is None:
        return len(outputs) * products
    weights = function.row_weights.rows(outputs, targets).to(outputs.dtype)
    inverse = torch.where(weights > 0, 1 / weights, 0)
    return weights.sum() * inverse.reshape(-1, *[1] * (outputs.ndim - 1)) * products


def monte_carlo_fisher_curvature(
    function: BatchedLoss,
    outputs: Float[Tensor, "n ..."],
    targets: Shaped[Tensor, "n samples ..."],
    direction: Float[Tensor, "n ..."],
    terms: Callable[[Tensor], int],
) -> Tensor:
    """The same for labels drawn from the model; `terms` losses are averaged within a row.

    The function's loss is the mean over the draws, and its weights are numbers of losses.
    """
    samples = targets.split(1, dim=1)
    total = torch.zeros_like(outputs)
    for drawn in samples:
        total = total + _outer(function, outputs, drawn, direction)
    if function.row_weights is not None:
        counted = function.row_weights.rows(outputs, targets).sum().to(outputs.dtype)
        return counted / len(samples) * total
    return len(outputs) * terms(outputs) / len(samples) * total


def _outer(function: BatchedLoss, outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
    slopes = torch.func.grad(lambda h: function.loss(h, targets))(outputs.detach())
    along = (slopes * direction).flatten(1).sum(1) if slopes.ndim > 1 else slopes * direction
    return slopes * along.reshape(-1, *[1] * (slopes.ndim - 1))


def _pullback(values: Directions, leaves: Parameters) -> LinearMap:
    """cotangents -> their pull-back to the leaves through a graph that is kept."""
    live = [value.requires_grad for value in values]

    def pull(cotangents: Directions) -> Directions:
        # A value without a graph is constant: it adds nothing.
        if not any(live):
            return [torch.zeros_like(leaf) for leaf in leaves.values()]
        with torch.enable_grad():
            return list(
                torch.autograd.grad(
                    [v for v, on in zip(values, live, strict=True) if on],
                    list(leaves.values()),
                    [c for c, on in zip(cotangents, live, strict=True) if on],
                    retain_graph=True,
                    materialize_grads=True,
                )
            )

    return pull
