r"""Expectation propagation for the probability that a Gaussian vector is positive.

.. math:: Z = \int N(z; 0, K) \prod_i 1[z_i > 0]\, dz \approx
          Z_{EP} = \int N(z; 0, K) \prod_i C_i\, e^{-\tau_i z_i^2/2 + \nu_i z_i}\, dz .

All sites are updated at once (parallel EP). A sweep factors
:math:`B = I + T^{1/2} K T^{1/2}` with :math:`T = \mathrm{diag}\,\tau`, which is never ill
conditioned, and reads the posterior variances from
:math:`\Sigma_{ii} = (1 - (B^{-1})_{ii})/\tau_i`, so the posterior covariance is not formed.

Parallel updates oscillate on strongly correlated problems unless damped, so the damping adapts:
it falls by a third whenever a sweep moves log Z by no less than the one before. It never rises
again: letting it recover brings the oscillation back on real labellings.

Source: Minka 2001; Rasmussen & Williams 2006, Section 3.6; zhang2021, Appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior import truncated

# Sites so weak that Sigma_ii = (1 - ...) / tau_i would cancel are kept at this precision (times
# 1/K_ii). Z_EP is normalised with the very same sites, so the effect on it is of second order.
_WEAKEST_SITE = 1e-9


@dataclass(frozen=True)
class EPSolution:
    """Sites and value of an EP run on a positive orthant.

    Arguments:
        log_z: log Z_EP, natural logarithm, normalised with the sites below.
        tau, nu: (n,) natural parameters of the sites.
        log_c: (n,) logarithms of the site normalisers C_i.
        mean: (n,) posterior mean.
        cavity_mean, cavity_variance: (n,) the posterior marginals without their own site.
        sweeps: site updates made.
        residual: largest mismatch between a tilted and a posterior mean, in posterior standard
            deviations; 0 at a fixed point.
        converged: whether log Z moved by less than the tolerance in the last full step.
    """

    log_z: float
    tau: Float[Tensor, " n"]
    nu: Float[Tensor, " n"]
    log_c: Float[Tensor, " n"]
    mean: Float[Tensor, " n"]
    cavity_mean: Float[Tensor, " n"]
    cavity_variance: Float[Tensor, " n"]
    sweeps: int
    residual: float
    converged: bool


def expectation_propagation(
    kernel: Float[Tensor, "n n"],
    *,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
    damping: float = 0.9,
    progress: Callable[[int, float], None] = lambda sweep, log_z: None,
) -> EPSolution:
    """EP for the positive orthant of N(0, kernel).

    Arguments:
        kernel: positive semi-definite, float64, already multiplied by the signs of the labels.
        tolerance: stop when a full (undamped) step would move log Z by less than this, in nats.
        max_sweeps: stop here with `converged` False.
        damping: fraction of the way that the first sweep goes to the new sites, in (0, 1].
        progress: called with the sweep and the current log Z.
    """
    prior_variance = kernel.diagonal().clone()
    floor = _WEAKEST_SITE / prior_variance
    tau, nu, mean = (torch.zeros_like(prior_variance) for _ in range(3))
    variance, half_log_det = prior_variance, 0.0
    log_z, last_move, converged = math.inf, math.inf, False

    for sweep in range(max_sweeps + 1):
        cavity_precision = 1 / variance - tau
        if not bool((cavity_precision > 0).all()):
            raise _lost_digits(int(cavity_precision.argmin()))
        cavity_variance = 1 / cavity_precision
        cavity_mean = cavity_variance * (mean / variance - nu)
        log_mass, tilted_mean, tilted_variance = truncated.moments(cavity_mean, cavity_variance)
        log_c = log_mass - log_site_integral(cavity_mean, cavity_variance, tau, nu)
        previous = log_z
        log_z = float(log_c.sum() - half_log_det + 0.5 * (nu @ mean))
        residual = float(((tilted_mean - mean).abs() / variance.sqrt()).max())
        progress(sweep, log_z)
        move = abs(log_z - previous)
        converged = sweep > 1 and move <= tolerance * damping
        if converged or sweep == max_sweeps:
            break
        if math.isfinite(last_move) and move > 0.9 * last_move:
            damping = max(0.65 * damping, 0.02)
        last_move = move

        # The tilted distribution's natural parameters less the cavity's.
        tau_new = torch.maximum(1 / tilted_variance - cavity_precision, floor)
        nu_new = tilted_mean / tilted_variance - cavity_mean / cavity_variance
        tau = torch.lerp(tau, tau_new, damping)
        nu = torch.lerp(nu, nu_new, damping)
        mean, variance, half_log_det = _posterior_marginals(kernel, tau, nu)

    return EPSolution(
        log_z, tau, nu, log_c, mean, cavity_mean, cavity_variance, sweep, residual, converged
    )


def tempered(kernel: Float[Tensor, "n n"], solution: EPSolution, power: float) -> EPSolution:
    """The sites raised to a power below 1: a wider posterior, for guiding a sampler.

    Site normalisers are set to 1, and `log_z` is the integral of the prior times those sites.
    """
    tau, nu = power * solution.tau, power * solution.nu
    mean, _, half_log_det = _posterior_marginals(kernel, tau, nu)
    log_z = 0.5 * float(nu @ mean) - half_log_det
    return replace(solution, log_z=log_z, tau=tau, nu=nu, mean=mean, log_c=torch.zeros_like(tau))


def posterior_covariance(
    kernel: Float[Tensor, "n n"], tau: Float[Tensor, " n"]
) -> Float[Tensor, "n n"]:
    r""":math:`\Sigma = K - K T^{1/2} B^{-1} T^{1/2} K`, by one triangular solve."""
    root = tau.sqrt()
    factor = torch.linalg.cholesky(_b_matrix(kernel, root))
    half = torch.linalg.solve_triangular(factor, root[:, None] * kernel, upper=False)
    return torch.addmm(kernel, half.T, half, alpha=-1.0)


def log_site_integral(mean: Tensor, variance: Tensor, tau: Tensor, nu: Tensor) -> Tensor:
    r""":math:`\log \int N(z; m, s^2)\, e^{-\tau z^2/2 + \nu z} dz`, with no term in 1/tau."""
    width = 1 + tau * variance
    quadratic = 2 * mean * nu + nu.square() * variance - tau * mean.square()
    return 0.5 * (quadratic / width - width.log())


def _b_matrix(kernel: Float[Tensor, "n n"], root: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    b = kernel * root
    b *= root[:, None]
    b.diagonal().add_(1.0)
    return b


def _lost_digits(index: int) -> InputError:
    return InputError(
        f"the kernel is too ill-conditioned for these labels (first noticed at input {index}, "
        f"among the distinct ones): inputs that are almost the same have opposite labels, and "
        f"double precision cannot resolve the difference; remove them, or pass noise > 0"
    )


def _posterior_marginals(
    kernel: Float[Tensor, "n n"], tau: Float[Tensor, " n"], nu: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], float]:
    """Mean, variances, and half the log-determinant of B."""
    root = tau.sqrt()
    factor, info = torch.linalg.cholesky_ex(_b_matrix(kernel, root))
    if int(info):
        raise _lost_digits(int(info) - 1)
    inverse = _lower_inverse(factor)
    variance = (1 - inverse.square().sum(0)) / tau
    pulled = kernel @ nu
    mean = pulled - kernel @ (root * (inverse.T @ (inverse @ (root * pulled))))
    return mean, variance, float(factor.diagonal().log().sum())


def _lower_inverse(factor: Float[Tensor, "n n"], leaf: int = 256) -> Float[Tensor, "n n"]:
    """Inverse of a lower triangular matrix by halves: a third of the work of a full solve."""
    n = factor.shape[0]
    inverse = torch.zeros_like(factor)
    if n <= leaf:
        eye = torch.eye(n, dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False)
    h = n // 2
    inverse[:h, :h] = _lower_inverse(factor[:h, :h], leaf)
    inverse[h:, h:] = _lower_inverse(factor[h:, h:], leaf)
    inverse[h:, :h] = -inverse[h:, h:] @ (factor[h:, :h] @ inverse[:h, :h])
    return inverse
