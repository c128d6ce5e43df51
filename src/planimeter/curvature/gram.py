r"""The exact spectrum of the Gauss-Newton matrix, from per-row derivatives.

With :math:`\Lambda_n = \sum_c r_{nc} r_{nc}^T` the output curvature of row n and
:math:`U` the matrix with rows :math:`J_n^T r_{nc} / \sqrt N`,

.. math:: G = U^T U, \qquad K = U U^T,

so G (P × P) and the Gram matrix K (at most N·C × N·C) have the same non-zero eigenvalues. The
smaller of the two is made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.curvature.jacobians import (
    RowFactors,
    curvature_roots,
    row_derivatives,
    row_pieces,
)
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape
from planimeter.machine.memory import free_memory
from planimeter.printing import short_repr
from planimeter.products.batches import Batch, cut_rows

Stages = Callable[[str, int, int], None]
LARGEST = 20_000
"""The largest matrix: 3.2 GB in float64."""
TILE = 2048
SHOWN = 4096
"""From this size on the time of the eigenvalues is foretold."""


@dataclass(frozen=True)
class GramSpectrum:
    """All non-zero eigenvalues of a Gauss-Newton matrix.

    Arguments:
        values: (min(N·C', P),) eigenvalues in descending order, C' the rank of the output
            curvature; the other P - N·C' (where that is positive) are 0.
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

    def __repr__(self) -> str:
        return short_repr(self)

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
            f"{what} of all {len(self.values)} eigenvalues",
            dtype=self.dtype,
            device=self.device,
            seconds=self.seconds,
        )


def gauss_newton_spectrum(
    landscape: LossLandscape,
    *,
    memory_budget: int | None = None,
    progress: Stages = lambda stage, done, total: None,
) -> GramSpectrum:
    """Every non-zero eigenvalue of the Gauss-Newton matrix, by way of the smaller of two matrices.

    Arguments:
        landscape: N rows, C outputs and P parameters, of which N·C (N·(C - 1) for the
            cross-entropy) or P is at most 20,000.
        memory_budget: bytes for per-row derivatives; None for as much as the matrix takes, at most
            a quarter of the free memory. What does not fit is differentiated again, some
            parameters at a time.
        progress: called with a stage, what is done and how much there is: "rows" differentiated,
            "products" (rows of the matrix), "eigenvalues" (seconds; the total is foretold from a
            part of the matrix).

    Raises:
        InputError: the matrix would be larger or not fit into memory, the loss is not convex in
            the outputs, or BatchNorm mixes the rows.

    Source: granziol2020, Section 3 (the matrix); Dauphin et al. 2014 (its square root).
    """
    started = time.perf_counter()
    pieces = row_pieces(landscape)
    roots: list[Tensor] = []
    total = sum(weight for weight, _ in pieces)
    for weight, batch in pieces:
        roots.append(curvature_roots(landscape, batch, weight)[1])
        _refuse_large(landscape, roots[-1].shape[1])
    columns = max(r.shape[1] for r in roots)
    roots = [nn.functional.pad(r, (0, 0, columns - r.shape[1], 0)) for r in roots]
    rows = sum(map(len, roots))
    size = min(rows * columns, landscape.num_parameters)
    free = free_memory(landscape.device)
    budget = min(free // 4, max(8 * size**2, 2**28)) if memory_budget is None else memory_budget
    matrix = torch.zeros(size, size, dtype=torch.float64, device=landscape.device)
    if size < rows * columns:
        _fill_parameters(matrix, landscape, pieces, roots, budget, progress)
    else:
        generic: frozenset[str] = frozenset()
        while True:
            try:
                _fill(matrix, landscape, pieces, roots, generic, budget, progress)
                break
            except _Differs as difference:  # a formula that holds in some pieces is no formula
                generic |= difference.names
                matrix.zero_()
    matrix /= total
    values = _eigenvalues(matrix, progress).flip(0)
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
    pieces: list[tuple[float, Batch]],
    roots: list[Tensor],
    generic: frozenset[str],
    budget: int,
    progress: Stages,
) -> None:
    """Lower half of the Gram matrix, not yet divided; parameters that do not fit wait."""
    size, columns = len(gram), roots[0].shape[1]
    dtype = _sums_in(landscape)
    waiting: list[tuple[str, int, int]] | None = None
    factored: set[str] = set()
    first_round = True
    while waiting is None or waiting:
        taken: list[tuple[str, int, int]] = []
        if waiting is not None:
            taken, waiting = _taken(waiting, size, budget, dtype)
        factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        rows: Tensor | None = None
        start = 0
        for (_, batch), root in zip(pieces, roots, strict=True):
            found = row_derivatives(landscape, batch, root, generic)
            if waiting is None:
                parameters = [(n, 0, b.shape[2]) for n, b in found.blocks.items()]
                taken, waiting = _taken(parameters, size, budget, dtype)
                factored = set(found.factors)
            if factored != set(found.factors):
                raise _Differs(frozenset(factored ^ set(found.factors)))
            if first_round:
                for name, pair in found.factors.items():
                    factors.setdefault(name, []).append(pair)
            if rows is None:
                width = sum(stop - first for _, first, stop in taken)
                rows = torch.empty(size, width, dtype=dtype, device=landscape.device)
            count = root.shape[0] * columns
            if taken:
                rows[start : start + count] = _columns(found, taken, dtype)
            start += count
            progress("rows", start // columns, size // columns)
        assert rows is not None
        if taken:
            _add_products(gram, rows, progress)
        del rows
        for name in list(factors):
            _add_factored(gram, factors.pop(name), columns, dtype, progress)
        first_round = False


def _fill_parameters(
    matrix: Float[Tensor, "P P"],
    landscape: LossLandscape,
    pieces: list[tuple[float, Batch]],
    roots: list[Tensor],
    budget: int,
    progress: Stages,
) -> None:
    """Lower half of the Gauss-Newton matrix, not yet divided, from as many rows as fit."""
    size, columns = len(matrix), roots[0].shape[1]
    dtype = _sums_in(landscape)
    # Derivatives layer by layer, and put side by side.
    step = max(1, budget // (2 * size * columns * torch.finfo(dtype).bits // 8))
    done, rows = 0, sum(map(len, roots))
    for (_, (inputs, targets)), root in zip(pieces, roots, strict=True):
        for first in range(0, len(root), step):
            part = slice(first, first + step)
            batch = cut_rows(inputs, part, len(targets)), targets[part]
            found = row_derivatives(landscape, batch, root[part])
            blocks = [
                found.blocks[name] if name in found.blocks else _outer(*found.factors[name])
                for name in landscape.parameters
            ]
            across = torch.cat(blocks, dim=2).flatten(0, 1).to(dtype)
            for start in range(0, size, TILE):
                stop = start + TILE
                matrix[start:stop, :stop] += across[:, start:stop].T @ across[:, :stop]
            done += len(root[part])
            progress("rows", done, rows)


def _outer(inputs: Float[Tensor, "n i"], g: Float[Tensor, "n c o"]) -> Float[Tensor, "n c p"]:
    return torch.einsum("nco,ni->ncoi", g, inputs).flatten(2)


def _sums_in(landscape: LossLandscape) -> torch.dtype:
    return torch.float64 if landscape.dtype == torch.float64 else torch.float32


def _eigenvalues(matrix: Float[Tensor, "m m"], progress: Stages) -> Float[Tensor, " m"]:
    """Eigenvalues in ascending order; reads the lower half, and may overwrite it.

    In another thread, so that `progress` hears of it meanwhile.
    """
    size = len(matrix)
    # LAPACK through torch is the faster one, and makes a copy.
    solve = torch.linalg.eigvalsh if _copy_fits(matrix) else _eigenvalues_in_place
    expected = 0.0
    progress("eigenvalues", 0, 0)
    started = time.perf_counter()
    if size >= SHOWN:
        part = size // 4
        float(solve(matrix[:part, :part].clone())[0])
        # Less than 4^3, as small matrices are slower than their operations: measured 14 at
        # 10,000 and 19 at 20,000.
        expected = 20 * (time.perf_counter() - started)
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(solve, matrix)
        while True:
            try:
                values = job.result(timeout=1.0)
                break
            except TimeoutError:
                spent = time.perf_counter() - started
                progress("eigenvalues", int(spent), round(max(spent, expected)))
    return values


def _copy_fits(matrix: Tensor) -> bool:
    size = matrix.element_size() * matrix.numel()
    return matrix.is_cuda or free_memory(matrix.device) > 1.1 * size


def _eigenvalues_in_place(matrix: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    # The transpose lies in memory as LAPACK wants it, with the lower half above.
    values = scipy.linalg.eigh(
        matrix.numpy().T, lower=False, eigvals_only=True, overwrite_a=True, check_finite=False
    )
    return torch.from_numpy(values)


def _refuse_large(landscape: LossLandscape, columns: int) -> None:
    rows, parameters = landscape.num_rows, landscape.num_parameters
    size = min(rows * columns, parameters)
    if size > LARGEST:
        raise InputError(
            f"the Gram matrix would have {rows:,} rows x {columns} = {rows * columns:,}, and the "
            f"network has {parameters:,} parameters, both more than {LARGEST:,}: use at most "
            f"{LARGEST // columns:,} rows of data, or the Lanczos methods"
        )
    needed, free = 8 * size**2, free_memory(landscape.device)
    if needed > free:
        raise InputError(
            f"the matrix of {size:,} x {size:,} needs {needed / 2**30:.2g} GiB and "
            f"{free / 2**30:.2g} GiB of memory are free: use at most "
            f"{math.isqrt(free // 8) // columns:,} rows of data, or the Lanczos methods"
        )


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


def _add_products(gram: Float[Tensor, "m m"], rows: Float[Tensor, "m p"], progress: Stages) -> None:
    """gram += rows rows', tile by tile, the lower half."""
    for start in range(0, len(gram), TILE):
        stop = min(start + TILE, len(gram))
        gram[start:stop, :stop] += rows[start:stop] @ rows[:stop].T
        progress("products", stop, len(gram))


def _add_factored(
    gram: Float[Tensor, "m m"],
    pairs: list[tuple[Tensor, Tensor]],
    columns: int,
    dtype: torch.dtype,
    progress: Stages,
) -> None:
    """gram += (g_nc . g_md)(a_n . a_m), tile by tile, the lower half."""
    a = torch.cat([inputs for inputs, _ in pairs]).to(dtype)
    g = torch.cat([slopes for _, slopes in pairs]).flatten(0, 1).to(dtype)
    step = max(1, TILE // columns)
    for start in range(0, len(a), step):
        stop = min(start + step, len(a))
        rows = slice(start * columns, stop * columns)
        inner = a[start:stop] @ a[:stop].T
        tile = g[rows] @ g[: stop * columns].T
        tile.view(stop - start, columns, stop, columns).mul_(inner[:, None, :, None])
        gram[rows, : stop * columns] += tile
        progress("products", rows.stop, len(gram))
