r"""Sharpness and top eigenvalues of many small networks at once, on stacked parameters.

Each function is its namesake for one landscape (`keskar_sharpness` with "sgd", `top_eigenvalue`,
`rangamani`), computed for B landscapes side by side: one batched operation where B small ones
would be. The random numbers are those that every landscape would be measured with alone, and the
results agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature.side_by_side import top_eigenvalues_side_by_side
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness.box_sharpness import (
    KeskarSharpness,
    check_positive,
    gap_to_ascents,
    late_rise,
    sharpness_from_curve,
)
from planimeter.flatness.riemannian import block_norms
from planimeter.landscape import LossLandscape
from planimeter.losses import row_loss, widened
from planimeter.network.stack import (
    MappedStack,
    Stacked,
    check_alike,
    other_names,
    padded_rows,
    stack_of,
    stacked,
)
from planimeter.products.tape import record

Progress = Callable[[int, int], None]


def keskar_sharpness_of_ensemble(
    landscapes: Sequence[LossLandscape],
    *,
    zeta: float = 1e-4,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    epochs: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[KeskarSharpness | None]:
    """`keskar_sharpness` with method "sgd" of every landscape.

    Arguments:
        landscapes: networks of one architecture, on the same data.
        zeta, learning_rate, batch_size, epochs, seed, progress: as for one.

    Returns:
        a sharpness for each; None where the loss is not finite everywhere inside the box.

    Raises:
        InputError: the landscapes differ in more than their parameters, or a number is not
            positive.

    Source: zhang2021, Definition 2.1 and Table 1.
    """
    check_positive(zeta=zeta, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size)
    with ExitStack() as modes:
        members = _Members(landscapes, modes)
        stack = stack_of(members.model, members.loss, members.names, members.row)
        centre = members.parameters
        width = [zeta * (p.abs() + 1) for p in centre]
        below = [-w for w in width]
        z = [torch.zeros_like(p) for p in centre]
        slope, point = [torch.empty_like(p) for p in centre], [p.clone() for p in centre]
        first = landscapes[0]
        generator = torch.Generator().manual_seed(seed)

        weigh = first.function.weight
        everything = [(weigh(b), members.shared(*b)) for b in first.batches() if weigh(b)]

        def full_loss() -> Float[Tensor, " B"]:
            total = torch.zeros(len(landscapes), dtype=torch.float64)
            for counted, (inputs, targets, weights) in everything:
                values = stack.loss.values(stack.outputs(point, members.fixed, inputs), targets)
                total += counted * (weights * values).sum(1).double().cpu()
            return total / sum(counted for counted, _ in everything)

        loss = full_loss()
        best, finite, curves = loss.clone(), torch.isfinite(loss), []
        for epoch in range(epochs):
            for batch in first.minibatches(batch_size, generator):
                if not weigh(batch):  # no row counts
                    continue
                inputs, targets, weights = members.shared(*batch)
                outputs = stack.gradient(point, members.fixed, inputs, targets, weights, slope)
                finite &= torch.isfinite(stack.loss.values(outputs, targets).sum(1)).cpu()
                torch._foreach_add_(z, slope, alpha=learning_rate)
                for own, low, high, at, start in zip(z, below, width, point, centre, strict=True):
                    torch.clamp(own, low, high, out=own)
                    torch.add(start, own, out=at)
            reached = full_loss()
            finite &= torch.isfinite(reached)
            best = torch.maximum(best, reached)
            curves.append(100 * (best - loss) / (1 + loss))
            progress(epoch + 1, epochs)
    settings = {"learning_rate": learning_rate, "batch": batch_size, "epochs": epochs}
    columns = torch.stack(curves, 1).tolist()
    return [
        sharpness_from_curve(
            column,
            float(loss[b]),
            float(best[b]),
            residual=late_rise(column),
            gap=gap_to_ascents(landscapes[b], zeta, float(best[b]), seed),
            method="sgd",
            zeta=zeta,
            subspace=None,
            seed=seed,
            settings=dict(settings),
        )
        if finite[b]
        else None
        for b, column in enumerate(columns)
    ]


def top_eigenvalue_of_ensemble(
    landscapes: Sequence[LossLandscape],
    *,
    tolerance: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[Estimate]:
    """The largest eigenvalue of the Hessian of every landscape.

    Arguments:
        landscapes: networks of one architecture, on the same data.
        tolerance: relative residual, as of `top_eigenvalues`.
        max_products: of every network; gives up here, with `converged` False where it is.
        seed: of the start vector.
        progress: called with the products done and the most there can be.

    Raises:
        InputError: the landscapes differ in more than their parameters.
    """
    with ExitStack() as modes:
        members = _Members(landscapes, modes)
        return _lanczos(members, members.hessian_product(), tolerance, max_products, seed, progress)


def rangamani_of_ensemble(
    landscapes: Sequence[LossLandscape],
    *,
    tolerance: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[Estimate]:
    """`rangamani` of every landscape.

    Arguments, errors as for `top_eigenvalue_of_ensemble`.

    Source: rangamani2019.
    """
    with ExitStack() as modes:
        members = _Members(landscapes, modes)
        roots = torch.stack([block_norms(landscape) for landscape in landscapes])
        product, scale = members.hessian_product(), roots.to(members.parameters[0])

        def scaled(v: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
            return scale * product(scale * v)

        return _lanczos(members, scaled, tolerance, max_products, seed, progress)


class _Members:
    """Landscapes that differ in their parameters alone, stacked."""

    def __init__(self, landscapes: Sequence[LossLandscape], modes: ExitStack) -> None:
        if not landscapes:
            raise InputError("an ensemble needs at least one landscape")
        self.first = first = landscapes[0]
        for landscape in landscapes:
            if not _alike(landscape, first):
                raise InputError(
                    "the landscapes of an ensemble are of one loss, on the same tensors of data, "
                    "and look at the same parameters"
                )
            modes.enter_context(landscape.mode())
        check_alike([landscape.model for landscape in landscapes])
        if not first.function.separable:
            raise InputError("the loss of an ensemble has to be a mean over rows")
        wide = first.function.loss is not first.scalar_loss
        self.model = first.model
        self.loss = row_loss(widened(first.scalar_loss) if wide else first.scalar_loss)
        if wide:
            self.loss = self.loss.in_float64()
        self.names = list(first.parameters)
        self.others = other_names(self.model, self.names)
        states = [landscape.state for landscape in landscapes]
        self.parameters, self.fixed = stacked(states, self.names), stacked(states, self.others)
        self.count = len(landscapes)
        assert first.data.tensors is not None
        self.row = first.data.tensors[0].shape[1:]

    def shared(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch that all networks see, padded, and the weights of its rows."""
        inputs, targets, parts = self.counted(inputs, targets)
        rows = len(targets)
        weights = torch.zeros(padded_rows(rows), dtype=self.first.dtype, device=inputs.device)
        weights[:rows] = 1 / rows if parts is None else parts / parts.sum()
        if len(weights) > rows:
            chosen = torch.arange(len(weights), device=inputs.device).clamp_max(rows - 1)
            inputs, targets = inputs[chosen], targets[chosen]
        return (
            inputs.expand(self.count, *inputs.shape),
            targets.expand(self.count, *targets.shape),
            weights.expand(self.count, -1),
        )

    def counted(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows that count, and what each of them does; None where all count alike.

        A row that counts nothing has no loss of its own.
        """
        own = self.first.function.row_weights
        if own is None:
            return inputs, targets, None
        outputs = None if own.outputs is None else own.outputs((inputs, targets))
        parts = own.rows(outputs, targets).to(self.first.dtype)
        some = parts > 0
        if bool((parts == 1).all()):
            return inputs, targets, None
        return inputs[some], targets[some], parts[some]

    def hessian_product(self) -> Callable[[Float[Tensor, "B P"]], Float[Tensor, "B P"]]:
        """Every network's Hessian times its own vector, recorded once."""
        stack = MappedStack(self.model, self.names, self.others, self.loss)
        weigh = self.first.function.weight
        batches = [self.counted(*batch) for batch in self.first.batches() if weigh(batch)]
        total_weight = sum(map(weigh, self.first.batches()))

        def one(parameters: Stacked, fixed: Stacked, vector: Stacked) -> Stacked:
            def total(at: Stacked) -> Tensor:
                parts = []
                for inputs, targets, weights in batches:
                    values = stack.loss.values(stack.network(at, fixed, inputs), targets)
                    parts.append((values if weights is None else weights * values).sum())
                return torch.stack(parts).sum() / total_weight

            return torch.func.jvp(torch.func.grad(total), (parameters,), (vector,))[1]

        mapped = torch.vmap(one)
        tape = record(lambda *v: mapped(self.parameters, self.fixed, list(v)), self.parameters)
        shapes = [p.shape for p in self.parameters]
        sizes = [p[0].numel() for p in self.parameters]

        def product(v: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
            parts = [part.reshape(s) for part, s in zip(v.split(sizes, 1), shapes, strict=True)]
            return torch.cat([part.flatten(1) for part in tape(parts)], 1)

        return product


def _alike(one: LossLandscape, other: LossLandscape) -> bool:
    return (
        one.loss_function is other.loss_function
        and list(one.parameters) == list(other.parameters)
        and one.batch_norm == other.batch_norm == "eval"
        and not (one.normalise_logits or other.normalise_logits)
        and one.data.batch_size == other.data.batch_size
        and _same_tensors(one.data.tensors, other.data.tensors)
    )


def _same_tensors(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    pairs = list(zip(one, other, strict=True))
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and (a is b or torch.equal(a, b))
        for a, b in pairs
    )


def _lanczos(
    members: _Members,
    product: Callable[[Float[Tensor, "B P"]], Float[Tensor, "B P"]],
    tolerance: float,
    max_products: int,
    seed: int,
    progress: Progress,
) -> list[Estimate]:
    found = top_eigenvalues_side_by_side(
        product,
        members.count,
        sum(p[0].numel() for p in members.parameters),
        dtype=members.parameters[0].dtype,
        device=members.parameters[0].device,
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
        progress=progress,
    )
    return [
        Estimate(
            float(found.values[b]),
            0.0,
            f"Lanczos, residual {float(found.residuals[b]):.1e}",
            int(found.products[b]),
            bool(found.converged[b]),
            seed,
            str(members.first.dtype).removeprefix("torch."),
            str(members.first.device),
        )
        for b in range(members.count)
    ]
