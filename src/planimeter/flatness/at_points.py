"""The loss of one network and its slope at several points of the parameters.

Chains of linear layers and ReLUs, which spend most of their time between operations, are stacked
(`planimeter.network.stack`), a quarter of the time for a handful of points; any other network is
looked at point by point, since on a processor stacked convolutions are slower than single ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import NotApplicableError
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy, row_loss
from planimeter.network.stack import ChainStack, stack_of
from planimeter.products.batches import Batch, BatchedLoss, as_leaves

Losses = Callable[[Float[Tensor, "s P"]], tuple[Float[Tensor, " s"], Float[Tensor, "s P"]]]
"""Points to the losses there, float64 on the CPU, and their gradients."""

STACKED = 2**22
"""Numbers of parameters that are stacked at a time."""
_MEANS = (binary_cross_entropy, torch.nn.functional.cross_entropy)
"""Losses whose rows `row_loss` has written out."""


def losses_at(landscape: LossLandscape, batch: Batch | None = None) -> Losses:
    """Losses and gradients at several points, on one batch or on all data.

    To be called in `landscape.mode()`.
    """
    stacked = _stacked(landscape, batch)
    return _one_by_one(landscape, batch) if stacked is None else stacked


def output_directions(
    landscape: LossLandscape, batch: Batch | None, count: int, generator: torch.Generator
) -> Float[Tensor, "k P"]:
    r"""Gradients of random combinations of the outputs, :math:`J^T u` with u normal; none where the
    model returns several tensors.

    Arguments:
        batch: whose outputs; None for those of all rows.
        count: of combinations.
        generator: whose seed is that of the u.
    """
    seed = generator.initial_seed()
    function = landscape.function if batch is None else _of_batch(landscape, batch)

    def compute() -> Tensor:
        # Of NumPy, whose numbers do not depend on how many are drawn at a time: batches.
        draws = [np.random.default_rng([seed, i]) for i in range(count)]
        leaves = as_leaves(landscape.parameters)
        total = torch.zeros(count, landscape.num_parameters, dtype=landscape.dtype)
        total = total.to(landscape.device)
        for _, _, (inputs, _) in function.pieces():
            outputs = landscape.outputs(leaves, inputs)
            if not outputs.requires_grad:
                continue
            for row, own in zip(total, draws, strict=True):
                u = torch.from_numpy(own.standard_normal(outputs.shape)).to(outputs)
                slopes = torch.autograd.grad(
                    outputs, list(leaves.values()), u, retain_graph=True, materialize_grads=True
                )
                row += torch.cat([slope.reshape(-1) for slope in slopes]).to(row)
        return total

    with torch.enable_grad(), landscape.mode():
        try:
            found: Tensor = function.surviving(compute)
        except NotApplicableError:
            return torch.zeros(0, landscape.num_parameters, device=landscape.device)
    return found


def _of_batch(landscape: LossLandscape, batch: Batch) -> BatchedLoss:
    return BatchedLoss(landscape.forward, landscape.function.loss, lambda: iter([batch]))


def _one_by_one(landscape: LossLandscape, batch: Batch | None) -> Losses:
    sizes = [value.numel() for value in landscape.parameters.values()]

    def of_batch(point: Tensor) -> tuple[float, Tensor]:
        assert batch is not None
        inputs, targets = batch
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            pieces = zip(landscape.parameters.items(), leaf.split(sizes), strict=True)
            parameters = {name: piece.view_as(p).to(p.dtype) for (name, p), piece in pieces}
            loss = landscape.function.loss(landscape.forward(parameters, inputs), targets)
            (slope,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), slope

    def of_all(point: Tensor) -> tuple[float, Tensor]:
        return landscape.at(point).loss_and_gradient()

    def losses(points: Float[Tensor, "s P"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s P"]]:
        found = [of_all(point) if batch is None else of_batch(point) for point in points]
        values = torch.tensor([value for value, _ in found], dtype=torch.float64)
        return values, torch.stack([slope for _, slope in found]).to(points)

    return losses


def _stacked(landscape: LossLandscape, batch: Batch | None) -> Losses | None:
    """The same side by side, or None where that cannot be done or is not the same."""
    few = STACKED // landscape.num_parameters
    if any(p.dtype != landscape.dtype for p in landscape.parameters.values()):
        return None
    plain = landscape.loss_function in _MEANS and not landscape.normalise_logits
    if few < 2 or not plain or landscape.data.tensors is None:
        return None
    batches = list(landscape.batches()) if batch is None else [batch]
    if not all(isinstance(inputs, Tensor) for inputs, _ in batches):
        return None
    loss = row_loss(landscape.loss_function)
    if landscape.function.loss is not landscape.scalar_loss:
        loss = loss.in_float64()
    names = list(landscape.parameters)
    stack = stack_of(landscape.model, loss, names, batches[0][0].shape[1:])
    if not isinstance(stack, ChainStack):
        return None
    chain, total = stack, sum(len(targets) for _, targets in batches)

    def some(points: Float[Tensor, "s P"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s P"]]:
        count = len(points)
        like = landscape.parameters
        sizes = [p.numel() for p in like.values()]
        parameters = [
            part.reshape(count, *p.shape)
            for part, p in zip(points.split(sizes, 1), like.values(), strict=True)
        ]
        values, slopes = torch.zeros(count, dtype=torch.float64), torch.zeros_like(points)
        own = [torch.empty_like(p) for p in parameters]
        for inputs, targets in batches:
            rows = len(targets)
            targets = targets.reshape(rows).expand(count, rows)
            inputs = inputs.expand(count, *inputs.shape)
            weights = torch.full((count, rows), 1 / total, dtype=points.dtype, device=points.device)
            outputs = chain.gradient(parameters, [], inputs, targets, weights, own)
            values += chain.loss.values(outputs, targets).sum(1).double().cpu() / total
            slopes += torch.cat([slope.flatten(1) for slope in own], 1)
        return values, slopes

    def losses(points: Float[Tensor, "s P"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s P"]]:
        parts = [some(part) for part in points.split(few)]
        return torch.cat([value for value, _ in parts]), torch.cat([slope for _, slope in parts])

    return losses if _agrees(landscape, batch, losses) else None


def _agrees(landscape: LossLandscape, batch: Batch | None, losses: Losses) -> bool:
    """Whether stacked networks give what the landscape gives: rows that are ignored, or a module
    that does more than its parts, would show."""
    centre = landscape.theta.to(landscape.dtype)[None]
    try:
        (value,), (slope,) = losses(centre)
    except (IndexError, RuntimeError, TypeError):
        return False
    (expected,), (wanted,) = _one_by_one(landscape, batch)(centre)
    slack = torch.finfo(landscape.dtype).eps ** 0.5
    close = abs(float(value - expected)) <= slack * abs(float(expected))
    return close and float((slope - wanted).norm()) <= slack * float(wanted.norm())
