r"""The probability of a cone under a standard Gaussian in r dimensions, guided by EP.

For :math:`u \sim N(0, I_r)`, :math:`P = P(a_i \cdot u > 0,\ i = 1 \ldots n)`, n mostly larger than
r. Particles start from the EP posterior, and each step puts a constraint in the place of its site:

.. math:: \gamma_k(u) = N(u; 0, I) \prod_{i \le k} 1[a_i \cdot u > 0]
          \prod_{i > k} C_i\, e^{-\tau_i (a_i \cdot u)^2/2 + \nu_i\, a_i \cdot u}, \qquad
          P = Z_{EP} \prod_k \frac{\int \gamma_k}{\int \gamma_{k-1}} .

On a line :math:`u + t d` each of these is a Gaussian on an interval. A step draws the particle anew
on the line through it along :math:`d = (I + \sum_{i > k} \tau_i a_i a_i^T)^{-1} a_k`, along which
:math:`a_k \cdot u` moves and all that a Gaussian knows of the rest does not, and multiplies its
weight by

.. math:: \frac{\int \gamma_k(u + t d)\, dt}{\int \gamma_{k-1}(u + t d)\, dt},

which would be a constant if no earlier constraint cut the line. Particles are resampled when fewer
than half of them are effective, and then move along r orthogonal directions of the EP posterior.
Every move leaves its distribution as it is, so the estimate is unbiased for any sites.

Sources: Del Moral, Doucet & Jasra 2006 (samplers on a sequence of distributions); Ridgway 2016 (for
orthants, with Gibbs moves); Smith 1984 (hit and run).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr, ndtri

from planimeter.prior.orthant.expectation_propagation import EPSolution
from planimeter.prior.orthant.low_rank import LowRankKernel
from planimeter.prior.orthant.monte_carlo import (
    SMCResult,
    effective_share,
    generator_of,
    independent_runs,
    systematic,
)
from planimeter.prior.orthant.truncated import inverse_log_ndtr

# Sums of the sites that are still to come are kept once a block of so many constraints.
_BLOCK = 64
# Below this logarithm a normal quantile is found by Newton's method.
_FAR = -650.0


def cone_smc(
    kernel: LowRankKernel,
    solution: EPSolution,
    *,
    particles: int = 1000,
    runs: int = 8,
    stderr: float | None = None,
    max_runs: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda constraint: None,
) -> SMCResult:
    """EP-guided Monte Carlo of P(A u > 0).

    Arguments:
        kernel: A.
        solution: an EP run on it.
        particles, runs, stderr, max_runs, seed: as for `orthant_smc`.
        progress: called with the number of constraints done.
    """
    path = _Path(kernel, solution)

    def some(which: range) -> tuple[Tensor, int]:
        found = [_run(path, particles, seed, run, progress) for run in which]
        return torch.tensor([log_ratio for log_ratio, _ in found], dtype=torch.float64), sum(
            c for _, c in found
        )

    return independent_runs(some, solution.log_z, 1, runs, stderr, max_runs)


class _Path:
    """The sequence of distributions: the most binding constraint first."""

    def __init__(self, kernel: LowRankKernel, solution: EPSolution) -> None:
        root, lower = kernel.whitened(solution.tau)
        mean = root @ (root.T @ solution.nu)
        order = (mean / root.square().sum(1).sqrt()).argsort()
        self.rows = kernel.factor[order]
        self.tau, self.nu = solution.tau[order], solution.nu[order]
        self.log_c = solution.log_c[order]
        # u = start + spread w with a standard normal w is the EP posterior.
        eye = torch.eye(kernel.rank, dtype=torch.float64, device=kernel.device)
        self.spread = torch.linalg.solve_triangular(lower, eye, upper=False).T
        self.start = self.spread @ (root.T @ solution.nu)
        self._tails = self._sums()

    def _sums(self) -> list[tuple[Tensor, Tensor]]:
        n, rank = self.rows.shape
        precision = torch.eye(rank, dtype=torch.float64, device=self.rows.device)
        shift = torch.zeros(rank, dtype=torch.float64, device=self.rows.device)
        tails = [(precision, shift)]
        for start in reversed(range(0, n, _BLOCK)):
            rows = self.rows[start : start + _BLOCK]
            precision = precision + rows.T @ (self.tau[start : start + _BLOCK, None] * rows)
            shift = shift + rows.T @ self.nu[start : start + _BLOCK]
            tails.append((precision, shift))
        return tails[::-1]

    def gaussian(self, k: int) -> tuple[Float[Tensor, "r r"], Float[Tensor, " r"]]:
        """Precision, and precision times mean, of the prior with the sites from k on."""
        block = -(-k // _BLOCK)
        precision, shift = self._tails[block]
        rows = self.rows[k : block * _BLOCK]
        if not len(rows):
            return precision, shift
        tau, nu = self.tau[k : block * _BLOCK], self.nu[k : block * _BLOCK]
        return precision + rows.T @ (tau[:, None] * rows), shift + rows.T @ nu


def _run(
    path: _Path, particles: int, seed: int, run: int, progress: Callable[[int], None]
) -> tuple[float, int]:
    """log P / Z_EP by one run, and how often it resampled."""
    n, rank = path.rows.shape
    device = path.rows.device
    generator = generator_of(device, seed, run, 0)
    resampler = generator_of(device, seed, run, 1)
    kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
    u = path.start[:, None] + path.spread @ torch.randn(
        (rank, particles), generator=generator, **kind
    )
    z = torch.empty((n, particles), **kind)
    log_weights = torch.zeros(particles, **kind)
    log_mean, resamplings = 0.0, 0
    for k in range(n):
        precision, shift = path.gaussian(k)
        row, tau, nu = path.rows[k], float(path.tau[k]), float(path.nu[k])
        direction = torch.linalg.solve(precision, row)
        direction = direction / direction.norm()
        slopes = path.rows[: k + 1] @ direction
        own = row @ u
        width = float(direction @ precision @ direction)
        linear = direction @ shift - (precision @ direction) @ u
        lower, upper = _interval(z[:k], slopes[:k])
        before = _log_integral(lower, upper, linear, width)
        # Site k goes, its constraint comes.
        slope = float(slopes[k])
        linear = linear + slope * (tau * own - nu)
        width -= tau * slope**2
        lower = torch.maximum(lower, -own / slope)  # the slope is positive
        after = _log_integral(lower, upper, linear, width)
        gain = after - before + 0.5 * tau * own.square() - nu * own - float(path.log_c[k])
        # Of weight 0, and for ever: there the line may have no length before the step either.
        log_weights += torch.where(after > -math.inf, gain, -math.inf)
        step = _draw(lower, upper, linear, width, generator)
        step = torch.where(lower < upper, step, 0.0)  # weight 0: stays where it is
        u.addcmul_(direction[:, None], step)
        z[k] = (own + slope * step).clamp_min_(0.0)
        z[:k].addcmul_(slopes[:k, None], step).clamp_min_(0.0)
        if effective_share(log_weights) < 0.5:
            chosen, log_factor = systematic(log_weights, resampler)
            u, z[: k + 1] = u[:, chosen], z[: k + 1, chosen]
            log_mean += float(log_factor)
            log_weights.zero_()
            resamplings += 1
            _move(path, k + 1, u, z, generator)
        progress(k + 1)
    return log_mean + float(torch.logsumexp(log_weights, 0)) - math.log(particles), resamplings


def _move(path: _Path, done: int, u: Tensor, z: Tensor, generator: torch.Generator) -> None:
    """Every particle along r directions, under the distribution with `done` constraints."""
    precision, shift = path.gaussian(done)
    rank = len(u)
    square = torch.randn((rank, rank), generator=generator, dtype=u.dtype, device=u.device)
    directions = path.spread @ torch.linalg.qr(square)[0]
    slopes = path.rows[:done] @ directions
    pulled = precision @ directions
    for j in range(rank):
        direction, slope = directions[:, j], slopes[:, j]
        linear = direction @ shift - pulled[:, j] @ u
        lower, upper = _interval(z[:done], slope)
        step = _draw(lower, upper, linear, float(direction @ pulled[:, j]), generator)
        u.addcmul_(direction[:, None], step)
        z[:done].addcmul_(slope[:, None], step).clamp_min_(0.0)
    z[:done] = (path.rows[:done] @ u).clamp_min_(0.0)  # rounding of the steps does not add up


def _interval(z: Float[Tensor, "k N"], slopes: Float[Tensor, " k"]) -> tuple[Tensor, Tensor]:
    """Where z + t slopes is positive: from a t at most 0 to one at least 0."""
    device, columns = z.device, z.shape[1]
    ends = []
    for sign in (1.0, -1.0):
        some = (sign * slopes > 0).nonzero().reshape(-1)
        if len(some):
            ends.append((z[some] / (sign * slopes[some, None])).amin(0))
        else:
            ends.append(torch.full((columns,), math.inf, dtype=torch.float64, device=device))
    return -ends[0], ends[1]


def _log_integral(
    lower: Float[Tensor, " N"],
    upper: Float[Tensor, " N"],
    linear: Float[Tensor, " N"],
    width: float,
) -> Float[Tensor, " N"]:
    """log of the integral of exp(linear t - width t^2 / 2) from lower to upper."""
    root = math.sqrt(width)
    centre = linear / root
    low, high = _lower_tail(lower * root - centre, upper * root - centre)[:2]
    return 0.5 * centre.square() - math.log(root) + 0.5 * math.log(2 * math.pi) + _mass(low, high)


def _draw(
    lower: Float[Tensor, " N"],
    upper: Float[Tensor, " N"],
    linear: Float[Tensor, " N"],
    width: float,
    generator: torch.Generator,
) -> Float[Tensor, " N"]:
    """t of that density, by inversion in the logarithm."""
    root = math.sqrt(width)
    centre = linear / root
    low, high, flipped = _lower_tail(lower * root - centre, upper * root - centre)
    v = 1 - torch.rand(low.shape, generator=generator, dtype=low.dtype, device=low.device)
    log_p = torch.logaddexp(log_ndtr(low) + torch.log1p(-v), log_ndtr(high) + v.log())
    x = ndtri(log_p.exp())
    far = log_p < _FAR
    if bool(far.any()):
        x[far] = inverse_log_ndtr(log_p[far])
    x = torch.maximum(torch.minimum(x, high), low)
    x = torch.where(flipped, -x, x)
    return torch.maximum(torch.minimum((x + centre) / root, upper), lower)


def _lower_tail(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval turned to the side where the normal distribution function has its digits."""
    flipped = low + high > 0
    return torch.where(flipped, -high, low), torch.where(flipped, -low, high), flipped


def _mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)); -inf where the interval is empty."""
    top = log_ndtr(high)
    ratio = torch.expm1((log_ndtr(low) - top).clamp_max(0.0))
    return torch.where(low < high, top + (-ratio).log(), -math.inf)
