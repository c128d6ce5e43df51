r"""Cholesky factor, its inverse and that of the matrix in the memory of the matrix, by panels.

With columns in panels :math:`J`, and everything left of the panel done (left-looking),

.. math:: A_{\ge J, J} \leftarrow A_{\ge J, J} - L_{\ge J, <J} L_{J, <J}^T, \quad
          L_{JJ} L_{JJ}^T = A_{JJ}, \quad L_{>J, J} = A_{>J, J} L_{JJ}^{-T};

with rows in panels :math:`I`, and everything above the panel done,

.. math:: W_{II} = L_{II}^{-1}, \quad W_{I, <I} = -W_{II}\, L_{I, <I} W_{<I, <I}, \qquad W = L^{-1};

with everything above the panel done, what lies below it not yet touched,

.. math:: M_{I, \le I} = W_{\ge I, I}^T W_{\ge I, \le I}, \qquad M = W^T W = A^{-1}.

All work but that on the diagonal blocks is in matrix products, :math:`\tfrac13 n^3` operations each
(the second a sixth more), and the memory beyond the matrix is a panel. LAPACK's routines are no
faster, and as torch calls them they need one or two matrices more.

Source: Golub & Van Loan, Matrix Computations, Section 4.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PANEL = 256
# Column chunks of a product with a triangular matrix: c of them do 1 + 1/c times the needed work.
_CHUNKS = 6


def cholesky_(matrix: Float[Tensor, "n n"], panel: int = PANEL) -> int:
    """Overwrite the lower triangle by the Cholesky factor; the strict upper one is left as it is.

    Returns:
        the row at which the matrix is found not to be positive definite, or -1 where it is.
    """
    failures = []
    for start, stop in panels(matrix.shape[0], panel):
        column = matrix[start:, start:stop]
        if start:
            column.addmm_(matrix[start:, :start], matrix[start:stop, :start].T, alpha=-1.0)
        block, info = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        failures.append(torch.where(info > 0, info + start, 0))
        matrix[start:stop, start:stop] = block
        below = matrix[stop:, start:stop]
        below.copy_(below @ _inverse(block).T)
    failed = torch.stack(failures)  # read once: every look is a wait on an accelerator
    first = failed[failed > 0]
    return int(first[0]) - 1 if len(first) else -1


def invert_lower_(factor: Float[Tensor, "n n"], panel: int = PANEL) -> None:
    """Overwrite a lower triangular matrix by its inverse, and the strict upper triangle by 0.

    Arguments:
        factor: its strict upper triangle may hold anything.
    """
    for start, stop in panels(factor.shape[0], panel):
        inverse = _inverse(factor[start:stop, start:stop])
        row = -inverse @ factor[start:stop, :start]
        width = max(panel, -(-start // _CHUNKS))
        for left, right in panels(start, width):
            factor[start:stop, left:right] = row[:, left:] @ factor[left:start, left:right]
        factor[start:stop, start:stop] = inverse
        factor[start:stop, stop:] = 0.0


def gram_of_lower_(lower: Float[Tensor, "n n"], panel: int = PANEL) -> None:
    """Overwrite the lower triangle of a lower triangular W by that of its Gram matrix W^T W.

    Arguments:
        lower: its strict upper triangle is 0; afterwards it is only so outside the diagonal blocks.
    """
    for start, stop in panels(lower.shape[0], panel):
        lower[start:stop, :stop] = lower[start:, start:stop].T @ lower[start:, :stop]


def as_float32(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A float32 matrix in the memory of a float64 one: in the first half of each of its rows."""
    return matrix.view(torch.float32)[:, : matrix.shape[1]]


def rounded_(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A float64 matrix in float32, in the same memory."""
    result = as_float32(matrix)
    for start, stop in panels(len(matrix)):
        result[start:stop] = matrix[start:stop].to(torch.float32)
    return result


def panels(n: int, width: int = PANEL) -> list[tuple[int, int]]:
    """Starts and stops of consecutive panels that cover 0..n."""
    return [(start, min(start + width, n)) for start in range(0, n, width)]


def _inverse(block: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Of a lower triangular block, whose strict upper triangle is not read."""
    eye = torch.eye(len(block), dtype=block.dtype, device=block.device)
    return torch.linalg.solve_triangular(block, eye, upper=False)
