r"""Extreme eigenvalues by the Lanczos recurrence with full reorthogonalisation.

After m products with A, the orthonormal basis :math:`Q_m` of the Krylov space gives the
tridiagonal :math:`T_m = Q_m^T A Q_m`. With :math:`T_m s = \theta s`, the Ritz pair
:math:`(\theta, Q_m s)` has the residual

.. math:: \| A Q_m s - \theta Q_m s \| = \beta_m |s_m|,

and an exact eigenvalue lies within that distance of :math:`\theta`. Without reorthogonalisation
converged eigenvalues come back as ghost copies; with it they cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.operators import CurvatureOperator


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in descending order, with what is known of their accuracy.

    Arguments:
        values: (k,) Ritz values.
        vectors: (P, k) orthonormal Ritz vectors.
        residuals: (k,) norms of A v - value v; an exact eigenvalue is at most this far away.
        converged: (k,) whether the residual met the tolerance.
        products: matrix-vector products spent.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "P k"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    products: int

    def __str__(self) -> str:
        rows = zip(
            self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True
        )
        lines = [
            f"{value:.6g} (residual {residual:.1e}{'' if ok else ', NOT CONVERGED'})"
            for value, residual, ok in rows
        ]
        return "\n".join([*lines, f"{self.products} products"])


def top_eigenvalues(
    operator: CurvatureOperator,
    k: int = 1,
    *,
    tolerance: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    r"""The k algebraically largest eigenvalues of a symmetric operator.

    Stops when every one of the k residuals is at most `tolerance` times the largest |Ritz value|
    (of either sign), so that a loss scaled by any factor gives eigenvalues scaled by it.

    Arguments:
        operator: size P.
        k: how many, 1 to P.
        tolerance: relative residual; raised to the rounding noise of the model's dtype when below.
        max_products: gives up here, with `converged` False where it is; default max(300, 10 k).
        seed: of the start vector.

    Raises:
        InputError: k is not between 1 and P.

    Source: Lanczos 1950; Paige 1980 (loss of orthogonality); Parlett, The Symmetric Eigenvalue
    Problem, Section 13 (the residual bound).
    """
    size = operator.size
    if not 1 <= k <= size:
        raise InputError(f"k = {k} eigenvalues asked of a matrix of size {size}")
    limit = min(size, max_products or max(300, 10 * k))
    tolerance = max(tolerance, 10 * operator.epsilon)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.empty((limit, size), dtype=torch.float64, device=operator.device)
    basis[0] = _random_unit(size, generator).to(operator.device)
    alphas: list[float] = []
    betas: list[float] = []

    for m in range(1, limit + 1):
        w = operator @ basis[m - 1]
        alphas.append(float(w @ basis[m - 1]))
        norm = float(w.norm())
        w = _orthogonalised(w, basis[:m])
        beta = float(w.norm())
        # An invariant subspace is exhausted: the residuals are exactly zero, and the recurrence
        # goes on from a fresh direction orthogonal to it.
        exhausted = beta <= 1e-14 * max(norm, max(map(abs, alphas)))
        theta, s = _tridiagonal_eigh(alphas, betas)
        residuals = (0.0 if exhausted else beta) * s[-1].abs()
        wanted = min(k, m)
        scale = float(theta.abs().max())
        done = m >= k and bool((residuals[:wanted] <= tolerance * scale).all())
        if done or m == limit:
            break
        if exhausted:
            w = _orthogonalised(_random_unit(size, generator).to(operator.device), basis[:m])
            beta = 0.0
        betas.append(beta)
        basis[m] = w / w.norm()

    if m == size:  # the whole space is spanned: the decomposition is complete
        residuals = torch.zeros_like(residuals)
    # The recurrence's residual shrinks without end; a product is no better than its rounding.
    residuals = residuals.clamp_min(operator.epsilon * scale)
    vectors = basis[:m].T @ s[:, :k].to(operator.device)
    return Eigenpairs(
        values=theta[:k],
        vectors=vectors,
        residuals=residuals[:k],
        converged=residuals[:k] <= tolerance * scale,
        products=m,
    )


def _orthogonalised(w: Tensor, basis: Float[Tensor, "m P"]) -> Tensor:
    """Twice is enough (Giraud et al. 2005): one pass leaves errors of the size of w."""
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def _random_unit(size: int, generator: torch.Generator) -> Float[Tensor, " P"]:
    v = torch.randn(size, generator=generator, dtype=torch.float64)
    return v / v.norm()


def _tridiagonal_eigh(
    alphas: list[float], betas: list[float]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Eigenvalues, descending, and eigenvectors of the Lanczos matrix."""
    from scipy.linalg import eigh_tridiagonal

    values, vectors = eigh_tridiagonal(alphas, betas)
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].copy())
