r"""Expectation propagation for the probability that a Gaussian vector is positive.

.. math:: Z = \int N(z; 0, R) \prod_i 1[z_i > 0]\, dz \approx
          Z_{EP} = \int N(z; 0, R) \prod_i C_i\, e^{-\tau_i z_i^2/2 + \nu_i z_i}\, dz .

All sites are updated at once (parallel EP). A sweep factors
:math:`B = I + T^{1/2} R T^{1/2} = L L^T` with :math:`T = \mathrm{diag}\,\tau`, which is never ill
conditioned, inverts the factor in place, and reads the posterior variances from
:math:`\Sigma_{ii} = (1 - \sum_k (L^{-1})_{ki}^2)/\tau_i`, so a sweep needs one matrix beside the
kernel, and the posterior covariance is not formed.

Parallel updates :math:`x \mapsto x + \omega f(x)`, :math:`x = (\tau, \nu)`, oscillate on strongly
correlated problems, along one collective direction. A secant step takes that direction out:

.. math:: x_{t+1} = x_t + \omega f_t - \gamma\,(\Delta x_t + \omega \Delta f_t), \qquad
          \gamma = \langle \Delta f_t, f_t \rangle / \langle \Delta f_t, \Delta f_t \rangle,

with tau measured in units of :math:`1/\Sigma_{ii}` and nu in :math:`\Sigma_{ii}^{-1/2}`. If the
residual has not fallen for a while all the same, the damping :math:`\omega` falls for good.

Source: Minka 2001; Rasmussen & Williams 2006, Section 3.6; zhang2021, Appendix D. The secant step
is Anderson's (1965) acceleration with a memory of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior.orthant import truncated
from planimeter.prior.orthant.in_place import (
    PANEL,
    cholesky_,
    gram_of_lower_,
    invert_lower_,
    panels,
)
from planimeter.prior.orthant.low_rank import LowRankKernel
from planimeter.prior.orthant.signed_kernel import SignedKernel, as_signed

# Sites so weak that Sigma_ii = (1 - ...) / tau_i would cancel are kept at this precision (times
# 1/R_ii). Z_EP is normalised with the very same sites, so the effect on it is of second order.
_WEAKEST_SITE = {torch.float64: 1e-9, torch.float32: 1e-4}
# Rounding of log Z in float32, in nats for each input: smaller moves mean nothing.
_ROUNDING = {torch.float64: 0.0, torch.float32: 1e-6}
# Sites weaker than this (times 1/R_ii) cost the posterior covariance three digits and more.
_WEAK_SITE = 1e-3
# The first updates from empty sites are far from linear: secants of them mislead.
_FIRST_SECANT = 3
# A secant step is taken back if the residual grows by more than this; some plain ones follow, and
# after a few such failures no more secants.
_WORSE = 1.5
_COOLING = 3
_REJECTIONS = 4
# Longest step along the secant, in units of the last one.
_FARTHEST = 10.0


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
    kernel: SignedKernel | LowRankKernel | Float[Tensor, "n n"],
    *,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
    damping: float = 0.9,
    precision: torch.dtype = torch.float64,
    initial: tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None = None,
    workspace: Float[Tensor, "n n"] | None = None,
    progress: Callable[[int, float], None] = lambda sweep, log_z: None,
) -> EPSolution:
    """EP for the positive orthant of N(0, kernel).

    Arguments:
        kernel: positive semi-definite, already multiplied by the signs of the labels; a plain
            matrix is float64. Of a low-rank one no matrix of its size is made.
        tolerance: stop when a full (undamped) step would move log Z by less than this, in nats; in
            float32, by less than 1e-6 n if that is more.
        max_sweeps: stop here with `converged` False.
        damping: fraction of the way that the first sweep goes to the new sites, in (0, 1].
        precision: of the matrices that are factored; sites and sums are float64 always. float32
            halves time and memory, and errs by a few thousandths of a nat at n = 1100.
        initial: (n,) tau and nu to start from, e.g. of a neighbouring labelling; None for no sites.
        workspace: (n, n) memory of that precision to work in. On return it holds the inverse of the
            factor L at the returned sites, if any sweep was made.
        progress: called with the sweep and the current log Z.

    Raises:
        InputError: double precision cannot resolve the kernel with these labels.
    """
    kernel = kernel if isinstance(kernel, LowRankKernel) else as_signed(kernel)
    prior_variance = kernel.diagonal()
    floor = _WEAKEST_SITE[precision] / prior_variance
    work = workspace
    if work is None and isinstance(kernel, SignedKernel):
        work = _new_workspace(kernel, precision)
    if initial is None:
        tau, nu, mean = (torch.zeros_like(prior_variance) for _ in range(3))
        variance, half_log_det = prior_variance, 0.0
    else:
        tau, nu = torch.maximum(initial[0], floor), initial[1]
        mean, variance, half_log_det = _posterior_marginals(kernel, tau, nu, work)
    log_z, last_move, last_norm, converged = math.inf, math.inf, math.inf, False
    earlier: tuple[Tensor, Tensor] | None = None
    plain: Tensor | None = None
    rounding = _ROUNDING[precision] * kernel.size
    wait, rejected = (_FIRST_SECANT if initial is None else 0), 0

    for sweep in range(max_sweeps + 1):
        cavity_precision = 1 / variance - tau
        if plain is None and not bool((cavity_precision > 0).all()):
            raise lost_digits(int(cavity_precision.argmin()))
        cavity_variance = 1 / cavity_precision
        cavity_mean = cavity_variance * (mean / variance - nu)
        log_mass, tilted_mean, tilted_variance = truncated.moments(cavity_mean, cavity_variance)
        log_c = log_mass - log_site_integral(cavity_mean, cavity_variance, tau, nu)
        previous = log_z
        log_z = float(log_c.sum() - half_log_det + 0.5 * (nu @ mean))
        residual = float(((tilted_mean - mean).abs() / variance.sqrt()).max())
        progress(sweep, log_z)

        # The tilted distribution's natural parameters less the cavity's, as a step from the sites.
        sites = torch.stack([tau, nu])
        tau_new = torch.maximum(1 / tilted_variance - cavity_precision, floor)
        nu_new = tilted_mean / tilted_variance - cavity_mean / cavity_variance
        step = torch.stack([tau_new, nu_new]) - sites
        units = torch.stack([variance, variance.sqrt()])
        norm = float((step * units).norm())
        # log Z is stationary at the fixed point: its error is of second order in the residual. The
        # second condition keeps a chance agreement far from there from passing for convergence.
        move = abs(log_z - previous)
        close = move <= max(tolerance * damping, rounding)
        converged = sweep > 0 and close and norm**2 <= 100 * max(tolerance, rounding)
        if converged or sweep == max_sweeps:
            break
        if math.isnan(half_log_det):
            norm = math.nan
        if plain is not None and not norm <= _WORSE * last_norm:  # or NaN
            # The secant misled: back to the plain step it replaced.
            rejected += 1
            wait = _COOLING if rejected < _REJECTIONS else max_sweeps
            (tau, nu), plain, earlier = (plain[0], plain[1]), None, None
            damping = max(0.65 * damping, 0.02)
            mean, variance, half_log_det = _posterior_marginals(kernel, tau, nu, work)
            last_move, log_z = math.inf, math.inf
            continue
        if plain is None and sweep > 1 and move > max(0.9 * last_move, rounding):
            damping = max(0.65 * damping, 0.02)
        last_move, last_norm = move, norm

        updated, plain = sites + damping * step, None
        wait -= 1
        if earlier is not None and wait < 0 and sweep + 1 < max_sweeps:
            plain = updated
            moved, change = sites - earlier[0], step - earlier[1]
            updated = updated - _gamma(step * units, change * units) * (moved + damping * change)
        earlier = (sites, step)
        tau, nu = torch.maximum(updated[0], floor), updated[1]
        try:
            mean, variance, half_log_det = _posterior_marginals(kernel, tau, nu, work)
        except InputError:
            if plain is None:
                raise
            half_log_det = math.nan  # to be taken back

    if log_z > 0:  # the logarithm of a probability
        raise lost_digits(int(tau.argmax()))
    return EPSolution(
        log_z, tau, nu, log_c, mean, cavity_mean, cavity_variance, sweep, residual, converged
    )


def tempered(
    kernel: SignedKernel | LowRankKernel | Float[Tensor, "n n"],
    solution: EPSolution,
    power: float,
    workspace: Float[Tensor, "n n"] | None = None,
) -> EPSolution:
    """The sites raised to a power below 1: a wider posterior, for guiding a sampler.

    Site normalisers are set to 1, and `log_z` is the integral of the prior times those sites.
    `workspace` as for `expectation_propagation`.
    """
    kernel = kernel if isinstance(kernel, LowRankKernel) else as_signed(kernel)
    work = workspace
    if work is None and isinstance(kernel, SignedKernel):
        work = _new_workspace(kernel, torch.float64)
    tau, nu = power * solution.tau, power * solution.nu
    mean, _, half_log_det = _posterior_marginals(kernel, tau, nu, work)
    log_z = 0.5 * float(nu @ mean) - half_log_det
    return replace(solution, log_z=log_z, tau=tau, nu=nu, mean=mean, log_c=torch.zeros_like(tau))


def log_site_integral(mean: Tensor, variance: Tensor, tau: Tensor, nu: Tensor) -> Tensor:
    r""":math:`\log \int N(z; m, s^2)\, e^{-\tau z^2/2 + \nu z} dz`, with no term in 1/tau."""
    width = 1 + tau * variance
    quadratic = 2 * mean * nu + nu.square() * variance - tau * mean.square()
    return 0.5 * (quadratic / width - width.log())


def posterior_covariance(
    kernel: SignedKernel | LowRankKernel | Float[Tensor, "n n"],
    tau: Float[Tensor, " n"],
    whitener: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "n n"]:
    r""":math:`\Sigma = T^{-1/2} (I - B^{-1})\, T^{-1/2}`, in the memory of :math:`L^{-1}`.

    That cancels where a site is weak. Rows of weak sites, and with them their columns, are

    .. math:: \Sigma_{WS} = R_W T^{1/2} B^{-1} T_S^{-1/2}, \qquad
              \Sigma_{WW} = R_{WW} - R_W T^{1/2} B^{-1} T^{1/2} R_W^T .

    Arguments:
        kernel: R.
        tau: (n,) sites.
        whitener: :math:`L^{-1}` at these sites, float64, as EP leaves it in its workspace; its
            memory is what is returned. None to compute it.
    """
    if isinstance(kernel, LowRankKernel):
        return kernel.posterior_covariance(tau)
    kernel = as_signed(kernel)
    root = tau.sqrt()
    work = whitener
    if work is None:
        work = _new_workspace(kernel, torch.float64)
        _whiten(kernel, root, work)
    # B^{-1} stays in the lower triangle while Sigma grows in the strict upper one.
    gram_of_lower_(work)
    diagonal = (1 - work.diagonal()) / tau
    for start, stop in panels(kernel.size):
        block = work[start:stop, :stop].T / (-root[:stop, None] * root[start:stop])
        work[:start, start:stop] = block[:start]
        own = work[start:stop, start:stop]
        own.copy_(own.tril() + block[start:].triu(1))
    weak = (tau * kernel.diagonal() < _WEAK_SITE).nonzero().reshape(-1)
    order = torch.arange(kernel.size, device=kernel.device)
    for some in weak.split(PANEL):
        rows = kernel.rows_at(some)
        pulled = _times_lower(rows * root, work)
        sigma = pulled / root
        pulled *= root
        for others in weak.split(PANEL):
            sigma[:, others] = rows[:, others] - pulled @ kernel.rows_at(others).T
        diagonal[some] = sigma[range(len(some)), some]
        right = order > some[:, None]
        work[some] = torch.where(right, sigma, work[some])
        work[:, some] = torch.where((order < some[:, None]).T, sigma.T, work[:, some])
    for start, stop in panels(kernel.size):
        work[start:stop, :start] = work[:start, start:stop].T
        own = work[start:stop, start:stop].triu(1)
        work[start:stop, start:stop] = own + own.T + diagonal[start:stop].diag()
    return work


def _times_lower(rows: Float[Tensor, "w n"], work: Float[Tensor, "n n"]) -> Float[Tensor, "w n"]:
    """Rows times the symmetric matrix whose lower triangle is that of `work`."""
    result = torch.zeros_like(rows)
    for start, stop in panels(len(work)):
        block = work[start:stop, :stop].tril(start)
        result[:, :stop] += rows[:, start:stop] @ block
        block[:, start:].fill_diagonal_(0.0)
        result[:, start:stop] += rows[:, :stop] @ block.T
    return result


def _gamma(residual: Tensor, change: Tensor) -> float:
    """How much of the last change takes the residual to its least norm, within bounds."""
    gamma = float((change * residual).sum() / change.square().sum().clamp_min(1e-300))
    return min(max(gamma, -_FARTHEST), _FARTHEST)


def _new_workspace(kernel: SignedKernel, precision: torch.dtype) -> Float[Tensor, "n n"]:
    return torch.empty((kernel.size, kernel.size), dtype=precision, device=kernel.device)


def lost_digits(index: int) -> InputError:
    """What to say where a matrix that is positive definite in theory is not so in numbers."""
    return InputError(
        f"the kernel is too ill-conditioned for these labels (first noticed at input {index}, "
        f"among the distinct ones): inputs that are almost the same have opposite labels, and "
        f"double precision cannot resolve the difference; remove them, or pass noise > 0"
    )


def _whiten(
    kernel: SignedKernel, root: Float[Tensor, " n"], work: Float[Tensor, "n n"]
) -> Float[Tensor, " n"]:
    """Put the inverse of B's Cholesky factor into `work`; the factor's diagonal in float64."""
    scaled = kernel.signed(root)
    for start, stop in panels(kernel.size):
        rows = scaled.rows(start, stop, stop)
        rows[:, start:stop].diagonal().add_(1.0)
        work[start:stop, :stop] = rows
    failed = cholesky_(work)
    if failed >= 0:
        raise lost_digits(failed)
    diagonal = work.diagonal().to(torch.float64, copy=True)
    invert_lower_(work)
    return diagonal


def _posterior_marginals(
    kernel: SignedKernel | LowRankKernel,
    tau: Float[Tensor, " n"],
    nu: Float[Tensor, " n"],
    work: Float[Tensor, "n n"] | None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], float]:
    """Mean, variances, and half the log-determinant of B; L^{-1} is left in `work`."""
    if isinstance(kernel, LowRankKernel):
        return kernel.posterior_marginals(tau, nu)
    assert work is not None
    root = tau.sqrt()
    diagonal = _whiten(kernel, root, work)
    pulled = kernel.times(nu)
    pushed = (root * pulled).to(work.dtype)
    squares, back = torch.zeros_like(tau), torch.zeros_like(tau)
    for start, stop in panels(kernel.size):
        rows = work[start:stop, :stop]
        back[:stop] += (rows.T @ (rows @ pushed[:stop])).to(torch.float64)
        squares[:stop] += rows.to(torch.float64).square().sum(0)
    mean = pulled - kernel.times(root * back)
    return mean, (1 - squares) / tau, float(diagonal.log().sum())
