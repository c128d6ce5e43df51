r"""log P of one labelling after the other on one kernel: EP, its correction, Monte Carlo.

EP gives the guide and the alarm, the correction tells whether EP's posterior is wide enough to
guide, and Monte Carlo makes the value unbiased. What does not depend on the labels is done once;
EP starts from the sites of the nearest earlier labelling. In terms of :math:`f_i z_i`, which is
what the sites are about, these carry over as they are, whatever signs changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import widening
from planimeter.prior.orthant.closed_forms import LARGEST, exact_log_cone, exact_log_orthant
from planimeter.prior.orthant.cone_monte_carlo import cone_smc
from planimeter.prior.orthant.cumulant_correction import (
    collective_skewness,
    correction_orders,
)
from planimeter.prior.orthant.direct import direct_log_cone, direct_log_orthant
from planimeter.prior.orthant.expectation_propagation import (
    EPSolution,
    expectation_propagation,
    lost_digits,
    posterior_covariance,
    tempered,
)
from planimeter.prior.orthant.feasible import has_inside, is_contradiction
from planimeter.prior.orthant.in_place import as_float32, cholesky_
from planimeter.prior.orthant.kernel_rounding import kernel_rounding, rounding_alarms
from planimeter.prior.orthant.log_probability import LogProbability
from planimeter.prior.orthant.low_rank import LowRankKernel
from planimeter.prior.orthant.minimax_tilting import minimax_log_orthant
from planimeter.prior.orthant.monte_carlo import SMCResult, orthant_smc, runs_together
from planimeter.prior.orthant.rank import settled
from planimeter.prior.orthant.signed_kernel import (
    CheckedKernel,
    SignedKernel,
    check_kernel,
    check_memory,
    dense,
)

METHODS = ("auto", "smc", "ep", "direct", "exact", "minimax")
# Above this ratio of the fourth to the third cumulant order, the corrected value over-corrects.
_SERIES_ALARM = 0.3
# Where outputs move together the orthant reaches further out than the EP posterior, and guided by
# that, weights have no variance: a few runs in a hundred are half a nat high. From this skewness
# on, its sites to this power are wide enough and not wider than they need be (equicorrelated
# problems of one class, 100 to 400 inputs; image kernels are far below).
_WIDER_GUIDE = ((1.8, 0.1), (1.2, 0.2), (0.5, 0.3), (0.35, 0.45), (0.0, 1.0))
# Where EP is rough and P is at least this, counting is as exact as particles, and simpler.
_LARGE = math.log(0.02)
# Closed forms with a larger error from rounding than this are left to the other methods.
_CLOSED_FORM_ERROR = 1e-6
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
    return with_rank(check_kernel(kernel, n, noise))


def with_rank(kernel: CheckedKernel) -> CheckedKernel:
    """The same with what is done about its rank."""
    distinct, low_rank = settled(kernel.distinct)
    return replace(kernel, distinct=distinct, low_rank=low_rank)


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
            self.kernel.check_same(*clash)
            return _impossible(clash, self.noise, self.kernel.eps)
        covariance = self.kernel.signed(signs)
        cone, against = self._cone(covariance, signs)
        if against is not None and self.kernel.low_rank is not None:
            return _impossible(against, self.noise, self.kernel.eps, self.kernel.low_rank.rank)
        method = self.settings.method
        if method in ("auto", "exact"):
            found = self._exact(covariance, cone)
            if found is not None:
                return found
        if method == "direct":
            return self._direct(covariance, cone, None)
        if method == "minimax":
            if cone is not None:
                raise InputError(
                    f"minimax tilting needs a kernel of full rank, and this one has rank "
                    f"{cone.rank} for {cone.size} distinct inputs: use method='smc'"
                )
            return self._minimax(covariance)
        return self._guided(covariance, cone, signs)

    def _cone(
        self, covariance: SignedKernel, signs: Float[Tensor, " n"]
    ) -> tuple[LowRankKernel | None, tuple[int, ...] | None]:
        """The orthant as a cone of fewer dimensions, and which of its constraints contradict.

        A kernel without a gap in its spectrum has its rank by rounding alone: what contradicts
        there is not impossible, and n dimensions will tell whether its digits suffice.
        """
        low_rank = self.kernel.low_rank
        if low_rank is None or not (low_rank.clear or low_rank.is_low):
            return None, None
        cone = low_rank.signed(signs.to(low_rank.device)[self.kernel.index])
        possible, against = has_inside(cone)
        if possible:
            return cone if low_rank.is_low else None, None
        if low_rank.clear and is_contradiction(covariance, against):
            return None, tuple(int(self.kernel.index[i]) for i in against)
        return None, None

    def _exact(self, covariance: SignedKernel, cone: LowRankKernel | None) -> LogProbability | None:
        """By a closed form, if one is known and has its digits."""
        forced = self.settings.method == "exact"
        if covariance.size <= LARGEST:
            value, error = exact_log_orthant(dense(covariance), covariance.eps)
        elif cone is not None and cone.rank == 2:
            value, error = exact_log_cone(cone.factor, cone.eps)
        elif forced:
            raise InputError(
                f"closed forms end at {LARGEST} distinct inputs and at rank 2, and there are "
                f"{covariance.size}" + (f" of rank {cone.rank}" if cone is not None else "")
            )
        else:
            return None
        if not forced and error >= _CLOSED_FORM_ERROR:
            return None
        alarms = rounding_alarms(error, covariance.eps)
        return self._plain("exact", value, error, alarms=alarms)

    def _guided(
        self, covariance: SignedKernel, cone: LowRankKernel | None, signs: Float[Tensor, " n"]
    ) -> LogProbability:
        """EP from the nearest earlier sites, and what follows."""
        settings = self.settings
        kernel = covariance if cone is None else cone
        work: Tensor | None = None
        memory: Tensor | None = None
        if cone is None:
            work = memory = _matrix(covariance)
            if settings.precision != torch.float64:
                memory = as_float32(work)
        solution = expectation_propagation(
            kernel,
            tolerance=settings.tolerance,
            max_sweeps=settings.max_sweeps,
            precision=settings.precision,
            initial=self._nearest(signs),
            workspace=memory,
            progress=lambda sweep, log_z: settings.progress("EP", sweep, settings.max_sweeps),
        )
        self._earlier.append((signs, solution.tau, solution.nu))
        return self._from_sites(covariance, cone, solution, work)

    def _from_sites(
        self,
        covariance: SignedKernel,
        cone: LowRankKernel | None,
        solution: EPSolution,
        work: Tensor | None,
    ) -> LogProbability:
        """The correction of EP, and what "auto", "smc" or "ep" goes on with."""
        settings = self.settings
        kernel = covariance if cone is None else cone
        guide = solution
        if settings.precision != torch.float64:
            # Monte Carlo is unbiased only if log Z of its guide is that of its very sites.
            guide = tempered(kernel, solution, 1.0, work)
        posterior = posterior_covariance(kernel, guide.tau, work)
        third, fourth = correction_orders(solution, posterior)
        ratio = abs(fourth / third) if third else 0.0
        corrected = solution.log_z + third + fourth
        rounding = kernel_rounding(kernel, guide, posterior)
        alarms = list(rounding_alarms(rounding, covariance.eps))
        if ratio > _SERIES_ALARM:
            unaffected = (
                "" if settings.method == "ep" else "; the Monte Carlo value is not affected"
            )
            alarms.append(
                f"EP and its correction are rough here (ratio of orders {ratio:.2f}){unaffected}"
            )
        ep = _EPPart(solution, corrected, rounding, tuple(alarms))
        if settings.method == "ep":
            return self._plain("ep", corrected, math.nan, ep)
        if ratio > _SERIES_ALARM and settings.method == "auto" and corrected > _LARGE:
            del posterior
            return self._direct(covariance, cone, ep, work)
        skewness = collective_skewness(solution, posterior, third)
        power = next(power for least, power in _WIDER_GUIDE if skewness >= least)
        if power < 1:
            guide = tempered(kernel, solution, power, work)
            if cone is None:
                posterior = posterior_covariance(kernel, guide.tau, work)
        return self._smc(guide, posterior if cone is None else cone, ep)

    def _smc(
        self, guide: EPSolution, posterior: Tensor | LowRankKernel, ep: _EPPart
    ) -> LogProbability:
        settings = self.settings
        options: dict[str, Any] = {
            name: getattr(settings, name)
            for name in ("particles", "runs", "stderr", "max_runs", "seed")
        }
        n = len(guide.tau)
        options["progress"] = lambda done: settings.progress("SMC", done, n)
        smc: SMCResult
        if isinstance(posterior, LowRankKernel):
            smc = cone_smc(posterior, guide, **options)
        else:
            smc = orthant_smc(guide, posterior, **options)
        if math.isnan(smc.stderr):
            raise lost_digits(int(guide.tau.argmax()))
        alarms = []
        count = len(smc.runs)
        if smc.stderr * math.sqrt(count) / widening(count) > 0.5:
            alarms.append("runs differ by more than half a nat: use more particles")
        if settings.stderr is not None and smc.stderr > settings.stderr:
            alarms.append(f"standard error {settings.stderr:g} was not reached in {count} runs")
        return self._plain("smc", smc.log_z, smc.stderr, ep, smc.runs, tuple(alarms))

    def _direct(
        self,
        covariance: SignedKernel,
        cone: LowRankKernel | None,
        ep: _EPPart | None,
        work: Tensor | None = None,
    ) -> LogProbability:
        samples = _CHEAP_DRAWS * self.settings.particles * self.settings.runs
        if cone is not None:
            found = direct_log_cone(cone.factor, samples=samples, seed=self.settings.seed)
        else:
            factor = dense(covariance, work)
            cholesky_(factor)
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
            stderr=math.hypot(stderr, ep.rounding if ep else 0.0),
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
    rounding: float
    alarms: tuple[str, ...]


def _matrix(kernel: SignedKernel) -> Float[Tensor, "n n"]:
    return torch.empty((kernel.size, kernel.size), dtype=torch.float64, device=kernel.device)


def _impossible(
    clash: tuple[int, ...], noise: float, eps: float, rank: int | None = None
) -> LogProbability:
    alarms: tuple[str, ...] = ()
    if eps > torch.finfo(torch.float64).eps:
        alarms = ("a float32 kernel cannot tell equal inputs from almost equal ones",)
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
        rank=rank,
        alarms=alarms,
    )
