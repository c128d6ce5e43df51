r"""The largest eigenvalue of each of many matrices, by Lanczos recurrences side by side.

The recurrence is that of `planimeter.curvature.krylov`, reorthogonalised and restarted in the same
way, for B symmetric matrices that are multiplied together: bases of shape (m, B, P), projected
matrices (B, m, m), and for each the residual :math:`\beta_m |s_m|` of its best Ritz pair, at which
it stops for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from planimeter.curvature.krylov import FLOOR
from planimeter.curvature.units import unit_of
from planimeter.errors import InputError
from planimeter.printing import short_repr

_ROOM = 42  # vectors of a basis, as many as for one matrix
_KEPT = 20  # Ritz vectors that a full basis shrinks to


@dataclass(frozen=True)
class LargestEigenvalues:
    """One eigenvalue a matrix.

    Arguments:
        values: (B,) the largest Ritz values.
        residuals: (B,) norms of A v - value v.
        converged: (B,) whether the residual met the tolerance.
        products: (B,) products that each needed.
    """

    values: Float[Tensor, " B"]
    residuals: Float[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    products: Int[Tensor, " B"]

    def __repr__(self) -> str:
        return short_repr(self)


def top_eigenvalues_side_by_side(
    product: Callable[[Float[Tensor, "B P"]], Float[Tensor, "B P"]],
    count: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    tolerance: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LargestEigenvalues:
    r"""The algebraically largest eigenvalue of B symmetric matrices.

    Arguments:
        product: multiplies every matrix with its own vector, (B, P) to (B, P).
        count, size: B and P.
        dtype: in which products are computed, and bases kept.
        device: where vectors live.
        tolerance: residual relative to the Ritz value, as of `top_eigenvalues`.
        max_products: of each; gives up here, with `converged` False where it is.
        seed: of the start vector, the same for all.
        progress: called with the products done and the most there can be.

    Raises:
        InputError: max_products is below 1.

    Source: as of `planimeter.curvature.krylov`.
    """
    if max_products < 1:
        raise InputError(f"max_products must be at least 1, got {max_products}")
    epsilon = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    q = (start / start.norm()).to(device=device, dtype=dtype).expand(count, size)
    room = min(_ROOM, size)
    basis = torch.zeros(room, count, size, dtype=dtype, device=device)
    projected = torch.zeros(count, room, room, dtype=torch.float64)
    values, residuals = torch.zeros(count).double(), torch.full((count,), torch.inf).double()
    products, open_ = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    converged = torch.zeros(count, dtype=torch.bool)
    scale = torch.zeros(count, dtype=torch.float64)
    units, divisors, scaled = torch.zeros(count).double(), torch.ones(count).double(), False
    used, next_look = 0, 1
    for done in range(1, max_products + 1):
        basis[used] = q
        w = product(q.contiguous())
        if not bool(units.all()):
            fresh = torch.tensor([unit_of(row) for row in w], dtype=torch.float64)
            units = torch.where(units > 0, units, fresh)
            divisors = torch.where(units > 0, units, 1.0)
            scaled = bool((divisors != 1).any())
        w = w / divisors.to(w)[:, None] if scaled else w
        used += 1
        norm = torch.maximum(w.norm(dim=1).double().cpu(), scale)
        w, coefficients = _remainder(w, basis[:used])
        projected[:, used - 1, :used] = projected[:, :used, used - 1] = coefficients
        beta = w.norm(dim=1).double().cpu()
        progress(done, max_products)
        # A space that A does not leave any more has its eigenvalues exactly. Its recurrence goes on
        # with zeros for as long as others need: what is found is not looked at again.
        exhausted = (beta <= max(1e-14, epsilon) * norm) | (used >= size)
        q = torch.where(exhausted.to(device)[:, None], 0, w / beta.to(w)[:, None].clamp_min(1e-300))
        full, out = used == room, done == max_products
        if not (full or out or used >= next_look or bool((exhausted & open_).any())):
            continue
        next_look = used + 1 + used // 20
        theta, s = torch.linalg.eigh(projected[:, :used, :used])
        scale = torch.maximum(scale, theta.abs().amax(1))
        found = torch.where(exhausted, 0.0, beta) * s[:, -1, -1].abs()
        # The recurrence's residual shrinks without end; a product is no better than its rounding.
        asked = tolerance * torch.maximum(theta[:, -1].abs(), FLOOR * scale)
        settled = open_ & (exhausted | (found <= torch.maximum(asked, epsilon * scale)))
        found = torch.maximum(found, epsilon * scale)
        ending = open_ if out else settled
        values[ending] = (theta[:, -1] * divisors)[ending]
        residuals[ending] = (found * divisors)[ending]
        converged[ending] = (found <= asked)[ending]
        products[ending] = done
        open_ &= ~settled
        if not bool(open_.any()):
            break
        if full:
            used = _restart(basis, projected, theta, s)
            next_look = used + 1
    return LargestEigenvalues(values, residuals, converged, products)


def _remainder(
    w: Float[Tensor, "B P"], basis: Float[Tensor, "m B P"]
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B m"]]:
    """w without its parts in the bases, and its coefficients: always twice, as for one matrix."""
    total = torch.zeros(w.shape[0], len(basis), dtype=torch.float64)
    for _ in range(2):
        coefficients = torch.einsum("mbp,bp->bm", basis, w)
        w = w - torch.einsum("mbp,bm->bp", basis, coefficients)
        total += coefficients.double().cpu()
    return w, total


def _restart(basis: Tensor, projected: Tensor, theta: Tensor, s: Tensor) -> int:
    """Shrink the bases to their best Ritz vectors; the next vector is coupled to all of them."""
    kept = min(_KEPT, len(basis) - 2)
    best = s[:, :, -kept:].to(basis)
    basis[:kept] = torch.einsum("mbp,bmk->kbp", basis, best)
    projected.zero_()
    projected[:, range(kept), range(kept)] = theta[:, -kept:]
    return kept
