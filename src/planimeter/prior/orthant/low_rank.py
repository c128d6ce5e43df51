r"""A covariance of low rank: the orthant of n outputs is a cone in r dimensions.

Where :math:`R = A A^T` with A of n rows and r columns (features, random networks, a smooth kernel
in numbers of finite length), :math:`z = A u` with :math:`u \sim N(0, I_r)`, and

.. math:: P(z > 0) = P(A u > 0).

All that expectation propagation asks of the posterior then comes from r by r matrices,

.. math:: \Sigma = A\, (I + A^T T A)^{-1} A^T = F F^T, \qquad F = A L^{-T}, \quad
          L L^T = I + A^T T A,

which is :math:`O(n r^2)` and exact where the n by n posterior is singular.

A comes from Cholesky's factorisation with the largest remaining variance next: it stops where no
variance is left but rounding, and what it leaves out is known input by input.

Source: Harbrecht, Peters & Schneider 2012 (pivoted Cholesky as a low-rank approximation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.prior.orthant.in_place import panels
from planimeter.prior.orthant.signed_kernel import SignedKernel

# The smallest variance that was taken is this many times the largest that was left out where a
# kernel is of low rank indeed; a smooth kernel's variances fall without a gap.
_GAP = 1e3
# Up to this share of the inputs a rank is low, and the orthant is integrated in that many
# dimensions. Above, n dimensions are cheaper, unless the problem is small, and where a few are
# lacking also more exact: a kernel that lacks a few is not far from one that has them.
_LOW, _HIGH, _SMALL = 0.5, 0.9, 20_000


@dataclass(frozen=True)
class LowRankKernel:
    """R of `signed_kernel` as A A^T.

    Arguments:
        factor: (n, r) A, its rows of length 1 up to what was left out.
        left_out: (n,) variance of each output that A does not have.
        eps: rounding of one of the kernel's entries, as a share of its variances.
        clear: whether a gap shows that the kernel is of this rank; otherwise it is one in
            numbers of finite length alone.
    """

    factor: Float[Tensor, "n r"]
    left_out: Float[Tensor, " n"]
    eps: float
    clear: bool

    @property
    def size(self) -> int:
        """n."""
        return len(self.factor)

    @property
    def rank(self) -> int:
        """r."""
        return self.factor.shape[1]

    @property
    def is_low(self) -> bool:
        """Whether integrals in r dimensions are better than in n."""
        small = self.clear and self.rank * self.size <= _SMALL
        return self.rank <= (_HIGH if small else _LOW) * self.size

    @property
    def device(self) -> torch.device:
        """Where the factor is."""
        return self.factor.device

    def signed(self, signs: Float[Tensor, " n"]) -> LowRankKernel:
        """The same with output i multiplied by signs[i]."""
        return replace(self, factor=self.factor * signs[:, None])

    def diagonal(self) -> Float[Tensor, " n"]:
        """Variances."""
        return self.factor.square().sum(1)

    def missing(self) -> Float[Tensor, " n"]:
        """Variance by which the outputs differ from the kernel's."""
        return self.left_out

    def times(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """R v."""
        return self.factor @ (self.factor.T @ vector)

    def whitened(self, tau: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """F of the module's docstring at these sites, and L."""
        precision = self.factor.T @ (tau[:, None] * self.factor)
        precision.diagonal().add_(1.0)
        lower = torch.linalg.cholesky(precision)
        return torch.linalg.solve_triangular(lower, self.factor.T, upper=False).T, lower

    def posterior_marginals(
        self, tau: Float[Tensor, " n"], nu: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], float]:
        """Mean, variances, and half the log-determinant of I + T^(1/2) R T^(1/2)."""
        root, lower = self.whitened(tau)
        return root @ (root.T @ nu), root.square().sum(1), float(lower.diagonal().log().sum())

    def posterior_covariance(self, tau: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        """Sigma."""
        root, _ = self.whitened(tau)
        return root @ root.T


def low_rank(kernel: SignedKernel, tolerance: float, largest: int) -> LowRankKernel | None:
    """The kernel as A A^T, or None where its rank is above `largest` or it is not such a product.

    Arguments:
        kernel: of unit variances.
        tolerance: variance that is none.
        largest: rank to stop at.
    """
    n = kernel.size
    left = kernel.diagonal()
    factor = torch.zeros((n, min(largest, n)), dtype=torch.float64, device=kernel.device)
    smallest = 1.0
    for k in range(largest + 1):
        pivot = int(left.argmax())
        variance = float(left[pivot])
        if variance <= tolerance:
            break
        if k == largest:
            return None
        smallest = variance
        row = kernel.rows_at(torch.tensor([pivot], device=kernel.device))[0]
        column = (row - factor[:, :k] @ factor[pivot, :k]) / variance**0.5
        factor[:, k] = column
        left = left - column.square()
        left[pivot] = 0.0
    factor = factor[:, :k].contiguous()
    for start, stop in panels(n):
        rest = kernel.rows(start, stop) - factor[start:stop] @ factor.T
        if float(rest.abs().max()) > 10 * tolerance:
            return None  # what is left is no rounding: the kernel is not positive semi-definite
    left = (kernel.diagonal() - factor.square().sum(1)).clamp_min(0.0)
    gap = smallest > _GAP * max(float(left.max()), kernel.eps)
    return LowRankKernel(factor, left, kernel.eps, gap)
