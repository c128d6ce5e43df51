r"""Whether a loss is convex in the outputs of every row, to rounding.

The second derivative of cross-entropy is :math:`\mathrm{diag}(p) - p p^T`. Of a row that is fitted
well it is tiny, but its rounding error is that of p, which is 1: what counts as negative is
measured by the curvature of the same row where it is not fitted, at its outputs times numbers
below 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import NotApplicableError
from planimeter.products.batches import BatchedLoss, cut_rows
from planimeter.products.curvatures import GaussNewton, loss_curvature
from planimeter.products.products import Products

if TYPE_CHECKING:
    from planimeter.landscape.landscape import LossLandscape

ROWS = 8
"""Rows of a batch that are looked at."""
BATCHES = 4
FEW = 32
"""Outputs up to which a row's whole matrix is made."""
STEPS = 24
"""Of Lanczos' iteration, row by row, where there are more."""
SCALES = (*(2.0**-k for k in range(8)), 0.0)
"""Numbers that outputs are multiplied by to find them unfitted. Between one and the next, the
probability of a class cannot leap from near 0 to near 1."""
ROUNDING = 100
"""Rounding errors, in epsilons of the largest curvature, that are still rounding."""


def refuse_non_convex(landscape: LossLandscape) -> None:
    """Refuse a loss with a negative curvature in some direction of the outputs of a row.

    Raises:
        NotApplicableError: there is one, or the loss has no second derivative.
    """
    function = landscape.function
    for outputs, targets in function.surviving(lambda: _some_rows(landscape)):
        try:
            lowest, scale, precision = lowest_curvatures(function, outputs, targets)
        except (RuntimeError, NotImplementedError) as error:
            raise NotApplicableError(
                f"the loss has no second derivative by the outputs, so there is no Gauss-Newton "
                f"matrix ({str(error).splitlines()[0]})"
            ) from error
        _refuse(lowest, scale, precision)


def refuse_negative(
    function: BatchedLoss, values: Float[Tensor, "n c"], outputs: Tensor, targets: Tensor
) -> None:
    """Refuse eigenvalues of rows' curvatures that are negative by more than rounding.

    Arguments:
        values: of the rows' parts of the mean's Hessian, in ascending order.

    Raises:
        NotApplicableError: one of them is.
    """
    lowest, own = values[:, 0], values.abs().amax(1)
    # The row's own curvature is the least that there is to compare with, and mostly enough.
    if bool((lowest < -ROUNDING * torch.finfo(torch.float64).eps * own).any()):
        precision = curvature_precision(function, outputs, targets)
        if precision == torch.finfo(torch.float64).eps:
            outputs = outputs.double()
        _refuse(lowest, curvature_scale(function, outputs, targets), precision)


def _refuse(lowest: Tensor, scale: Tensor, precision: float) -> None:
    if bool((lowest < -ROUNDING * precision * scale).any()):
        worst = int((lowest / scale.clamp_min(torch.finfo(scale.dtype).tiny)).argmin())
        raise NotApplicableError(
            f"the loss is not convex in the outputs (a direction of negative curvature was found, "
            f"{float(lowest[worst]):.3g} beside {float(scale[worst]):.3g}), so its Gauss-Newton "
            f"matrix is not positive: use hessian()"
        )


def lowest_curvatures(
    function: BatchedLoss, outputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], float]:
    """The smallest eigenvalue of every row's curvature, its scale, and the precision of both.

    Rows of a loss that is no mean over them, or whose outputs are not told apart, are taken as one.
    """
    size = _rows(function, outputs, targets)

    def product(at: Tensor, v: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        curved = loss_curvature(function, at, targets, v.reshape(at.shape).to(at.dtype))
        return curved.detach().double().reshape(size, -1)

    precision = curvature_precision(function, outputs, targets)
    at = outputs.detach()
    if precision == torch.finfo(torch.float64).eps:
        at = at.double()
    count = at.numel() // size
    if count <= FEW:
        columns = []
        for j in range(count):
            unit = torch.zeros(size, count, dtype=torch.float64, device=at.device)
            unit[:, j] = 1
            columns.append(product(at, unit))
        matrix = torch.stack(columns, 2)
        lowest = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[:, 0]
    else:
        lowest = _lanczos(lambda v: product(at, v), size, count, at.device)
    return lowest, curvature_scale(function, at, targets), precision


def curvature_precision(function: BatchedLoss, outputs: Tensor, targets: Tensor) -> float:
    """The epsilon that a loss's curvature is computed with: float64's where the loss takes it."""
    wide = outputs.detach().double()
    try:
        curved = loss_curvature(function, wide, targets, torch.ones_like(wide))
        if bool(torch.isfinite(curved).all()):
            return torch.finfo(torch.float64).eps
    except RuntimeError:  # a loss that computes in its own dtype
        pass
    return float(torch.finfo(outputs.dtype).eps)


def curvature_scale(function: BatchedLoss, outputs: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
    """The largest curvature of every row at its outputs times numbers from 1 down to 0."""
    size = _rows(function, outputs, targets)
    generator = torch.Generator().manual_seed(0)
    scale = torch.zeros(size, dtype=torch.float64, device=outputs.device)
    for factor in SCALES:
        v = torch.randn(outputs.shape, generator=generator).to(outputs)
        try:
            curved = loss_curvature(function, factor * outputs.detach(), targets, v)
        except RuntimeError:
            if factor == 1:
                raise
            continue
        found = curved.detach().double().reshape(size, -1).norm(dim=1)
        scale = torch.maximum(scale, torch.where(torch.isfinite(found), found, 0.0))
    return scale


def rounding(landscape: LossLandscape, vectors: Float[Tensor, "P k"]) -> float:
    r"""The largest rounding error of :math:`v^T G v`, where rows may all be fitted well.

    With the curvature s of rows that are not, it is :math:`\epsilon\, s\, v^T J^T J v`.
    """
    size = 0.0
    for outputs, targets in landscape.function.surviving(lambda: _some_rows(landscape)):
        precision = curvature_precision(landscape.function, outputs, targets)
        # Of a part of the mean over so many rows.
        scale = curvature_scale(landscape.function, outputs, targets) * len(outputs)
        size = max(size, ROUNDING * precision * float(scale.max()))

    def curve(function: BatchedLoss, outputs: Tensor, targets: Tensor, v: Tensor) -> Tensor:
        return v / len(outputs)

    with landscape.mode():
        kind = GaussNewton("Gram matrix of the outputs' slopes", curve)
        products = Products(kind, landscape.function, landscape.parameters, landscape.mode)
        return size * float((vectors * products(vectors)).sum(0).max())


def _some_rows(landscape: LossLandscape) -> list[tuple[Tensor, Tensor]]:
    """Outputs and targets of a few rows of the first batches, or from all over the data."""
    function, spread = landscape.function, landscape.data.spread(BATCHES * ROWS)
    batches = list(islice(landscape.data, BATCHES))
    if not function.separable:
        batches = batches[:1]
    elif spread is not None:
        batches = [spread]
    found = []
    with torch.enable_grad(), landscape.mode():
        for inputs, targets in batches:
            rows, step = len(targets), 1 if spread is not None else -(-len(targets) // ROWS)
            part = slice(None, None, step if function.separable else None)
            some = cut_rows(inputs, part, rows), targets[part]
            if function.weight(some):
                one = BatchedLoss(function.forward, function.loss, lambda b=some: iter([b]))
                one.rows, one.separable = function.rows, function.separable
                outputs = [
                    landscape.outputs(landscape.parameters, cut).detach()
                    for _, _, (cut, _) in one.pieces()
                ]
                found.append((torch.cat(outputs), some[1]))
    alike = len({(o.shape[1:], y.shape[1:]) for o, y in found}) == 1
    alike &= all(len(o) == len(y) for o, y in found)
    if function.separable and alike:
        found = [(torch.cat([o for o, _ in found]), torch.cat([y for _, y in found]))]
    return found


def _rows(function: BatchedLoss, outputs: Tensor, targets: Tensor) -> int:
    return len(outputs) if function.separable and len(outputs) == len(targets) else 1


def _lanczos(
    product: Callable[[Tensor], Tensor], size: int, count: int, device: torch.device
) -> Float[Tensor, " n"]:
    """The smallest Ritz value of every row, all rows side by side."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(size, count, generator=generator, dtype=torch.float64).to(device)
    basis = [v / v.norm(dim=1, keepdim=True)]
    diagonal, beside, largest = [], [], torch.zeros(size, 1, dtype=torch.float64, device=device)
    for _ in range(min(STEPS, count)):
        w = product(basis[-1])
        diagonal.append((w * basis[-1]).sum(1))
        for _ in range(2):
            for b in basis:
                w = w - (w * b).sum(1, keepdim=True) * b
        norm = w.norm(dim=1, keepdim=True)
        largest = torch.maximum(largest, torch.maximum(norm, diagonal[-1].abs()[:, None]))
        goes_on = norm > 1e-12 * largest  # else the space is complete, and w is rounding
        beside.append(torch.where(goes_on, norm, 0.0)[:, 0])
        basis.append(torch.where(goes_on, w / norm, 0.0))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    off = torch.stack(beside, 1)[:, :-1]
    matrix += torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    lowest: Tensor = torch.linalg.eigvalsh(matrix)[:, 0]
    return lowest
