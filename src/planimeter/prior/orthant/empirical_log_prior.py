r"""log P(f) on an empirical kernel, with the error of the Monte Carlo and that of the kernel.

See `empirical_kernel` for the jackknife. Its log-probabilities are those of expectation propagation
with the cumulant correction: deterministic, so their differences are the kernel's alone, and
cheap. The value itself is from sequential Monte Carlo on the whole kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import Estimate, format_with_error, widening
from planimeter.prior.kernels.empirical import EmpiricalKernel
from planimeter.prior.orthant.log_prior import log_prior
from planimeter.prior.orthant.log_probability import LogProbability, plain


@dataclass(frozen=True)
class EmpiricalLogProbability:
    """log P(f) on an empirical kernel. Natural logarithms.

    Arguments:
        orthant: the result on the whole kernel, with the standard error of its Monte Carlo.
        kernel_stderr: standard error that the kernel's noise gives log P(f), by the jackknife and
            Student's t; NaN where P is 0 for want of networks, or without one group of them.
        kernel_bias: by how much the noise moves log P(f) on average, by the jackknife; it is not
            subtracted from `value`.
        deleted: log P(f) with each group of networks left out.
        networks: M.
    """

    orthant: LogProbability
    kernel_stderr: float
    kernel_bias: float
    deleted: tuple[float, ...]
    networks: int

    @property
    def value(self) -> float:
        """log P(f) on the whole kernel."""
        return self.orthant.value

    @property
    def stderr(self) -> float:
        """Both errors in quadrature. The bias is another matter."""
        return math.hypot(self.orthant.stderr, self.kernel_stderr)

    @property
    def dof(self) -> int | None:
        """Degrees of freedom of the jackknife: groups of networks less one."""
        return len(self.deleted) - 1 if self.deleted else None

    @property
    def debiased(self) -> Estimate:
        """The value less the kernel's bias."""
        text = f"less the jackknife's bias, {self.networks} networks"
        return Estimate(self.value - self.kernel_bias, self.stderr, text, dof=self.dof)

    def __str__(self) -> str:
        kernel = f"{self.kernel_stderr:.2g} from {self.networks} networks"
        return (
            f"{format_with_error(self.value, self.stderr)} (Monte Carlo {self.orthant.stderr:.2g}, "
            f"kernel {kernel}, kernel bias {self.kernel_bias:+.2g})"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = {name: plain(value) for name, value in asdict(self).items()}
        return fields | {
            "orthant": self.orthant.as_dict(),
            "deleted": [plain(value) for value in self.deleted],
            "value": plain(self.value),
            "stderr": plain(self.stderr),
            "dof": self.dof,
        }


def empirical_log_prior(
    estimate: EmpiricalKernel,
    labels: Shaped[Tensor, " n"],
    *,
    particles: int = 1000,
    runs: int = 8,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> EmpiricalLogProbability:
    r"""log P(f) on a measured kernel, with both of its errors.

    .. math:: \mathrm{se}^2 = \mathrm{se}_{MC}^2 + \left(\frac{t_{g-1}}{1.96}\right)^2
              \frac{g - 1}{g} \sum_j (\theta_{(j)} - \bar\theta)^2 ,

    :math:`t_{g-1}` the 97.5 % quantile of Student's t.

    Arguments:
        estimate: a kernel with jackknife groups; its `noise` is used.
        labels: (n,) 0/1 or -1/+1.
        particles, runs, seed, tolerance, max_sweeps: as for `log_prior`.
        progress: called with a stage ("EP", "SMC", "jackknife"), the steps done and their number.

    Raises:
        InputError: the kernel was measured with groups=0; or as for `log_prior`.

    Source: zhang2021, Appendix D; Efron & Tibshirani 1993, Chapter 11.
    """
    count = len(estimate.groups)
    if count == 0:
        raise InputError(
            "the kernel was measured with groups=0, so its noise cannot be told: measure it with "
            "groups, or pass estimate.kernel to log_prior"
        )
    iteration = {"tolerance": tolerance, "max_sweeps": max_sweeps}
    orthant = log_prior(
        estimate.kernel, labels, estimate.noise, particles=particles, runs=runs, seed=seed,
        progress=progress, tolerance=tolerance, max_sweeps=max_sweeps,
    )  # fmt: skip
    deleted = []
    if orthant.impossible is None:
        for j, group in enumerate(estimate.groups):
            kernel = (count * estimate.kernel - group) / (count - 1)
            found = log_prior(kernel, labels, estimate.noise, method="ep", **iteration)  # type: ignore[arg-type]
            deleted.append(found.corrected)
            progress("jackknife", j + 1, count)
    values = torch.tensor(deleted, dtype=torch.float64)
    stderr = bias = 0.0
    if orthant.rank is not None or -math.inf in deleted:
        stderr = bias = math.nan  # with other networks it is another value, and how far is not told
    elif deleted:
        mean = float(values.mean())
        spread = (count - 1) / count * float((values - mean).square().sum())
        stderr = widening(count) * math.sqrt(spread)
        bias = (count - 1) * (mean - orthant.corrected)
    return EmpiricalLogProbability(orthant, stderr, bias, tuple(deleted), estimate.networks)
