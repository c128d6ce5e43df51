r"""The probability of the positive orthant by sequential Monte Carlo guided by EP.

With the EP posterior :math:`N(\mu, \Sigma)`, :math:`\Sigma = C C^T`, coordinates are visited in
order. Given the earlier ones, the posterior says :math:`z_k \sim N(a_k, b_k^2)`,
:math:`b_k = C_{kk}`. Its own site is taken out,

.. math:: s_k^{-2} = b_k^{-2} - \tau_k, \qquad m_k = s_k^2 (a_k / b_k^2 - \nu_k),

:math:`z_k` is drawn from :math:`N(m_k, s_k^2)` truncated to the positive half-line, and the weight
is multiplied by :math:`\Phi(m_k/s_k) / [C_k \int N(z; m_k, s_k^2) e^{-\tau_k z^2/2 + \nu_k z} dz]`.
Then :math:`Z = Z_{EP}\, E[w]` **for any sites**, converged or not: EP only decides the variance.

With :math:`h = m_k/s_k`, all that is needed of a coordinate is linear or quadratic in h:

.. math:: \log \int \cdots = \tfrac12 b^2 \nu^2 + \frac{b^2 \nu}{s} h - \tfrac12 \tau b^2 h^2
          - \log \frac{s}{b}, \qquad
          \frac{z - a}{b} = \frac{(s^2 - b^2) h / s + s x - b^2 \nu}{b}, \quad z = m + s x,

and h comes straight from a matrix product when row k of C is scaled by :math:`s_k/b_k^2`. What lies
before a panel of coordinates is one product, what lies before a sub-panel within it another. Those
products are in float32 where their rounding is far below the error of Monte Carlo: a factor that is
rounded is the factor of another Gaussian, whose orthant differs by about
:math:`2^{-24} \lVert \text{factor} \rVert_F` nats.

The standard error comes from independent runs, because resampling couples the particles of one.

Source: Ridgway, Computation of Gaussian orthant probabilities in high dimension, Statistics and
Computing 2016 (sequential Monte Carlo); the guidance by EP sites as derived above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.estimate import standard_error
from planimeter.prior.orthant.expectation_propagation import EPSolution, lost_digits
from planimeter.prior.orthant.in_place import cholesky_, panels, rounded_
from planimeter.prior.orthant.truncated import draw

# Coordinates within a sub-panel: products with so few rows are as cheap as the draws themselves.
# Weights are looked at once a sub-panel.
_SUB_PANEL = 8
# Particles of several runs are moved together while they fit here or in the size of the matrix:
# small problems are bound by the number of calls.
_SMALL = 2**27
# A wanted standard error is not believed before so many runs.
_FEWEST_TO_STOP = 8
# Products are in float32 if that errs by less, in nats.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class SMCResult:
    """Orthant probability from R independent runs.

    Arguments:
        log_z: logarithm of the mean over runs (the mean is unbiased for Z).
        stderr: standard error of `log_z`, from the spread of the runs by Student's t, in nats.
        runs: (R,) log Z of each run.
        resamplings: how often particles were resampled, over all runs.
    """

    log_z: float
    stderr: float
    runs: tuple[float, ...]
    resamplings: int


def orthant_smc(
    solution: EPSolution,
    covariance: Float[Tensor, "n n"],
    *,
    particles: int = 1000,
    runs: int = 8,
    stderr: float | None = None,
    max_runs: int = 64,
    seed: int = 0,
    panel: int = 128,
    precision: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda coordinate: None,
) -> SMCResult:
    """EP-guided sequential Monte Carlo on the positive orthant.

    Arguments:
        solution: an EP run.
        covariance: its posterior covariance Sigma, positive definite; overwritten.
        particles: per run.
        runs: R, at least 2.
        stderr: make as many runs as this standard error needs, at least 8 and up to `max_runs`;
            None for R runs.
        seed: of all runs; run r is the same whatever the number of runs.
        panel: coordinates whose dependence on all earlier ones is made by one matrix product.
        precision: of the factor and the draws in those products; None for float32 where that errs
            by less than 1e-4 nats. Weights are float64 always.
        progress: called with the number of coordinates done, of the runs that move together.
    """
    guide = _guide(solution, covariance, precision)
    together = min(runs, runs_together(len(covariance), particles))

    def some(which: range) -> tuple[Tensor, int]:
        return _move(guide, which, particles, seed, panel, progress)

    return independent_runs(some, solution.log_z, together, runs, stderr, max_runs)


def independent_runs(
    some: Callable[[range], tuple[Float[Tensor, " r"], int]],
    log_z: float,
    together: int,
    runs: int,
    stderr: float | None,
    max_runs: int,
) -> SMCResult:
    """Runs, as many as are asked for or as a standard error needs.

    Arguments:
        some: the logarithms of Z / Z_EP by the runs of these numbers, and their resamplings.
        log_z: log Z_EP.
        together: runs that `some` makes at a time.
        runs, stderr, max_runs: as for `orthant_smc`.
    """
    done: list[float] = []
    resamplings, wanted = 0, runs
    if stderr is not None:  # the spread of a few runs can be small by luck
        wanted = max(runs, min(_FEWEST_TO_STOP, max_runs))
    while len(done) < wanted:
        log_ratios, count = some(range(len(done), min(len(done) + together, wanted)))
        done += (log_z + log_ratios).tolist()
        resamplings += count
        if len(done) >= wanted and stderr is not None:
            found = log_mean_and_error(torch.tensor(done, dtype=torch.float64))[1]
            if found > stderr:
                needed = math.ceil(1.1 * len(done) * (found / stderr) ** 2)
                wanted = max(min(max(needed, len(done) + 2), max_runs), wanted)
    value, error = log_mean_and_error(torch.tensor(done, dtype=torch.float64))
    return SMCResult(value, error, tuple(done), resamplings)


def runs_together(n: int, particles: int) -> int:
    """Runs whose particles are held in memory at the same time."""
    return max(1, max(_SMALL, 8 * n * n) // (8 * n * particles))


def log_mean_and_error(log_values: Float[Tensor, " R"]) -> tuple[float, float]:
    """Log of the mean of exp(log_values), and its standard error by Student's t, to first order."""
    top = log_values.max()
    if top == -math.inf:
        return -math.inf, math.nan
    scaled = (log_values - top).exp()
    mean = scaled.mean()
    return float(top + mean.log()), standard_error(scaled) / float(mean)


@dataclass(frozen=True)
class _Guide:
    """The EP posterior as the recursion in h that the module's docstring derives.

    Row k of `factor` gives h from the standardised draws before k; then the draw itself is
    `of_h * h + of_x * x + constant`, and the log weight gains log Phi(h) + (`quadratic` * h +
    `linear`) * h; `offset` is what all coordinates together add to every weight.
    """

    factor: Float[Tensor, "n n"]
    start: Float[Tensor, " n"]
    of_h: list[float]
    of_x: list[float]
    constant: list[float]
    quadratic: list[float]
    linear: list[float]
    offset: float


def _guide(
    solution: EPSolution, covariance: Float[Tensor, "n n"], precision: torch.dtype | None
) -> _Guide:
    failed = cholesky_(covariance)
    if failed >= 0:
        raise lost_digits(failed)
    b = covariance.diagonal().clone()
    tau, nu = solution.tau, solution.nu
    s = (b.square().reciprocal() - tau).rsqrt()
    scale = s / b.square()
    covariance *= scale[:, None]
    if precision is None:
        rounding = 2.0**-24 * _size_below_diagonal(covariance)
        precision = torch.float32 if rounding < _ROUNDING else torch.float64
    offset = (s / b).log() - 0.5 * (b * nu).square() - solution.log_c
    return _Guide(
        rounded_(covariance) if precision == torch.float32 else covariance,
        scale * solution.mean - s * nu,
        ((s.square() - b.square()) / (s * b)).tolist(),
        (s / b).tolist(),
        (-b * nu).tolist(),
        (0.5 * tau * b.square()).tolist(),
        (-b.square() * nu / s).tolist(),
        float(offset.sum()),
    )


def _size_below_diagonal(matrix: Float[Tensor, "n n"]) -> float:
    """The Frobenius norm of what is read of the factor."""
    squares = [matrix[i:j, :j].tril(i - 1).square().sum() for i, j in panels(len(matrix))]
    return float(torch.stack(squares).sum().sqrt())


def _move(
    guide: _Guide,
    which: range,
    particles: int,
    seed: int,
    panel: int,
    progress: Callable[[int], None],
) -> tuple[Float[Tensor, " r"], int]:
    """Logarithms of Z / Z_EP by the runs of these numbers, and how often they resampled."""
    factor = guide.factor
    n, device, runs = len(factor), factor.device, len(which)
    # Draws and resampling apart: what is drawn for a coordinate does not depend on the resampling
    # before it, so runs of one number share their noise between nearby problems.
    generators = [generator_of(device, seed, run, 0) for run in which]
    resamplers = [generator_of(device, seed, run, 1) for run in which]
    kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
    noise = torch.empty((n, runs * particles), dtype=factor.dtype, device=device)
    weights = torch.zeros(runs * particles, **kind)
    log_weights = weights.view(runs, particles)
    log_means = torch.zeros(runs, **kind)
    resamplings = 0
    for start, stop in panels(n, panel):
        h = factor[start:stop, :start] @ noise[:start]
        ancestors: dict[int, Tensor] = {}
        for top, bottom in panels(stop - start, _SUB_PANEL):
            top, bottom = top + start, bottom + start
            own = h[top - start : bottom - start]
            own.addmm_(factor[top:bottom, start:top], noise[start:top])
            u = torch.cat(
                [torch.rand((bottom - top, particles), generator=g, **kind) for g in generators], 1
            )
            u = 1 - u  # never 0
            for k in range(top, bottom):
                if k > top:
                    own[k - top].addmv_(noise[top:k].T, factor[k, top:k])
                now = own[k - top].to(torch.float64) + guide.start[k]
                x, log_mass = draw(now, u[k - top])
                x.mul_(guide.of_x[k]).add_(now, alpha=guide.of_h[k])
                noise[k] = x.add_(guide.constant[k])
                weights += log_mass
                weights += now.mul(guide.quadratic[k]).add_(guide.linear[k]).mul_(now)
            for run in (effective_share(log_weights) < 0.5).nonzero().reshape(-1).tolist():
                chosen, log_mean = systematic(log_weights[run], resamplers[run])
                columns = slice(run * particles, (run + 1) * particles)
                _permute(noise[start:bottom, columns], chosen)
                _permute(h[bottom - start :, columns], chosen)
                # Draws before the panel are not read until the next one: they move once a panel.
                before = ancestors.get(run)
                ancestors[run] = chosen if before is None else before[chosen]
                log_weights[run] = 0.0
                log_means[run] += log_mean
                resamplings += 1
        for run, chosen in ancestors.items():
            _permute(noise[:start, run * particles : (run + 1) * particles], chosen)
        progress(stop)
    rest = torch.logsumexp(log_weights, 1) - math.log(particles) + guide.offset
    return log_means + rest, resamplings


def generator_of(device: torch.device, seed: int, run: int, purpose: int) -> torch.Generator:
    """The generator of a run's draws (purpose 0) or of its resampling (1)."""
    entropy = [abs(seed), int(seed < 0), run, purpose]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0] >> np.uint64(1)))


def _permute(rows: Float[Tensor, "k N"], columns: Int[Tensor, " N"], panel: int = 512) -> None:
    for start, stop in panels(len(rows), panel):
        rows[start:stop] = rows[start:stop].index_select(1, columns)


def effective_share(log_weights: Float[Tensor, "*R N"]) -> Float[Tensor, "*R"]:
    """The effective sample size over the number of particles."""
    weights = torch.softmax(log_weights, dim=-1)
    return weights.square().sum(-1).reciprocal() / log_weights.shape[-1]


def systematic(
    log_weights: Float[Tensor, " N"], generator: torch.Generator
) -> tuple[Int[Tensor, " N"], Float[Tensor, ""]]:
    """Ancestors by systematic resampling, and the logarithm of the mean weight."""
    size, device = log_weights.shape[0], log_weights.device
    edges = torch.softmax(log_weights, dim=0).cumsum(0)
    shift = torch.rand(1, generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(size, dtype=torch.float64, device=device) + shift) / size
    ancestors = torch.searchsorted(edges, points).clamp_max(size - 1)
    return ancestors, torch.logsumexp(log_weights, 0) - math.log(size)
