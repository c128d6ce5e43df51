r"""log P(f|S): how probable a labelling is among those that agree with it on the training set S.

.. math:: P(S) = \sum_{f \text{ agrees with } S} P(f), \qquad P_B(f | S) = \frac{P(f)}{P(S)} .

Inputs are ordered S first, then E, and numerator and denominator are sampled side by side: run r of
both moves through S with the same random numbers, and only then goes on through E. Their errors
are positively correlated, and that of the difference comes from the differences of runs,

.. math:: \sigma^2 = \frac1R \mathrm{Var}_r \left[\frac{P_r(f)}{\bar P(f)}
          - \frac{P_r(S)}{\bar P(S)}\right] .

The particles themselves cannot be shared. Those that know S alone would have to be reweighted by
:math:`P(E | z_S)`: on digits, with 300 inputs in S and 100 in E, its logarithm has a standard
deviation of 4.6, and 12 of 2000 particles are left; those guided by S and E are as far from P(S).

Source: zhang2021, Section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import Estimate, format_with_error, standard_error
from planimeter.prior.orthant.log_prior import binary_signs, log_prior
from planimeter.prior.orthant.log_probability import LogProbability
from planimeter.prior.orthant.stages import Chain, Settings, checked_kernel, with_rank


@dataclass(frozen=True)
class LogPosterior:
    """log P(f|S) and the two probabilities it is the ratio of. Natural logarithms.

    Arguments:
        value: log P(f) - log P(S); at most 0 up to its error.
        stderr: its standard error from paired runs by Student's t, in nats.
        prior: log P(f).
        evidence: log P(S).
        train: how many of the inputs are S.
    """

    value: float
    stderr: float
    prior: LogProbability
    evidence: LogProbability
    train: int

    @property
    def dof(self) -> int | None:
        """Degrees of freedom of the spread of pairs of runs behind the error."""
        return self.prior.dof

    @property
    def corrected(self) -> float:
        """The same by EP with its cumulant correction."""
        return self.prior.corrected - self.evidence.corrected

    def estimate(self) -> Estimate:
        """Value and error alone, for arithmetic that carries errors along."""
        converged = self.prior.converged and self.evidence.converged
        return Estimate(
            self.value, self.stderr, "log P(f|S), paired smc", converged=converged, dof=self.dof
        )

    def __str__(self) -> str:
        text = format_with_error(self.value, self.stderr)
        return f"{text} (log P(f) {self.prior}, log P(S) {self.evidence})"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        value = "-inf" if self.value == -math.inf else self.value
        return {
            "value": value,
            "stderr": self.stderr,
            "dof": self.dof,
            "prior": self.prior.as_dict(),
            "evidence": self.evidence.as_dict(),
            "train": self.train,
        }


def log_evidence(
    kernel: Float[Tensor, "m m"],
    labels: Shaped[Tensor, " m"],
    noise: float = 0.0,
    **settings: Any,
) -> LogProbability:
    """log P(S), the marginal likelihood of the training labels.

    Arguments:
        kernel, labels: of S alone.
        noise, settings: as for `log_prior`, which computes it: P of a set of inputs and labels is
            the evidence if they are the training set, and P(f) if they are all.

    Raises:
        InputError: as for `log_prior`.
    """
    return log_prior(kernel, labels, noise, **settings)


def log_posterior(
    kernel: Float[Tensor, "n n"],
    labels: Shaped[Tensor, " n"],
    noise: float = 0.0,
    *,
    train: int,
    **settings: Any,
) -> LogPosterior:
    """log P(f|S) = log P(f) - log P(S), with the error that the two share taken out.

    Arguments:
        kernel: (n, n) covariance of the outputs on S and E, S first.
        labels: (n,) 0/1 or -1/+1, of S and E.
        noise: variance added to the diagonal.
        train: m, the number of inputs in S; from 1 to n - 1.
        settings: every other argument of `log_prior` but `method` and `stderr`: both parts are
            sampled by the same runs.

    Returns:
        -inf with error 0 if E contradicts S or itself.

    Raises:
        InputError: as for `log_prior`; S contradicts itself; or a setting does not apply.

    Source: zhang2021, Section 2.
    """
    n = len(labels)
    if not 1 <= train < n:
        raise InputError(f"train is the number of inputs in S, from 1 to {n - 1}: got {train}")
    for name in ("method", "stderr"):
        if name in settings:
            raise InputError(f"log_posterior pairs runs of Monte Carlo: {name} does not apply")
    options = Settings(method="smc", **settings)
    signs = binary_signs(labels)
    everything = checked_kernel(kernel, n, noise, options)
    chain = Chain(everything, noise, options)
    evidence = Chain(with_rank(everything.leading(train)), noise, options)(signs[:train])
    if evidence.impossible is not None:
        raise InputError(f"P(S) is 0, {evidence}: P(f|S) has no meaning")
    prior = chain(signs)
    if prior.impossible is not None:
        return LogPosterior(-math.inf, 0.0, prior, evidence, train)
    value = prior.value - evidence.value
    return LogPosterior(value, _paired_error(prior, evidence), prior, evidence, train)


def _paired_error(prior: LogProbability, evidence: LogProbability) -> float:
    shares = [
        torch.softmax(torch.tensor(part.runs, dtype=torch.float64), 0) for part in (prior, evidence)
    ]
    differences = len(prior.runs) * (shares[0] - shares[1])  # P_r / mean, less the same of S
    return standard_error(differences)
