r"""Extreme eigenvalues by the Lanczos recurrence with thick restarts and full reorthogonalisation.

After m products with A, the orthonormal basis :math:`Q_m` of the Krylov space gives the
projected matrix :math:`T_m = Q_m^T A Q_m`. With :math:`T_m s = \theta s`, the Ritz pair
:math:`(\theta, Q_m s)` has the residual

.. math:: \| A Q_m s - \theta Q_m s \| = \beta_m |s_m|,

and an exact eigenvalue lies within that distance of :math:`\theta`. Without reorthogonalisation
converged eigenvalues come back as ghost copies; with it they cannot. When the basis is full, its
best Ritz vectors start the next one, so memory stays bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from planimeter.curvature.units import UnitProducts
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.machine.memory import free_memory
from planimeter.operator import CurvatureOperator, check_operator
from planimeter.printing import short_repr

Progress = Callable[[int, int], None]
Scores = Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]]

# Which eigenvalues are wanted: the k with the largest score, for each of these scores.
_ENDS: dict[str, tuple[Scores, ...]] = {
    "largest": (lambda values: values,),
    "smallest": (lambda values: -values,),
    "both": (lambda values: values, lambda values: -values),
    "magnitude": (lambda values: values.abs(),),
}


NEAR = 10.0
"""A residual of so many times the wanted one is near to it: by then every step is looked at."""
FLOOR = 0.1
"""Eigenvalues below this part of the largest need no better residual than at this part."""
HIDDEN = 10.0
"""How many times over a hidden eigenvalue has to stand out."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in descending order (of their magnitude where that was asked for).

    Arguments:
        values: (k,) Ritz values.
        vectors: (P, k) orthonormal Ritz vectors.
        residuals: (k,) norms of A v - value v; an exact eigenvalue is at most this far away.
        converged: (k,) whether the residual met the tolerance.
        products: matrix-vector products spent.
        seed, dtype, device, seconds: of the computation.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "P k"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    products: int
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)

    def __str__(self) -> str:
        rows = zip(
            self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True
        )
        lines = [
            f"{value:.6g} (residual {residual:.1e}{'' if ok else ', NOT CONVERGED'})"
            for value, residual, ok in rows
        ]
        return "\n".join([*lines, f"{self.products} products"])

    def first(self) -> Estimate:
        """The first eigenvalue, with its residual relative to it."""
        value, residual = float(self.values[0]), float(self.residuals[0])
        return Estimate(
            value,
            0.0,
            f"Lanczos, relative residual {residual / abs(value) if value else residual:.1e}",
            self.products,
            bool(self.converged[0]),
            self.seed,
        )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: Tensor | slice | int) -> Eigenpairs:
        """Some of the pairs, also by one number."""
        if isinstance(which, int):
            place = range(len(self))[which]
            which = slice(place, place + 1)
        return replace(
            self,
            values=self.values[which],
            vectors=self.vectors[:, which],
            residuals=self.residuals[which],
            converged=self.converged[which],
        )


def top_eigenvalues(
    operator: CurvatureOperator,
    k: int = 1,
    *,
    which: str = "largest",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    basis: int | None = None,
    start: Float[Tensor, " P *j"] | None = None,
    multiplicities: bool = True,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Eigenpairs:
    r"""Extreme eigenvalues of a symmetric operator, with their vectors and residuals.

    Stops when every wanted residual is at most `tolerance` times its |Ritz value|, or times 10 % of
    the largest |Ritz value| for those below that, so that a loss scaled by any factor gives
    eigenvalues scaled by it.

    Arguments:
        operator: size P.
        k: how many, 1 to P.
        which: "largest" or "smallest" (algebraically), "magnitude", or "both" for k at either end.
        tolerance: relative residual; one below the rounding of the model's dtype is not reached,
            and `converged` is False then.
        max_products: gives up here, with `converged` False where it is; default max(300, 10 k).
        basis: vectors kept at most; default 2 k + 40 (twice that for both ends), less where memory
            is short, and not below 2 k + 10.
        start: vectors near the wanted ones, such as those of a nearby point, to save products.
        multiplicities: start from two vectors, which show copies of eigenvalues, and look for
            further ones where they do; costs some products, and without it a value counts once.
        seed: of the start vector.
        progress: called after each product with the products done and the most there can be.

    Raises:
        InputError: k is not between 1 and P, `which` is unknown, or a limit is too small for k.

    Source: Lanczos 1950; Wu and Simon 2000 (thick restarts); Paige 1980 (loss of orthogonality);
    Parlett, The Symmetric Eigenvalue Problem, Section 13 (the residual bound).
    """
    started = time.perf_counter()
    size = check_operator(operator).size
    if which not in _ENDS:
        raise InputError(f"no eigenvalues {which!r}; there are {', '.join(_ENDS)}")
    if not isinstance(k, int) or not 1 <= k <= size:
        raise InputError(f"k = {k} eigenvalues asked of a matrix of size {size}: 1 to {size}")
    limit = max_products or max(300, 10 * k)
    if limit < k:
        raise InputError(f"max_products = {limit} cannot give {k} eigenvalues")
    search = _Search(operator, _ENDS[which], k, tolerance, limit, basis, seed, progress)
    # A Krylov space sees as many copies of an eigenvalue as it has start vectors. Two show whether
    # there are any, for fewer products than one and a search in its complement.
    copies = k > 1 and multiplicities
    pair = start is None and copies and limit > 2 * k
    starts = [search.start_vector(start), *([search.start_vector(None)] if pair else [])]
    found = search.run(torch.stack(starts), search.nothing, k)
    # Where all that could be seen are there, more may be: they are orthogonal to the space, and in
    # its complement would stand out from what it has not resolved, which lies lower. A copy of the
    # last eigenvalue wanted would not be wanted itself, so the one before it is the bar.
    # A given start may have no part along a wanted vector: then that may be any.
    bars = search.bars(found, copies=start is None)
    hidden = start is not None or (copies and (not pair or search.close(found)))
    if bars is not None:
        search.below = not hidden or len(search.basis) >= size
        if not search.below and search.done < limit:
            search.run(search.start_vector(None)[None], search.basis, 1, bars)
    # Where they do, or the space was exhausted before k, search next to what was found.
    while not search.below and len(found.values) < size and search.done < limit:
        extra = search.run(search.start_vector(None)[None], found.vectors.T, 1, search.bars(found))
        bars = search.bars(found)
        last = bars is not None and all(
            float(score(extra.values).max()) <= bar
            for score, bar in zip(search.ends, bars, strict=True)
        )
        found = _merged(found, extra)
        if last:
            break
    found = found[search.wanted(found.values, k)]
    order = (found.values.abs() if which == "magnitude" else found.values).argsort(descending=True)
    found = found[order]
    return replace(
        found,
        values=found.values * search.products.unit,
        residuals=found.residuals * search.products.unit,
        converged=found.residuals <= search.asked(found.values),
        products=search.done,
        seed=seed,
        dtype=str(operator.dtype).removeprefix("torch."),
        device=str(operator.device),
        seconds=time.perf_counter() - started,
    )


def basis_dtype(operator: CurvatureOperator) -> torch.dtype:
    """Of Krylov bases: products are no more precise than the model's dtype, float32 at least."""
    return torch.float64 if operator.dtype == torch.float64 else torch.float32


class _Search:
    """What all passes of one call share."""

    def __init__(
        self,
        operator: CurvatureOperator,
        ends: tuple[Scores, ...],
        k: int,
        tolerance: float,
        limit: int,
        basis: int | None,
        seed: int,
        progress: Progress,
    ) -> None:
        self.operator, self.ends, self.k, self.progress = operator, ends, k, progress
        self.tolerance, self.limit = tolerance, limit
        self.dtype = basis_dtype(operator)
        self.products = UnitProducts(operator, self.dtype)
        self.generator = torch.Generator().manual_seed(seed)
        self.nothing = torch.empty(0, operator.size, dtype=self.dtype, device=operator.device)
        self.done, self.scale = 0, 0.0
        self.basis, self.below = self.nothing, False  # of the last run
        self.room = self._room(basis)

    def _room(self, basis: int | None) -> int:
        """Vectors of a basis: those asked for, or as many as are useful and fit."""
        least = 2 * len(self.ends) * self.k + 10
        if basis is not None:
            if basis < least:
                raise InputError(f"a basis of {basis} vectors is too small: at least {least}")
            return basis
        vector = self.operator.size * torch.finfo(self.dtype).bits // 8
        fits = free_memory(self.operator.device) // (4 * vector)
        return max(least, min(2 * len(self.ends) * self.k + 40, fits))

    def start_vector(self, near: Tensor | None) -> Float[Tensor, " P"]:
        """A random unit vector, or the sum of given ones with a little of it."""
        v = torch.randn(self.operator.size, generator=self.generator, dtype=torch.float64)
        v = (v / v.norm()).to(self.operator.device)
        if near is None:
            return v
        if near.shape[0] != self.operator.size or near.ndim > 2:
            raise InputError(
                f"start vectors of shape {tuple(near.shape)} do not fit {self.operator.name} of "
                f"size {self.operator.size}"
            )
        total = near.to(v).reshape(self.operator.size, -1).sum(1)
        norm = float(total.norm())
        return total / norm + 1e-2 * v if norm else v

    def wanted(self, values: Float[Tensor, " m"], k: int) -> Tensor:
        """Indices of the k best by every score; none serves two scores."""
        left = torch.arange(len(values))
        chosen = []
        for score in self.ends:
            order = score(values[left]).argsort(descending=True, stable=True)
            chosen.append(left[order[:k]])
            left = left[order[k:].sort().values]
        return torch.cat(chosen).sort().values

    def bars(self, found: Eigenpairs, copies: bool = False) -> list[float] | None:
        """The score that an eigenvalue has to beat at each end; None while some are missing.

        Arguments:
            found: the eigenvalues so far.
            copies: of what is found, where only those that displace another count; they are found
                to within the residual of their original.
        """
        if len(found.values) < min(len(self.ends) * self.k, self.operator.size):
            return None
        bars = []
        for score in self.ends:
            scores, order = score(found.values).sort(descending=True)
            last = self.k - 2 if copies and self.k > 1 else self.k - 1
            slack = float(found.residuals[order[last]]) if copies and self.k > 1 else 0.0
            bars.append(float(scores[last]) - slack)
        return bars

    def close(self, found: Eigenpairs) -> bool:
        """Whether two of the values found may be the same."""
        order = found.values.argsort()
        gaps = found.values[order].diff()
        slack = self.enough(found.values[order])
        return bool((gaps <= slack[1:] + slack[:-1]).any())

    def run(
        self,
        start: Float[Tensor, "b P"],
        locked: Float[Tensor, "l P"],
        k: int,
        bars: list[float] | None = None,
    ) -> Eigenpairs:
        """Block Lanczos in the complement of the locked vectors: the wanted pairs, k at each end.

        An exhausted Krylov space gives all it has. With `bars`, the pass ends once the best of the
        complement is seen to lie below them.
        """
        operator, size = self.operator, self.operator.size
        locked = locked.to(self.dtype)
        free = size - len(locked)
        room = min(self.room, free)
        basis = torch.empty((room, size), dtype=self.dtype, device=operator.device)
        projected = torch.zeros(room, room, dtype=torch.float64)
        coupling = torch.zeros(len(locked), room, dtype=torch.float64)  # of the locked vectors
        block, _ = _orthonormal(orthogonalised(start.T.to(self.dtype), locked).T, 0.0)
        block = block[:room]
        used, spent, next_look = 0, 0, 1
        while True:
            width = len(block)
            basis[used : used + width] = block
            w = self.products(block)
            self.done, spent, used = self.done + width, spent + width, used + width
            self.progress(self.done, self.limit)
            norm = max(float(w.norm()), self.scale)
            w, coefficients, leak = _remainder(w, locked, basis[:used])
            coupling[:, used - width : used] = leak.T
            projected[used - width : used, :used] = coefficients
            projected[:used, used - width : used] = coefficients.T
            block, beta = _orthonormal(w, max(1e-14, operator.epsilon) * norm)
            if len(block) and float(beta.diagonal().abs().min()) < 1e-3 * norm:
                # What is left is small: enlarged to norm 1, so are its parts in the bases.
                again = orthogonalised(block.T, locked, basis[:used])
                block, _ = _orthonormal(again.T, 0.0)
            exhausted = used >= free or not len(block)
            full, out = used + len(block) > room, self.done + len(block) > self.limit
            if not (exhausted or full or out or used >= next_look):
                continue
            theta, s = torch.linalg.eigh(projected[:used, :used])
            self.scale = max(self.scale, float(theta.abs().max()))
            residuals = (beta @ s[-width:]).norm(dim=0) * (not exhausted)
            kept = torch.arange(used) if exhausted else self.wanted(theta, k)
            excess = float((residuals[kept] / self.enough(theta[kept])).max())
            if exhausted or out or (used >= k and excess <= 1):
                break
            # Where products are cheap, looks are not.
            next_look = used + 1 + (used // 20 if excess > NEAR else 0)
            if bars is not None and spent > 1 and self._none_hidden(theta, residuals, bars):
                self.below = True
                break
            if full:
                used = self._restart(basis, projected, coupling, theta, s, k, len(block))
                next_look = used + 1
        self.basis = basis[:used]
        # A vector of the complement is one of A up to what A takes of it into the locked space.
        residuals = torch.hypot(residuals, (coupling[:, : len(s)] @ s).norm(dim=0))
        # The recurrence's residual shrinks without end; a product is no better than its rounding.
        residuals = residuals[kept].clamp_min(operator.epsilon * self.scale)
        vectors = (s[:, kept].T.to(basis) @ basis[:used]).T.double()
        good = residuals <= self.enough(theta[kept])
        return Eigenpairs(theta[kept], vectors, residuals, good, spent)

    def asked(self, values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The residuals that the tolerance asks of Ritz values."""
        return self.tolerance * values.abs().clamp_min(FLOOR * self.scale)

    def enough(self, values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Residuals at which to stop: those asked for, or as near to them as products are exact."""
        return self.asked(values).clamp_min(self.operator.epsilon * self.scale)

    def _none_hidden(self, theta: Tensor, residuals: Tensor, bars: list[float]) -> bool:
        r"""Whether an eigenvalue that beats a bar would have shown by now.

        A random start has a part of about :math:`P^{-1/2}` along any eigenvector. After j steps a
        Krylov space has enlarged it, against all that lies between the extreme Ritz values, by
        the Chebyshev polynomial :math:`T_{j-1}(1 + 2 g)` with g the relative gap to the bar.
        """
        for score, bar in zip(self.ends, bars, strict=True):
            scores = score(theta)
            best = int(scores.argmax())
            top, bottom = float(scores[best] + residuals[best]), float(scores.min())
            if top >= bar:
                return False
            gap = (bar - top) / max(top - bottom, 1e-12 * self.scale)
            growth = 2 * (len(theta) - 1) * math.acosh(1 + 2 * gap)
            if growth < math.log(HIDDEN * self.operator.size):
                return False
        return True

    def _restart(
        self,
        basis: Tensor,
        projected: Tensor,
        coupling: Tensor,
        theta: Tensor,
        s: Tensor,
        k: int,
        width: int,
    ) -> int:
        """Shrink the basis to its best Ritz vectors; the next block is coupled to all of them."""
        room = len(basis)
        each = max(k, (room - 2 * width) // (2 * len(self.ends)))
        kept = self.wanted(theta, each)[: room - 2 * width]
        basis[: len(kept)] = s[:, kept].T.to(basis) @ basis[: len(s)]
        coupling[:, : len(kept)] = coupling[:, : len(s)] @ s[:, kept]
        projected.zero_()
        projected[range(len(kept)), range(len(kept))] = theta[kept]
        return len(kept)


def orthogonalised(
    w: Float[Tensor, " P *b"], *bases: Float[Tensor, "_ P"]
) -> Float[Tensor, " P *b"]:
    """Twice is enough (Giraud et al. 2005): one pass leaves errors of the size of w."""
    for _ in range(2):
        for basis in bases:
            w = w - basis.T @ (basis @ w)
    return w


def _remainder(
    w: Float[Tensor, "b P"], locked: Float[Tensor, "l P"], basis: Float[Tensor, "m P"]
) -> tuple[Float[Tensor, "b P"], Float[Tensor, "b m"], Float[Tensor, "b l"]]:
    """w without its parts in the bases, and its coefficients in the second and in the first.

    Always twice: what one pass leaves behind grows from restart to restart.
    """
    total = torch.zeros(len(w), len(basis), dtype=torch.float64)
    leak = torch.zeros(len(w), len(locked), dtype=torch.float64)
    for _ in range(2):
        if len(locked):
            parts = w @ locked.T
            w = w - parts @ locked
            leak += parts.double().cpu()
        coefficients = w @ basis.T
        w = w - coefficients @ basis
        total += coefficients.double().cpu()
    return w, total, leak


def _orthonormal(
    w: Float[Tensor, "b P"], floor: float
) -> tuple[Float[Tensor, "r P"], Float[Tensor, "r b"]]:
    """Orthonormal rows, and w's coefficients in them; what is left of a row below `floor` counts as
    nothing."""
    rows: list[Tensor] = []
    coefficients = torch.zeros(len(w), len(w), dtype=torch.float64)
    for place, row in enumerate(w):
        for _ in range(2):
            for index, other in enumerate(rows):
                part = other @ row
                coefficients[index, place] += float(part)
                row = row - part * other
        norm = float(row.norm())
        if norm > floor:
            coefficients[len(rows), place] = norm
            rows.append(row / norm)
    return torch.stack(rows) if rows else w[:0], coefficients[: len(rows)]


def _merged(one: Eigenpairs, other: Eigenpairs) -> Eigenpairs:
    """The pairs of both."""
    return Eigenpairs(
        torch.cat([one.values, other.values]),
        torch.cat([one.vectors, other.vectors], dim=1),
        torch.cat([one.residuals, other.residuals]),
        torch.cat([one.converged, other.converged]),
        one.products + other.products,
    )
