r"""What is done with a kernel that is singular, or singular but for rounding.

Three kinds, told apart by Cholesky's factorisation:

* **Low rank** (features, few random networks, smooth kernels): :math:`R = A A^T`, and P(f) is the
  probability of a cone in r dimensions, `low_rank`.
* **Almost equal inputs of one label** and the like, of nearly full rank: some directions have no
  variance but rounding. Every variance is made larger by the share :math:`\delta` that lifts those
  out of the rounding. The orthant's probability is continuous there, and by how much
  :math:`\delta` can move it is part of the stated error.
* **Not positive semi-definite**: refused.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from planimeter.errors import InputError
from planimeter.prior.orthant.in_place import cholesky_
from planimeter.prior.orthant.low_rank import LowRankKernel, low_rank
from planimeter.prior.orthant.signed_kernel import SignedKernel, dense

_DOUBLE = torch.finfo(torch.float64).eps
# Of larger kernels, factors of more than half their size are not looked for.
_SMALL = 400


def settled(kernel: SignedKernel) -> tuple[SignedKernel, LowRankKernel | None]:
    """The kernel with the floor that it needs, and A where it is of low rank.

    Raises:
        InputError: it has a negative eigenvalue that is more than rounding.
    """
    n = kernel.size
    pivot = smallest_pivot(kernel)
    if pivot > 4 * math.sqrt(n) * kernel.eps:
        return kernel, None
    least = 10 * n * _DOUBLE
    factored = low_rank(kernel, max(least, 32 * kernel.eps), n - 1 if n <= _SMALL else n // 2)
    if pivot > 4 * math.sqrt(n) * _DOUBLE:
        return kernel, factored
    # Rounding of n^2 independent entries has eigenvalues up to 2 eps sqrt(n), and is not quite
    # independent in kernels of smooth functions.
    largest = max(16 * math.sqrt(n) * kernel.eps, 10 * least)
    floor = least
    while floor <= largest:
        lifted = replace(kernel, floor=floor)
        if smallest_pivot(lifted) > 0.25 * floor:
            return lifted, factored
        floor *= 2
    smallest = float(torch.linalg.eigvalsh(dense(kernel))[0])
    raise InputError(
        f"kernel is not positive semi-definite: scaled to unit diagonal, its smallest "
        f"eigenvalue is {smallest:.2e}, more than rounding to {kernel.eps:.0e} explains; if the "
        f"way it was computed does, compute it more exactly, or pass noise above that"
    )


def smallest_pivot(kernel: SignedKernel) -> float:
    """The least variance of an output given those before it; -1 if one is not positive."""
    matrix = dense(kernel)
    return -1.0 if cholesky_(matrix) >= 0 else float(matrix.diagonal().square().min())
