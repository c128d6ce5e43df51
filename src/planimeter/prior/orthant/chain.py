r"""log P of one labelling after the other on one kernel: EP, its correction, Monte Carlo.

EP gives the guide and the alarm, the correction tells whether EP's posterior is wide enough to
guide, and Monte Carlo makes the value unbiased. What does not depend on the labels is done once;
EP starts from the sites of the nearest earlier labelling. In terms of :math:`f_i z_i`, which is
what the sites are about, these carry over as they are, whatever signs changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior.orthant.closed_forms import LARGEST, exact_log_orthant
from planimeter.prior.orthant.cumulant_correction import cumulant_correction
from planimeter.prior.orthant.direct import direct_log_orthant
from planimeter.prior.orthant.expectation_propagation import (
    EPSolution,
    expectation_propagation,
    posterior_covariance,
    tempered,
)
from planimeter.prior.orthant.in_place import as_float32, cholesky_
from planimeter.prior.orthant.log_probability import LogProbability
from planimeter.prior.orthant.minimax_tilting import minimax_log_orthant
from planimeter.prior.orthant.monte_carlo import SMCResult, orthant_smc, runs_together
from planimeter.prior.orthant.signed_kernel import (
    CheckedKernel,
    SignedKernel,
    check_kernel,
    check_memory,
    check_rank,
    dense,
)

METHODS = ("auto", "smc", "ep", "direct", "exact", "minimax")
# Above this ratio of the fourth to the third cumulant order, the corrected value over-corrects,
# and the EP posterior has thinner tails than the truth: guided by it, weights have no variance.
# Its sites to this power are wide enough (measured on equicorrelated and one-class problems).
_SERIES_ALARM = 0.3
_WIDER_GUIDE = 0.3
# Where EP is rough and P is at least this, counting is as exact as particles, and simpler.
_LARGE = math.log(0.02)
# Sites this much more precise than the prior cost so many digits that 0.01 nats are in doubt
# (measured on kernels of nearly equal inputs).
_PRECISION_ALARM = 1e9
# Draws of direct sampling and of minimax tilting, in units of particles x runs.
_CHEAP_DRAWS = 12
# Starting from another labelling's sites pays while fewer of the labels than this differ.
_NEAR = 0.25

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How log P is computed; the arguments of `log_prior`."""

    method: str = "auto"
    particles: int = 1000
    runs: int = 8
    stderr: float | None = None
    max_runs: int = 64
    seed: int = 0
    tolerance: float = 1e-4
    max_sweeps: int = 200
    precision: torch.dtype = torch.float64
    progress: Progress = lambda stage, done, total: None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}: one of {', '.join(METHODS)}")
        if self.runs < 2 or self.particles < 2:
            raise InputError(
                f"{self.runs} runs of {self.particles} particles leave no standard error: use at "
                f"least 2 of each"
            )
        if self.stderr is not None and not self.stderr > 0:
            raise InputError(f"the wanted standard error must be positive, got {self.stderr}")
        if self.max_sweeps < 1:
            raise InputError(f"EP needs at least one sweep, got max_sweeps={self.max_sweeps}")
        if self.precision not in (torch.float64, torch.float32):
            raise InputError(f"precision is torch.float64 or torch.float32, got {self.precision}")


def checked_kernel(
    kernel: Float[Tensor, "n n"], n: int, noise: float, settings: Settings
) -> CheckedKernel:
    """The kernel after every check that is independent of the labels."""
    if not 0 <= noise < math.inf:
        raise InputError(f"noise is a finite variance and cannot be negative: {noise}")
    if torch.as_tensor(kernel).shape == (n, n):
        check_memory(torch.as_tensor(kernel).device, n, needed_memory(n, settings))
    result = check_kernel(kernel, n, noise)
    check_rank(result.distinct)
    return result


def needed_memory(n: int, settings: Settings) -> int:
    """Bytes that log P of one labelling of n inputs takes beside the kernel."""
    together = min(settings.runs, runs_together(n, settings.particles))
    particles = 8 * n * settings.particles * together
    return 8 * n * n + particles + 8 * 8 * 256 * n


class Chain:
    """log P of one labelling after the other, on one kernel, with the memory of earlier sites.

    Arguments:
        kernel: checked.
        noise: that its diagonal includes.
        settings: of all labellings.
    """

    def __init__(self, kernel: CheckedKernel, noise: float, settings: Settings) -> None:
        self.kernel, self.noise, self.settings = kernel, noise, settings
        self._earlier: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, signs: Float[Tensor, " n"]) -> LogProbability:
        """log P of the labelling with these signs."""
        if len(signs) != len(self.kernel.twin):
            raise InputError(
                f"kernel is of {len(self.kernel.twin)} inputs, but there are {len(signs)} labels"
            )
        clash = self.kernel.contradiction(signs)
        if clash is not None:
            return _impossible(clash, self.noise)
        covariance = self.kernel.signed(signs)
        method = self.settings.method
        if method in ("auto", "exact") and covariance.size <= LARGEST:
            value, error = exact_log_orthant(dense(covariance))
            if method == "exact" or error < 1e-6:
                return self._plain("exact", value, error)
        if method == "exact":
            raise InputError(
                f"closed forms end at {LARGEST} distinct inputs, and there are {covariance.size}"
            )
        if method == "direct":
            return self._direct(covariance, None)
        if method == "minimax":
            return self._minimax(covariance)
        return self._guided(covariance, signs)

    def _guided(self, covariance: SignedKernel, signs: Float[Tensor, " n"]) -> LogProbability:
        """EP from the nearest earlier sites, and what follows."""
        settings = self.settings
        work = _matrix(covariance)
        solution = expectation_propagation(
            covariance,
            tolerance=settings.tolerance,
            max_sweeps=settings.max_sweeps,
            precision=settings.precision,
            initial=self._nearest(signs),
            workspace=work if settings.precision == torch.float64 else as_float32(work),
            progress=lambda sweep, log_z: settings.progress("EP", sweep, settings.max_sweeps),
        )
        self._earlier.append((signs, solution.tau, solution.nu))
        return self._from_sites(covariance, solution, work)

    def _from_sites(
        self, covariance: SignedKernel, solution: EPSolution, work: Tensor
    ) -> LogProbability:
        """The correction of EP, and what "auto", "smc" or "ep" goes on with."""
        settings = self.settings
        guide = solution
        if settings.precision != torch.float64:
            # Monte Carlo is unbiased only if log Z of its guide is that of its very sites.
            guide = tempered(covariance, solution, 1.0, work)
        posterior = posterior_covariance(covariance, guide.tau, work)
        correction, ratio = cumulant_correction(solution, posterior)
        corrected = solution.log_z + correction
        alarms = []
        if ratio > _SERIES_ALARM:
            unaffected = (
                "" if settings.method == "ep" else "; the Monte Carlo value is not affected"
            )
            alarms.append(
                f"EP and its correction are rough here (ratio of orders {ratio:.2f}){unaffected}"
            )
        if float(solution.tau.max()) > _PRECISION_ALARM:
            alarms.append("almost equal inputs have opposite labels: digits of the value are lost")
        ep = _EPPart(solution, corrected, tuple(alarms))
        if settings.method == "ep":
            return self._plain("ep", corrected, math.nan, ep)
        if ratio > _SERIES_ALARM:
            if settings.method == "auto" and corrected > _LARGE:
                del posterior
                return self._direct(covariance, ep, work)
            guide = tempered(covariance, solution, _WIDER_GUIDE, work)
            posterior = posterior_covariance(covariance, guide.tau, work)
        return self._smc(guide, posterior, ep)

    def _smc(self, guide: EPSolution, posterior: Tensor, ep: _EPPart) -> LogProbability:
        settings = self.settings
        smc: SMCResult = orthant_smc(
            guide,
            posterior,
            particles=settings.particles,
            runs=settings.runs,
            stderr=settings.stderr,
            max_runs=settings.max_runs,
            seed=settings.seed,
            progress=lambda done: settings.progress("SMC", done, len(posterior)),
        )
        alarms = []
        if smc.stderr * math.sqrt(len(smc.runs)) > 0.5:
            alarms.append("runs differ by more than half a nat: use more particles")
        if settings.stderr is not None and smc.stderr > settings.stderr:
            alarms.append(
                f"standard error {settings.stderr:g} was not reached in {len(smc.runs)} runs"
            )
        return self._plain("smc", smc.log_z, smc.stderr, ep, smc.runs, tuple(alarms))

    def _direct(
        self, covariance: SignedKernel, ep: _EPPart | None, work: Tensor | None = None
    ) -> LogProbability:
        factor = dense(covariance, work)
        cholesky_(factor)
        samples = _CHEAP_DRAWS * self.settings.particles * self.settings.runs
        found = direct_log_orthant(factor, samples=samples, seed=self.settings.seed)
        return self._plain("direct", found.log_z, found.stderr, ep)

    def _minimax(self, covariance: SignedKernel) -> LogProbability:
        samples = _CHEAP_DRAWS * self.settings.particles * self.settings.runs
        found = minimax_log_orthant(dense(covariance), samples=samples, seed=self.settings.seed)
        alarms = []
        if found.effective_samples < 200:
            alarms.append(
                f"{found.effective_samples:.0f} effective samples of {samples}: value and error "
                f"are not to be believed; minimax tilting is for n up to 300"
            )
        return self._plain("minimax", found.log_z, found.stderr, None, (), tuple(alarms))

    def _plain(
        self,
        method: str,
        value: float,
        stderr: float,
        ep: _EPPart | None = None,
        runs: tuple[float, ...] = (),
        alarms: tuple[str, ...] = (),
    ) -> LogProbability:
        return LogProbability(
            value=value,
            stderr=stderr,
            ep=ep.solution.log_z if ep else math.nan,
            corrected=ep.corrected if ep else math.nan,
            runs=runs,
            noise=self.noise,
            sweeps=ep.solution.sweeps if ep else 0,
            residual=ep.solution.residual if ep else 0.0,
            converged=ep.solution.converged if ep else True,
            alarms=(ep.alarms if ep else ()) + alarms,
            method=method,
        )

    def _nearest(self, signs: Float[Tensor, " n"]) -> tuple[Tensor, Tensor] | None:
        """Sites of the earlier labelling that differs in the fewest labels, itself or negated."""
        best, found = _NEAR, None
        for other, tau, nu in self._earlier:
            agreement = float((signs * other).mean())
            share = (1 - abs(agreement)) / 2
            if share < best:
                changed = signs * other * (1 if agreement > 0 else -1) < 0
                # Sites of inputs whose label changed: contradictions need stronger ones.
                stronger = torch.where(changed, 2.0, 1.0).to(tau)[self.kernel.index]
                best, found = share, (stronger * tau, stronger * nu)
        return found


@dataclass(frozen=True)
class _EPPart:
    """What EP found, as the other methods report it."""

    solution: EPSolution
    corrected: float
    alarms: tuple[str, ...]


def _matrix(kernel: SignedKernel) -> Float[Tensor, "n n"]:
    return torch.empty((kernel.size, kernel.size), dtype=torch.float64, device=kernel.device)


def _impossible(clash: tuple[int, int], noise: float) -> LogProbability:
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
