r"""Spectral norms of layers as the linear maps that they are.

.. math:: \|A\|_2 = \max_x \|A x\|_2 / \|x\|_2.

For a convolution, A is the map from whole inputs to whole outputs at the size at which the network
uses it, not the kernel reshaped to a matrix (which differs by up to the kernel's area).
"""

from __future__ import annotations

import math
from itertools import product
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from planimeter.curvature import top_eigenvalues
from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.layers import Layer
from planimeter.operator import CurvatureOperator

DENSE = 1024
"""Up to this smaller side, a matrix is decomposed whole."""


def spectral_norm(
    layer: Layer,
    *,
    tolerance: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
) -> Estimate:
    r"""The largest singular value of a layer, with its own padding, stride, dilation and groups.

    The root of the top eigenvalue of :math:`A^T A` (or :math:`A A^T`, whichever is smaller), by
    Lanczos; :math:`A^T` is the derivative of :math:`A`, so any padding is right by construction.
    Matrices up to 1024 on the smaller side are decomposed whole.

    Arguments:
        layer: any; a Linear on sequences has the norm of its matrix.
        tolerance: relative residual of the eigenvalue: a singular value lies within half of it,
            the largest one unless the next lies as near.
        max_products: with the matrix, see `top_eigenvalues`.
        seed: of the start vector.

    Returns:
        The norm; `method` holds the relative residual.
    """
    if isinstance(layer.module, nn.Linear) and min(layer.weight.shape) <= DENSE:
        return Estimate(_top_singular(layer.weight), method="dense")
    rows, columns = prod(layer.output_shape), prod(layer.input_shape)

    def forward(x: Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        return layer(x.reshape(-1, *layer.input_shape)).flatten(1)

    def adjoint(y: Float[Tensor, "k m"]) -> Float[Tensor, "k n"]:
        with torch.enable_grad():
            x = torch.zeros(len(y), columns, dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(forward(x), x, y)[0]

    if rows < columns:
        size, gram = rows, lambda v: forward(adjoint(v.T)).T
    else:
        size, gram = columns, lambda v: adjoint(forward(v.T)).T
    operator = CurvatureOperator(
        size, gram, f"Gram matrix of {layer.name}", device=layer.weight.device
    )
    if not bool(layer.weight.any()):
        return Estimate(0.0, method="dense")
    pairs = top_eigenvalues(operator, 1, tolerance=tolerance, max_products=max_products, seed=seed)
    value = float(pairs.values[0])
    return Estimate(
        math.sqrt(value),
        method=f"Lanczos, relative residual {float(pairs.residuals[0]) / value:.1e}",
        products=pairs.products,
        converged=bool(pairs.converged[0]),
        seed=seed,
    )


def circular_spectral_norm(layer: Layer) -> Estimate:
    r"""The largest singular value of a layer with its padding replaced by a circular one.

    On a grid of n points an axis, the map falls apart into one small matrix a frequency,
    :math:`\hat A(\omega) = \sum_k W_k e^{-i \omega k}` (outputs, inputs). With stride s, the
    s frequencies an axis that fall onto one another form
    :math:`s^{-1/2} [\hat A(\omega), \hat A(\omega + 2\pi n/s), \dots]`. Exact; for zero padding it
    is an approximation that gets better with n.

    Raises:
        NotApplicableError: the stride does not divide the size of the input.

    Source: Sedghi, Gupta and Long 2019 (arXiv 1805.10408), Theorem 6, for stride 1.
    """
    m = layer.module
    if not isinstance(m, _ConvNd):
        return spectral_norm(layer)
    # A transposed convolution is the transpose of the convolution with the same kernel.
    transposed = isinstance(m, _ConvTransposeNd)
    sizes = (layer.output_shape if transposed else layer.input_shape)[1:]
    strides = tuple(int(s) for s in m.stride)
    if any(n % s for n, s in zip(sizes, strides, strict=True)):
        raise NotApplicableError(
            f"layer {layer.name!r} has stride {strides} on an input of size {sizes}: with circular "
            f"padding the stride has to divide the size; use the zero-padded norm"
        )
    kernel = _ungrouped(layer.weight, m.groups)
    grid = kernel.new_zeros(*kernel.shape[:2], *sizes)
    taps: Any
    for taps in product(*(range(k) for k in kernel.shape[2:])):
        # Kernels longer than the grid wrap around it, which a plain padded FFT would cut off.
        at: Any = tuple(t * int(d) % n for t, d, n in zip(taps, m.dilation, sizes, strict=True))
        grid[:, :, *at] += kernel[:, :, *taps]
    symbol = torch.fft.fftn(grid, dim=tuple(range(2, grid.ndim)))
    for axis, (n, s) in enumerate(zip(sizes, strides, strict=True), start=2):
        # Frequencies w + j n/s become further input channels.
        folded = symbol.unflatten(axis, (s, n // s)).movedim(axis, 2)
        symbol = folded.flatten(1, 2) / math.sqrt(s)
    matrices = symbol.flatten(2).permute(2, 0, 1)
    value = float(torch.linalg.matrix_norm(matrices, ord=2).max())
    return Estimate(value, method="FFT, circular padding")


def _top_singular(matrix: Float[Tensor, "n m"]) -> float:
    """By the eigenvalues of the smaller Gram matrix: cheap, and exact at the upper end."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The kernel of one group that does the same: zeros between channels of different groups."""
    out, own = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], own * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * out, (g + 1) * out)
        full[rows, g * own : (g + 1) * own] = weight[rows]
    return full
