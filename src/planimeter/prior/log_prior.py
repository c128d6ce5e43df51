r"""log P(f): the prior probability that a Gaussian process classifies a set of inputs as f does.

.. math:: P(f) = \int \prod_i 1[f_i z_i > 0]\, N(z; 0, K + \varsigma I)\, dz, \qquad f_i = \pm 1,

with the noise variance :math:`\varsigma = 0` (Heaviside link: the network's own sign function, and
what zhang2021 defines), or :math:`\varsigma = 1`, which equals the probit link on K (what its
authors computed). Natural logarithms throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import format_with_error
from planimeter.prior.cumulant_correction import cumulant_correction
from planimeter.prior.expectation_propagation import (
    expectation_propagation,
    posterior_covariance,
    tempered,
)
from planimeter.prior.orthant_smc import orthant_smc

# Two outputs whose correlation is this close to +-1 are one random variable: what is left is the
# rounding of the kernel itself.
_SAME_VARIABLE = 1e-13
# Above this ratio of the fourth to the third cumulant order, the corrected value over-corrects,
# and the EP posterior has thinner tails than the truth: guided by it, weights have no variance.
# Its sites to this power are wide enough (measured on equicorrelated and one-class problems).
_SERIES_ALARM = 0.3
_WIDER_GUIDE = 0.3
# Sites this much more precise than the prior cost so many digits that 0.01 nats are in doubt
# (measured on kernels of nearly equal inputs).
_PRECISION_ALARM = 1e9


@dataclass(frozen=True)
class LogProbability:
    """log P(f) with its error and everything it was obtained from. Natural logarithms.

    Arguments:
        value: log P(f), from sequential Monte Carlo.
        stderr: its standard error, from independent runs.
        ep: the value of expectation propagation alone.
        corrected: EP with the second-order cumulant correction.
        runs: the value of each independent run.
        noise: variance added to the kernel's diagonal; 0 is Heaviside, 1 the probit link.
        sweeps: of EP.
        residual: of EP: largest mismatch of a tilted and a posterior mean, in posterior standard
            deviations.
        converged: whether EP met its tolerance (the value is unbiased even when not).
        alarms: what a reader should know before believing the numbers; usually empty.
        impossible: two inputs that are the same but labelled oppositely, when P(f) = 0.
    """

    value: float
    stderr: float
    ep: float
    corrected: float
    runs: tuple[float, ...]
    noise: float
    sweeps: int
    residual: float
    converged: bool
    alarms: tuple[str, ...] = ()
    impossible: tuple[int, int] | None = None

    @property
    def log10(self) -> float:
        """The value as a decimal logarithm."""
        return self.value / math.log(10)

    def __str__(self) -> str:
        if self.impossible is not None:
            i, j = self.impossible
            return f"-inf (inputs {i} and {j} are the same but labelled differently)"
        text = format_with_error(self.value, self.stderr)
        stopped = f", EP NOT CONVERGED in {self.sweeps} sweeps, residual {self.residual:.1e}"
        state = "" if self.converged else stopped
        notes = "".join(f"; {alarm}" for alarm in self.alarms)
        return f"{text} (EP {self.ep:.3f}, noise {self.noise:g}{state}{notes})"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; an infinite value becomes the string "-inf"."""
        fields = asdict(self)
        return {
            name: ("-inf" if value == -math.inf else value) for name, value in fields.items()
        } | {"runs": list(self.runs), "alarms": list(self.alarms)}


def log_prior(
    kernel: Float[Tensor, "n n"],
    labels: Shaped[Tensor, " n"],
    noise: float = 0.0,
    *,
    particles: int = 1000,
    runs: int = 8,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> LogProbability:
    """log P(f) with a standard error: EP, cumulant correction, EP-guided sequential Monte Carlo.

    No jitter is added to the kernel. Inputs that occur more than once with the same label count
    once, which changes nothing; with opposite labels P(f) is 0 and the value -inf.

    Arguments:
        kernel: (n, n) covariance of the outputs, symmetric, positive definite up to duplicates.
        labels: (n,) 0/1 or -1/+1; a single class is legal.
        noise: variance added to the diagonal, at least 0; 1.0 is the probit link on `kernel`.
        particles, runs: of the Monte Carlo; the error falls with the root of their product.
        seed: of the Monte Carlo.
        tolerance, max_sweeps: of EP, in nats and sweeps.
        progress: called with a stage ("EP", "SMC"), the steps done and their largest number.

    Raises:
        InputError: the kernel is not square, symmetric, finite or of full rank, or the labels are
            not binary or too few.

    Source: zhang2021, Section 2 and Appendix D.
    """
    if not 0 <= noise < math.inf:
        raise InputError(f"noise is a finite variance and cannot be negative: {noise}")
    if runs < 2 or particles < 2:
        raise InputError(
            f"{runs} runs of {particles} particles leave no standard error: use at least 2 of each"
        )
    signs = binary_signs(labels)
    covariance = _checked_kernel(kernel, len(signs))
    covariance = covariance * signs * signs[:, None]
    covariance.diagonal().add_(noise)
    kept, clash = _distinct(covariance)
    if clash is not None:
        return LogProbability(
            value=-math.inf,
            stderr=0.0,
            ep=-math.inf,
            corrected=-math.inf,
            runs=(),
            noise=noise,
            sweeps=0,
            residual=0.0,
            converged=True,
            impossible=clash,
        )
    # P(f) depends on correlations alone; unit variances keep every threshold meaningful.
    covariance = _correlation(covariance[kept][:, kept])
    _check_rank(covariance)

    solution = expectation_propagation(
        covariance,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
        progress=lambda sweep, log_z: progress("EP", sweep, max_sweeps),
    )
    posterior = posterior_covariance(covariance, solution.tau)
    correction, series_ratio = cumulant_correction(solution, posterior)
    guide = solution
    if series_ratio > _SERIES_ALARM:
        guide = tempered(covariance, solution, _WIDER_GUIDE)
        posterior = posterior_covariance(covariance, guide.tau)
    smc = orthant_smc(
        guide,
        posterior,
        particles=particles,
        runs=runs,
        seed=seed,
        progress=lambda done: progress("SMC", done, len(kept)),
    )
    alarms = []
    if series_ratio > _SERIES_ALARM:
        alarms.append(
            f"EP and its correction are rough here (ratio of orders {series_ratio:.2f}); the Monte "
            f"Carlo value is not affected"
        )
    if float(solution.tau.max()) > _PRECISION_ALARM:
        alarms.append("almost equal inputs have opposite labels: digits of the value are lost")
    if smc.stderr * math.sqrt(runs) > 0.5:
        alarms.append("runs differ by more than half a nat: use more particles")
    return LogProbability(
        value=smc.log_z,
        stderr=smc.stderr,
        ep=solution.log_z,
        corrected=solution.log_z + correction,
        runs=smc.runs,
        noise=noise,
        sweeps=solution.sweeps,
        residual=solution.residual,
        converged=solution.converged,
        alarms=tuple(alarms),
    )


def binary_signs(labels: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Labels 0/1 or -1/+1 as -1/+1 in float64.

    Raises:
        InputError: there are none, or they are neither 0/1 nor -1/+1.
    """
    values = torch.as_tensor(labels).detach().reshape(-1).to(torch.float64)
    if bool(torch.isnan(values).any()):
        raise InputError(f"label {int(torch.isnan(values).nonzero()[0])} is NaN")
    classes = values.unique().tolist()
    if not classes:
        raise InputError("labels are empty: the orthant prior needs at least one input")
    if set(classes) <= {0.0, 1.0}:
        return 2 * values - 1
    if set(classes) <= {-1.0, 1.0}:
        return values
    shown = ", ".join([f"{c:g}" for c in classes[:5]] + ["..."] * (len(classes) > 5))
    raise InputError(
        f"labels contain {len(classes)} classes ({shown}); the orthant prior is "
        f"binary: pass labels 0/1 or -1/+1, e.g. (labels >= 5)"
    )


def _checked_kernel(kernel: Float[Tensor, "n n"], n: int) -> Float[Tensor, "n n"]:
    matrix = torch.as_tensor(kernel).detach().to(torch.float64)
    if matrix.ndim != 2 or matrix.shape != (n, n):
        raise InputError(f"kernel has shape {tuple(matrix.shape)}, but there are {n} labels")
    bad = (~torch.isfinite(matrix)).nonzero()
    if len(bad):
        raise InputError(f"kernel entry {tuple(bad[0].tolist())} is not finite (NaN or infinity)")
    asymmetry = float((matrix - matrix.T).abs().max() / matrix.abs().max().clamp_min(1e-300))
    if asymmetry > 1e-6:
        raise InputError(f"kernel is not symmetric: relative difference {asymmetry:.1e}")
    empty = (matrix.diagonal() <= 0).nonzero().reshape(-1)
    if len(empty):
        i = int(empty[0])
        raise InputError(f"kernel variance of input {i} is {float(matrix[i, i]):g}, not positive")
    return (matrix + matrix.T) / 2


def _distinct(covariance: Float[Tensor, "n n"]) -> tuple[Tensor, tuple[int, int] | None]:
    """Indices of distinct variables, and a pair that is the same variable with opposite signs."""
    correlation = _correlation(covariance)
    opposite = ((correlation + 1).abs() < _SAME_VARIABLE).nonzero()
    if len(opposite):
        return torch.arange(0), (int(opposite[0, 0]), int(opposite[0, 1]))
    same = torch.tril((correlation - 1).abs() < _SAME_VARIABLE, diagonal=-1)
    return (~same.any(dim=1)).nonzero().reshape(-1), None


def _correlation(covariance: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    scale = covariance.diagonal().rsqrt()
    correlation = covariance * scale * scale[:, None]
    correlation.diagonal().fill_(1.0)
    return correlation


def _check_rank(correlation: Float[Tensor, "n n"]) -> None:
    """Refuse a kernel that is singular although no two inputs are the same."""
    n = correlation.shape[0]
    factor, info = torch.linalg.cholesky_ex(correlation)
    threshold = 10 * n * torch.finfo(torch.float64).eps
    if int(info) == 0 and float(factor.diagonal().square().min()) > threshold:
        return
    spectrum = torch.linalg.eigvalsh(correlation)
    rank = int((spectrum > threshold * spectrum[-1]).sum())
    if float(spectrum[0]) < -1e-8 * float(spectrum[-1]):
        raise InputError(
            f"kernel is not positive semi-definite: scaled to unit diagonal, its smallest "
            f"eigenvalue is {float(spectrum[0]):.2e}"
        )
    raise InputError(
        f"kernel has rank {rank} for {n} distinct inputs, so the orthant may be empty: an "
        f"empirical kernel needs (networks x width) of at least {n}; or pass noise > 0, which "
        f"changes the question to noisy labels"
    )
