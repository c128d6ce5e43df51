r"""A mean loss over batches, and its gradient, Hessian and Gauss-Newton products.

With batches :math:`b` of :math:`n_b` rows and mean losses :math:`L_b`,

.. math:: L = \sum_b \tfrac{n_b}{N} L_b, \qquad
          H v = \sum_b \tfrac{n_b}{N} \nabla (\nabla L_b \cdot v), \qquad
          G v = \sum_b \tfrac{n_b}{N} J_b^T (\nabla^2_h \ell_b)\, J_b v,

so batches weigh by their size (uneven last batches are the classic silent error). Sums accumulate
in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.losses import Loss

Parameters = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchedLoss:
    """The mean of `loss(forward(parameters, inputs), targets)` over all rows of all batches.

    Arguments:
        forward: outputs of the network as a function of its parameters and inputs.
        loss: mean loss over the rows of a batch.
        batches: makes a fresh pass over the batches, the same ones every time.
        single: whether that pass is one batch, whose first-order graph is then worth keeping.
    """

    forward: Callable[[Parameters, Tensor], Tensor]
    loss: Loss
    batches: Callable[[], Iterator[Batch]]
    single: bool

    def batch_loss(self, parameters: Parameters, batch: Batch, index: int = 0) -> Float[Tensor, ""]:
        """Mean loss of one batch; refuses losses that are not finite or not scalars."""
        inputs, targets = batch
        value = self.loss(self.forward(parameters, inputs), targets)
        if value.ndim != 0:
            raise InputError(
                f"the loss must be a mean over the batch (a scalar), it returned shape "
                f"{tuple(value.shape)}: use reduction='mean'"
            )
        if not bool(torch.isfinite(value)):
            raise InputError(
                f"the loss is {value.item()} on batch {index}: check the parameters and the data"
            )
        return value

    def weighted(self) -> Iterator[tuple[int, float, Batch]]:
        """Batches with their index and their number of rows."""
        for index, batch in enumerate(self.batches()):
            yield index, float(len(batch[1])), batch


def mean_loss(function: BatchedLoss, parameters: Parameters) -> float:
    """L, in float64."""
    total, rows = 0.0, 0.0
    with torch.no_grad():
        for index, weight, batch in function.weighted():
            total += weight * float(function.batch_loss(parameters, batch, index))
            rows += weight
    if not rows:
        raise InputError("the data has no batches")
    return total / rows


def gradient(function: BatchedLoss, parameters: Parameters) -> Float[Tensor, " P"]:
    """The gradient of L, flat; parameters that the loss does not use give zeros."""
    with torch.enable_grad():  # also for a caller inside torch.no_grad()
        return _gradient(function, _leaves(parameters))


def _gradient(function: BatchedLoss, leaves: Parameters) -> Float[Tensor, " P"]:
    total, rows = torch.zeros((), dtype=torch.float64), 0.0
    for index, weight, batch in function.weighted():
        value = function.batch_loss(leaves, batch, index)
        total = total.to(value.device) + weight * flatten(_grads(value, leaves))
        rows += weight
    return total / rows


def hessian_product(
    function: BatchedLoss, parameters: Parameters
) -> Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]:
    """v -> H v by differentiating the gradient twice.

    The graph of the gradient is built once and kept when the data is a single batch; that halves
    the cost of every product after the first.
    """
    leaves = _leaves(parameters)

    def gradient_graph(index: int, batch: Batch) -> list[Tensor]:
        with torch.enable_grad():
            value = function.batch_loss(leaves, batch, index)
            return _grads(value, leaves, create_graph=True)

    kept: list[tuple[float, list[Tensor]]] = []

    def graphs() -> Iterator[tuple[float, list[Tensor]]]:
        if not function.single:
            for index, weight, batch in function.weighted():
                yield weight, gradient_graph(index, batch)
            return
        if not kept:
            index, weight, batch = next(function.weighted())
            kept.append((weight, gradient_graph(index, batch)))
        yield kept[0]

    def product(v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        directions = unflatten(v, leaves)
        total, rows = torch.zeros_like(v), 0.0
        for weight, grads in graphs():
            rows += weight
            # A gradient without a graph is constant (the loss is linear there): it adds nothing.
            live = [
                (g, d) for g, d in zip(grads, directions.values(), strict=True) if g.requires_grad
            ]
            if not live:
                continue
            second = torch.autograd.grad(
                [g for g, _ in live],
                list(leaves.values()),
                [d for _, d in live],
                retain_graph=function.single,
                materialize_grads=True,
            )
            total += weight * flatten(list(second))
        return total / rows

    return product


def gauss_newton_product(
    function: BatchedLoss, parameters: Parameters
) -> Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]:
    """v -> G v: a forward derivative, the loss's own output Hessian, a backward derivative."""
    frozen = {name: value.detach() for name, value in parameters.items()}

    def product(v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        directions = unflatten(v, frozen)
        total, rows = torch.zeros_like(v), 0.0
        for _, weight, (inputs, targets) in function.weighted():

            def outputs_of(p: Parameters, x: Tensor = inputs) -> Tensor:
                return function.forward(p, x)

            def loss_of(outputs: Tensor, y: Tensor = targets) -> Tensor:
                return function.loss(outputs, y)

            outputs, pushed = torch.func.jvp(outputs_of, (frozen,), (directions,))
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_()
                (slope,) = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)
                curved = (
                    torch.autograd.grad(slope, leaf, pushed.detach(), materialize_grads=True)[0]
                    if slope.requires_grad
                    else torch.zeros_like(leaf)
                )
                leaves = _leaves(frozen)
                value = (outputs_of(leaves) * curved).sum()
                total += weight * flatten(_grads(value, leaves))
            rows += weight
        return total / rows

    return product


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


def _leaves(parameters: Parameters) -> Parameters:
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}


def _grads(value: Tensor, leaves: Parameters, *, create_graph: bool = False) -> list[Tensor]:
    """Derivatives of a scalar; zeros for parameters that do not reach it."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    return list(
        torch.autograd.grad(
            value, list(leaves.values()), create_graph=create_graph, materialize_grads=True
        )
    )
