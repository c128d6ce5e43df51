r"""The exact spectrum of the Gauss-Newton matrix, and exact traces, from per-row derivatives.

With :math:`\Lambda_n = \sum_c r_{nc} r_{nc}^T` the output curvature of row n and
:math:`U` the matrix with rows :math:`J_n^T r_{nc} / \sqrt N`,

.. math:: G = U^T U, \qquad K = U U^T,

so G (P × P) and the Gram matrix K (at most N·C × N·C) have the same non-zero eigenvalues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.curvature.jacobians import (
    RowFactors,
    curvature_roots,
    row_derivatives,
    watched,
)
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape
from planimeter.operators.batches import Batch, cut_rows, mean_loss
from planimeter.operators.memory import free_memory

Progress = Callable[[int, int], None]
LARGEST = 20_000
"""The largest Gram matrix: 3.2 GB in float64."""
TILE = 2048

# Layers whose outputs are piecewise linear in every single parameter.
PIECEWISE_LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.ReLU, nn.ReLU6, nn.LeakyReLU,
    nn.PReLU, nn.Hardtanh, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.BatchNorm3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad2d, nn.PixelShuffle, nn.Upsample,
)  # fmt: skip


@dataclass(frozen=True)
class GramSpectrum:
    """All non-zero eigenvalues of a Gauss-Newton matrix.

    Arguments:
        values: (N·C',) eigenvalues in descending order, C' the rank of the output curvature; the
            other P - N·C' (where that is positive) are 0.
        size: P.
        precision: relative rounding error of the matrix, epsilon of the model's dtype.
        dtype, device, seconds: of the computation.
    """

    values: Float[Tensor, " m"]
    size: int
    precision: float
    dtype: str = ""
    device: str = ""
    seconds: float = field(default=0.0, compare=False)

    def trace(self) -> Estimate:
        """The sum of the eigenvalues."""
        return self._exact(float(self.values.sum()), "trace")

    def frobenius_norm(self) -> Estimate:
        """The root of the sum of their squares."""
        return self._exact(float(self.values.norm()), "Frobenius norm")

    def rank(self, tolerance: float | None = None) -> Estimate:
        """How many eigenvalues are above `tolerance` times the largest.

        The default is numpy.linalg.matrix_rank's: the matrix's size times its precision.
        """
        if tolerance is None:
            tolerance = len(self.values) * self.precision
        count = int((self.values > tolerance * self.values[0]).sum())
        return self._exact(count, f"rank at {tolerance:.1e} of the largest eigenvalue")

    def log_product(self, k: int) -> Estimate:
        """The sum of the logarithms of the k largest eigenvalues.

        Raises:
            InputError: fewer than k are above the rounding error.
        """
        above = int((self.values > self.precision * self.values[0]).sum())
        if not 1 <= k <= above:
            raise InputError(f"k = {k}, but {above} eigenvalues stand above the rounding error")
        return self._exact(float(self.values[:k].log().sum()), f"log-product of the top {k}")

    def _exact(self, value: float, what: str) -> Estimate:
        return Estimate(
            value,
            0.0,
            f"Gram matrix of {len(self.values)} rows, {what}",
            dtype=self.dtype,
            device=self.device,
            seconds=self.seconds,
        )


def gauss_newton_spectrum(
    landscape: LossLandscape,
    *,
    memory_budget: int | None = None,
    progress: Progress = lambda done, total: None,
) -> GramSpectrum:
    """Every non-zero eigenvalue of the Gauss-Newton matrix, from the Gram matrix of the rows.

    Arguments:
        landscape: N rows and C outputs, N·C up to 20,000 (N·(C - 1) for the cross-entropy).
        memory_budget: bytes for per-row derivatives; None for a quarter of the free memory. What
            does not fit is differentiated again, some parameters at a time.
        progress: called with the parts of the matrix that are done and their number.

    Raises:
        InputError: the matrix would be larger, the loss is not convex in the outputs, or BatchNorm
            mixes the rows.

    Source: granziol2020, Section 3 (the matrix); Dauphin et al. 2014 (its square root).
    """
    started = time.perf_counter()
    _refuse_mixed_rows(landscape)
    pieces = _pieces(landscape)
    roots: list[Tensor] = []
    for batch in pieces:
        roots.append(curvature_roots(landscape, batch)[1])
        _refuse_large(landscape.num_rows, roots[-1].shape[1])
    columns = max(r.shape[1] for r in roots)
    roots = [nn.functional.pad(r, (0, 0, columns - r.shape[1], 0)) for r in roots]
    rows = sum(map(len, roots))
    size = rows * columns
    accumulate = torch.float64 if landscape.dtype == torch.float64 else torch.float32
    free = free_memory(landscape.device)
    budget = free // 4 if memory_budget is None else memory_budget
    generic: frozenset[str] = frozenset()
    while True:
        gram = torch.zeros(size, size, dtype=torch.float64, device=landscape.device)
        try:
            _fill(gram, landscape, pieces, roots, generic, budget, accumulate, progress)
            break
        except _Differs as difference:  # a formula that holds in some pieces is no formula
            generic |= difference.names
    gram /= rows
    values = torch.linalg.eigvalsh(gram).flip(0)
    return GramSpectrum(
        values.cpu(),
        landscape.num_parameters,
        torch.finfo(landscape.dtype).eps,
        str(landscape.dtype).removeprefix("torch."),
        str(landscape.device),
        time.perf_counter() - started,
    )


class _Differs(Exception):
    """The layers' formulas hold in some pieces of the data only."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names


def _fill(
    gram: Float[Tensor, "m m"],
    landscape: LossLandscape,
    pieces: list[Batch],
    roots: list[Tensor],
    generic: frozenset[str],
    budget: int,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """The Gram matrix times N; parameters whose derivatives do not fit wait for another round."""
    size, columns = len(gram), roots[0].shape[1]
    waiting: list[tuple[str, int, int]] | None = None
    factored: set[str] = set()
    done = 0
    while waiting is None or waiting:
        taken: list[tuple[str, int, int]] = []
        if waiting is not None:
            taken, waiting = _taken(waiting, size, budget, dtype)
        factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        rows: Tensor | None = None
        start = 0
        for batch, root in zip(pieces, roots, strict=True):
            found = row_derivatives(landscape, batch, root, generic)
            if waiting is None:
                parameters = [(n, 0, b.shape[2]) for n, b in found.blocks.items()]
                taken, waiting = _taken(parameters, size, budget, dtype)
                factored = set(found.factors)
            if factored != set(found.factors):
                raise _Differs(frozenset(factored ^ set(found.factors)))
            if done == 0:
                for name, pair in found.factors.items():
                    factors.setdefault(name, []).append(pair)
            if rows is None:
                width = sum(stop - first for _, first, stop in taken)
                rows = torch.empty(size, width, dtype=dtype, device=landscape.device)
            count = root.shape[0] * columns
            if taken:
                rows[start : start + count] = _columns(found, taken, dtype)
            start += count
        assert rows is not None
        _add_products(gram, rows)
        for name in list(factors):
            _add_factored(gram, factors.pop(name), columns, dtype)
        done += len(taken)
        progress(done, done + len(waiting or ()))


def gauss_newton_trace(
    landscape: LossLandscape, *, progress: Progress = lambda done, total: None
) -> Estimate:
    r"""The trace of the Gauss-Newton matrix, exact, from first derivatives alone.

    .. math:: \mathrm{tr}\, G = \frac1N \sum_{n,c} \| J_n^T r_{nc} \|^2.

    Costs one derivative for each column of the output curvature's root (C - 1 for the softmax).

    Arguments, errors and source as for `gauss_newton_spectrum`.
    """
    started = time.perf_counter()
    _refuse_mixed_rows(landscape)
    total, rows = 0.0, 0
    pieces = _pieces(landscape)
    for number, batch in enumerate(pieces):
        _, roots = curvature_roots(landscape, batch)
        found = row_derivatives(landscape, batch, roots)
        for inputs, g in found.factors.values():
            squares = (g.double() ** 2).sum((1, 2)) * (inputs.double() ** 2).sum(1)
            total += float(squares.sum())
        total += sum(float((block.double() ** 2).sum()) for block in found.blocks.values())
        rows += len(roots)
        progress(number + 1, len(pieces))
    return Estimate(
        total / rows,
        0.0,
        "exact trace of the Gauss-Newton matrix, per-row derivatives",
        dtype=str(landscape.dtype).removeprefix("torch."),
        device=str(landscape.device),
        seconds=time.perf_counter() - started,
    )


def piecewise_linear_trace(
    landscape: LossLandscape, *, progress: Progress = lambda done, total: None
) -> Estimate:
    r"""The trace of the Hessian of a piecewise linear network, exact, from first derivatives.

    The outputs are piecewise linear in every single parameter, so the diagonal of the Hessian is
    that of the Gauss-Newton matrix almost everywhere. It is checked on some coordinates.

    Raises:
        InputError: a layer is not piecewise linear (it is named), a layer is called or a parameter
            is used more than once, or the check fails; and as for `gauss_newton_spectrum`.

    Source: granziol2020, Section 3.
    """
    _refuse_curved(landscape)
    _check_diagonals(landscape)
    found = gauss_newton_trace(landscape, progress=progress)
    return replace(found, method="exact trace of a piecewise linear network, per-row derivatives")


def _refuse_curved(landscape: LossLandscape) -> None:
    """Layers that are not piecewise linear in each parameter, as far as the modules tell."""
    model = landscape.model
    way_out = "use trace(landscape.hessian())"
    for path, module in model.named_modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        known = isinstance(module, PIECEWISE_LINEAR)
        leaf = not any(True for _ in module.children())
        if (leaf and not known) or not own <= ({"weight", "bias"} if known else set()):
            raise InputError(
                f"layer {path or 'itself'!r} ({type(module).__name__}) is not known to be "
                f"piecewise linear: {way_out}"
            )
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(named) > len(list(model.parameters())):
        raise InputError(f"a parameter is used in more than one place: {way_out}")
    inputs, targets = next(landscape.batches())

    def has_own(module: nn.Module) -> bool:
        return any(True for _ in module.parameters(recurse=False))

    with torch.no_grad(), landscape.mode(), watched(model, has_own) as calls:
        landscape.forward(landscape.parameters, cut_rows(inputs, slice(1), len(targets)))
    for path, call in calls.items():
        if len(call) > 1:
            raise InputError(f"layer {path!r} is called {len(call)} times: {way_out}")


def _check_diagonals(landscape: LossLandscape, checks: int = 16) -> None:
    """Diagonal elements of Hessian and Gauss-Newton matrix, a few of every tensor.

    Those with the largest gradients, and from the first tensors on, since what is curved anywhere
    in the network curves the dependence on them.
    """
    hessian, ggn = landscape.hessian(), landscape.gauss_newton()
    gradient = landscape.gradient().abs()
    each = max(1, checks // len(hessian.blocks))
    places = torch.cat(
        [
            part.start + gradient[part].topk(min(each, part.stop - part.start)).indices
            for part in list(hessian.blocks.values())[:checks]
        ]
    )
    units = torch.zeros(
        landscape.num_parameters, len(places), dtype=torch.float64, device=landscape.device
    )
    units[places, torch.arange(len(places), device=places.device)] = 1.0
    one, other = ((units * (op @ units)).sum(0) for op in (hessian, ggn))
    slack = torch.finfo(landscape.dtype).eps ** 0.5 * float(other.abs().max())
    if float((one - other).abs().max()) > slack:
        raise InputError(
            "the diagonals of Hessian and Gauss-Newton matrix differ, so the network is not "
            "piecewise linear in its parameters (a smooth function in its forward method, or a "
            "parameter that is used twice): use trace(landscape.hessian())"
        )


def _refuse_mixed_rows(landscape: LossLandscape) -> None:
    if not landscape.function.separable:
        raise InputError(
            "rows have no derivatives of their own when BatchNorm uses the batch's statistics, "
            "or the loss is no mean over rows: "
            "use batch_norm='eval'"
        )


def _refuse_large(rows: int, columns: int) -> None:
    if rows * columns > LARGEST:
        raise InputError(
            f"the Gram matrix would have {rows:,} rows x {columns} = {rows * columns:,}, more than "
            f"{LARGEST:,}: use at most {LARGEST // columns:,} rows of data, or the Lanczos methods"
        )


def _pieces(landscape: LossLandscape, rows: int = 256) -> list[Batch]:
    """The data in pieces whose per-row derivatives are small."""
    function = replace(landscape.function)
    function.rows = min(rows, function.rows or rows)
    pieces = [batch for _, _, batch in function.pieces()]
    whole = landscape.loss()
    parts = mean_loss(function, landscape.parameters)
    slack = min(0.1, 100 * torch.finfo(landscape.dtype).eps)
    if abs(whole - parts) > slack * max(abs(whole), abs(parts)):
        raise InputError(
            f"the loss is no mean over rows: {whole:.6g} on all rows, {parts:.6g} from pieces of "
            f"{rows} put together (class weights and ignored rows do that), so single rows have "
            f"no share in it: use the Lanczos methods"
        )
    return pieces


def _taken(
    waiting: list[tuple[str, int, int]], size: int, budget: int, dtype: torch.dtype
) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """As many columns of the derivatives as fit into the budget, and what is left."""
    room = max(1, budget // (size * torch.finfo(dtype).bits // 8))
    taken, left = [], []
    for name, first, stop in waiting:
        here = min(stop - first, room)
        if here:
            taken.append((name, first, first + here))
        if first + here < stop:
            left.append((name, first + here, stop))
        room -= here
    return taken, left


def _columns(
    found: RowFactors, taken: list[tuple[str, int, int]], dtype: torch.dtype
) -> Float[Tensor, "m p"]:
    parts = [
        found.blocks[name][:, :, first:stop].reshape(-1, stop - first).to(dtype)
        for name, first, stop in taken
    ]
    return torch.cat(parts, dim=1)


def _add_products(gram: Float[Tensor, "m m"], rows: Float[Tensor, "m p"]) -> None:
    """gram += rows rows', tile by tile."""
    for start in range(0, len(gram), TILE):
        part = slice(start, start + TILE)
        gram[part] += rows[part] @ rows.T


def _add_factored(
    gram: Float[Tensor, "m m"],
    pairs: list[tuple[Tensor, Tensor]],
    columns: int,
    dtype: torch.dtype,
) -> None:
    """gram += (g_nc . g_md)(a_n . a_m), tile by tile."""
    a = torch.cat([inputs for inputs, _ in pairs]).to(dtype)
    g = torch.cat([slopes for _, slopes in pairs]).flatten(0, 1).to(dtype)
    step = max(1, TILE // columns)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        rows = slice(start * columns, (start + step) * columns)
        inner = (a[part] @ a.T).repeat_interleave(columns, 0).repeat_interleave(columns, 1)
        gram[rows] += (g[rows] @ g.T) * inner
