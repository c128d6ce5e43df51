r"""The probability of the positive orthant by sequential Monte Carlo guided by EP.

With the EP posterior :math:`N(\mu, \Sigma)`, :math:`\Sigma = C C^T`, coordinates are visited in
order. Given the earlier ones, the posterior says :math:`z_k \sim N(a_k, b_k^2)`,
:math:`b_k = C_{kk}`. Its own site is taken out,

.. math:: s_k^{-2} = b_k^{-2} - \tau_k, \qquad m_k = s_k^2 (a_k / b_k^2 - \nu_k),

:math:`z_k` is drawn from :math:`N(m_k, s_k^2)` truncated to the positive half-line, and the weight
is multiplied by :math:`\Phi(m_k/s_k) / [C_k \int N(z; m_k, s_k^2) e^{-\tau_k z^2/2 + \nu_k z} dz]`.
Then :math:`Z = Z_{EP}\, E[w]` **for any sites**, converged or not: EP only decides the variance.

The standard error comes from independent runs, because resampling couples the particles of one.

Source: Ridgway, Computation of Gaussian orthant probabilities in high dimension, Statistics and
Computing 2016 (sequential Monte Carlo); the guidance by EP sites as derived above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr

from planimeter.prior.expectation_propagation import EPSolution, log_site_integral
from planimeter.prior.truncated import standard_draw


@dataclass(frozen=True)
class SMCResult:
    """Orthant probability from R independent runs.

    Arguments:
        log_z: logarithm of the mean over runs (the mean is unbiased for Z).
        stderr: standard error of `log_z`, from the spread of the runs, in nats.
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
    seed: int = 0,
    panel: int = 128,
    progress: Callable[[int], None] = lambda coordinate: None,
) -> SMCResult:
    """EP-guided sequential Monte Carlo on the positive orthant.

    Arguments:
        solution: an EP run.
        covariance: its posterior covariance Sigma, positive definite.
        particles: per run.
        runs: R, at least 2.
        seed: of all runs.
        panel: coordinates whose dependence on all earlier ones is made by one matrix product.
        progress: called with the number of coordinates done.
    """
    n = covariance.shape[0]
    device = covariance.device
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(covariance)
    b = factor.diagonal()
    s_squared = 1 / (b.square().reciprocal() - solution.tau)
    noise = torch.empty((n, runs * particles), dtype=torch.float64, device=device)
    log_weights = torch.zeros((runs, particles), dtype=torch.float64, device=device)
    log_means = torch.zeros(runs, dtype=torch.float64, device=device)
    resamplings = 0
    start = 0
    base = noise[:0]
    for k in range(n):
        if k % panel == 0:
            start, stop = k, min(k + panel, n)
            base = solution.mean[start:stop, None] + factor[start:stop, :start] @ noise[:start]
        within = factor[k, start:k] @ noise[start:k]
        a = (base[k - start] + within).reshape(runs, particles)
        s = s_squared[k].sqrt()
        m = s_squared[k] * (a / b[k].square() - solution.nu[k])
        h = m / s
        # -Exp(1) is the logarithm of a uniform and never log 0.
        log_u = (
            -torch.empty((runs, particles), dtype=torch.float64)
            .exponential_(generator=generator)
            .to(device)
        )
        noise[k] = ((m + s * standard_draw(h, log_u) - a) / b[k]).reshape(-1)
        log_weights += log_ndtr(h) - solution.log_c[k]
        log_weights -= log_site_integral(m, s_squared[k], solution.tau[k], solution.nu[k])
        for run in _degenerate(log_weights):
            ancestors, log_mean = _systematic(log_weights[run], generator)
            own = slice(run * particles, (run + 1) * particles)
            noise[: k + 1, own] = noise[: k + 1, own][:, ancestors]
            base[:, own] = base[:, own][:, ancestors]
            log_weights[run] = 0.0
            log_means[run] += log_mean
            resamplings += 1
        if (k + 1) % panel == 0 or k + 1 == n:
            progress(k + 1)
    log_ratios = log_means + torch.logsumexp(log_weights, 1) - math.log(particles)
    log_z, stderr = log_mean_and_error(solution.log_z + log_ratios)
    values = tuple((solution.log_z + log_ratios).tolist())
    return SMCResult(log_z, stderr, values, resamplings)


def log_mean_and_error(log_values: Float[Tensor, " R"]) -> tuple[float, float]:
    """Log of the mean of exp(log_values), and its standard error to first order."""
    top = log_values.max()
    scaled = (log_values - top).exp()
    mean = scaled.mean()
    stderr = scaled.std() / math.sqrt(len(log_values)) / mean
    return float(top + mean.log()), float(stderr)


def _degenerate(log_weights: Float[Tensor, "R N"]) -> list[int]:
    """Runs whose effective sample size fell under half the particles."""
    weights = torch.softmax(log_weights, dim=1)
    effective = weights.square().sum(1).reciprocal()
    return (effective < 0.5 * log_weights.shape[1]).nonzero().reshape(-1).tolist()


def _systematic(
    log_weights: Float[Tensor, " N"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Ancestors by systematic resampling, and the logarithm of the mean weight."""
    size = log_weights.shape[0]
    edges = torch.softmax(log_weights, dim=0).cumsum(0)
    shift = torch.rand(1, generator=generator, dtype=torch.float64).to(edges.device)
    points = (torch.arange(size, dtype=torch.float64, device=edges.device) + shift) / size
    ancestors = torch.searchsorted(edges, points).clamp_max(size - 1)
    return ancestors, torch.logsumexp(log_weights, 0) - math.log(size)
