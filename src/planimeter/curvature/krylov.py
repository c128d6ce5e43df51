r"""Extreme eigenvalues by the Lanczos recurrence with full reorthogonalisation.

After m products with A, the orthonormal basis :math:`Q_m` of the Krylov space gives the
tridiagonal :math:`T_m = Q_m^T A Q_m`. With :math:`T_m s = \theta s`, the Ritz pair
:math:`(\theta, Q_m s)` has the residual

.. math:: \| A Q_m s - \theta Q_m s \| = \beta_m |s_m|,

and an exact eigenvalue lies within that distance of :math:`\theta`. Without reorthogonalisation
converged eigenvalues come back as ghost copies; with it they cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    progress: Callable[[int, int], None] = lambda done, total: None,
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
        progress: called after each product with the products done and the most there can be.

    Raises:
        InputError: k is not between 1 and P.

    Source: Lanczos 1950; Paige 1980 (loss of orthogonality); Parlett, The Symmetric Eigenvalue
    Problem, Section 13 (the residual bound).
    """
    size = operator.size
    if not 1 <= k <= size:
        raise InputError(f"k = {k} eigenvalues asked of a matrix of size {size}")
    limit = max_products or max(300, 10 * k)
    if limit < k:
        raise InputError(f"max_products = {limit} cannot give {k} eigenvalues")
    generator = torch.Generator().manual_seed(seed)
    tolerance = max(tolerance, 10 * operator.epsilon)
    nothing = torch.empty(0, size, dtype=torch.float64, device=operator.device)
    done = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal done
        done += 1
        progress(done, limit)
        return operator.product(v)

    watched = replace(operator, product=counted)
    found, scale = _pass(watched, nothing, k, tolerance, limit, generator)
    # A Krylov space sees each eigenvalue once. Look for further copies, and for what an exhausted
    # space left out, in the complement, until its top is no longer among the k largest.
    while k > 1 and len(found.values) < size and done < limit:
        missing = max(k - len(found.values), 1)
        extra, scale = _pass(
            watched, found.vectors.T, missing, tolerance, limit - done, generator, scale,
            below=float(found.values[k - 1]) if len(found.values) >= k else None,
        )  # fmt: skip
        # What A leaks from the complement into the locked space is at most the residuals there.
        leak = found.residuals.norm()
        extra = replace(extra, residuals=torch.hypot(extra.residuals, leak))
        last = len(found.values) >= k and float(extra.values[0]) <= float(found.values[k - 1])
        found = _merged(found, extra)
        if last:
            break
    return Eigenpairs(
        found.values[:k],
        found.vectors[:, :k],
        found.residuals[:k],
        found.converged[:k],
        done,
    )


def _pass(
    operator: CurvatureOperator,
    locked: Float[Tensor, "l P"],
    k: int,
    tolerance: float,
    limit: int,
    generator: torch.Generator,
    scale: float = 0.0,
    below: float | None = None,
) -> tuple[Eigenpairs, float]:
    """Lanczos in the complement of the locked vectors: k pairs, or as many as its Krylov space has.

    `scale` is the largest |Ritz value| of earlier passes, to which tolerances relate; it comes back
    updated. With `below`, the pass ends once the top of the complement is seen to lie under it.
    """
    size, device = operator.size, operator.device
    room = size - len(locked)
    limit = min(room, limit)
    basis = torch.empty((limit, size), dtype=torch.float64, device=device)
    start = _orthogonalised(_random_unit(size, generator).to(device), locked)
    basis[0] = start / start.norm()
    alphas: list[float] = []
    betas: list[float] = []
    for m in range(1, limit + 1):
        w = operator @ basis[m - 1]
        alphas.append(float(w @ basis[m - 1]))
        norm = max(float(w.norm()), scale)
        w = _orthogonalised(w, locked, basis[:m])
        beta = float(w.norm())
        exhausted = m == room or beta <= max(1e-14, operator.epsilon) * norm
        theta, s = _tridiagonal_eigh(alphas, betas)
        residuals = (0.0 if exhausted else beta) * s[-1].abs()
        scale = max(scale, float(theta.abs().max()))
        enough = tolerance * scale
        if exhausted or m == limit or (m >= k and bool((residuals[:k] <= enough).all())):
            break
        if below is not None and m > 1 and residuals[0] <= 0.1 * (below - theta[0]):
            break
        betas.append(beta)
        basis[m] = w / beta
    kept = min(m, k) if not exhausted else m
    # The recurrence's residual shrinks without end; a product is no better than its rounding.
    residuals = residuals[:kept].clamp_min(operator.epsilon * scale)
    vectors = basis[:m].T @ s[:, :kept].to(device)
    return Eigenpairs(theta[:kept], vectors, residuals, residuals <= enough, m), scale


def _merged(one: Eigenpairs, other: Eigenpairs) -> Eigenpairs:
    """The pairs of both, in descending order of their values."""
    values = torch.cat([one.values, other.values])
    order = values.argsort(descending=True, stable=True)
    return Eigenpairs(
        values[order],
        torch.cat([one.vectors, other.vectors], dim=1)[:, order.to(one.vectors.device)],
        torch.cat([one.residuals, other.residuals])[order],
        torch.cat([one.converged, other.converged])[order],
        one.products + other.products,
    )


def _orthogonalised(w: Tensor, *bases: Float[Tensor, "m P"]) -> Tensor:
    """Twice is enough (Giraud et al. 2005): one pass leaves errors of the size of w."""
    for _ in range(2):
        for basis in bases:
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
