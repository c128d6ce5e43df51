r"""Bounds on the generalization error from prior probabilities.

For every function with zero error on m training examples at once, with probability at least
:math:`1 - \delta` over the training set (zhang2021, Eq. 4),

.. math:: \epsilon(f) \le \frac{\ln 1/P(f) + \ln 1/\delta}{m} .

It follows from a union bound weighted by the prior: f of error :math:`\epsilon` survives m examples
with probability :math:`(1-\epsilon)^m \le e^{-\epsilon m}`, and :math:`\sum_f P(f)\,\delta \le
\delta`. For the average error of functions drawn from the posterior :math:`P_B(f|S)`, with
probability at least :math:`1 - \delta` (the marginal-likelihood PAC-Bayes bound),

.. math:: -\ln(1 - \epsilon) \le \frac{\ln 1/P(S) + \ln(2m/\delta)}{m - 1} .

Errors of log P are carried through to first order.

Source: zhang2021, Section 2; Valle-Pérez & Louis 2020; McAllester 1998.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.prior.log_probability import LogProbability

_COIN = 0.5


@dataclass(frozen=True)
class ErrorBound:
    """An upper bound on a generalization error.

    Arguments:
        estimate: the bound, between 0 and 1 where it says something; its error is that of log P.
        delta: probability that the bound fails.
        bounds: what is bounded.
    """

    estimate: Estimate
    delta: float
    bounds: str

    @property
    def value(self) -> float:
        """The bound."""
        return self.estimate.value

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no smaller than the error of a fair coin, 1/2."""
        return self.value >= _COIN

    def __str__(self) -> str:
        note = " (VACUOUS: a coin errs in half of all cases)" if self.vacuous else ""
        return f"{self.bounds} <= {self.estimate} with probability {1 - self.delta:g}{note}"


def function_error_bound(
    log_p: LogProbability | Estimate, m: int, delta: float = 0.05
) -> ErrorBound:
    """The error of one function with zero training error, from log P(f).

    Arguments:
        log_p: log P(f), natural.
        m: training examples, at least 1.
        delta: probability of failure, in (0, 1).

    Raises:
        InputError: m or delta out of range, or not the logarithm of a probability.

    Source: zhang2021, Eq. 4.
    """
    cost = _cost(log_p, m, 1, delta)
    bound = (cost + math.log(1 / delta)) / m
    return ErrorBound(_named(bound, "zhang2021 Eq. 4"), delta, "error of f")


def posterior_error_bound(
    log_p: LogProbability | Estimate, m: int, delta: float = 0.05
) -> ErrorBound:
    """The average error over the posterior given S, from log P(S).

    Arguments:
        log_p: log P(S), natural; see `log_evidence`.
        m: training examples, at least 2.
        delta: probability of failure, in (0, 1).

    Raises:
        InputError: m or delta out of range, or not the logarithm of a probability.

    Source: zhang2021, Section 2; Valle-Pérez & Louis 2020.
    """
    cost = _cost(log_p, m, 2, delta)
    exponent = (cost + math.log(2 * m / delta)) / (m - 1)
    survival = math.exp(-exponent.value)
    bound = Estimate(
        -math.expm1(-exponent.value), survival * exponent.stderr, converged=exponent.converged
    )
    return ErrorBound(
        _named(bound, "marginal-likelihood PAC-Bayes"), delta, "posterior average error"
    )


def _cost(log_p: LogProbability | Estimate, m: int, smallest: int, delta: float) -> Estimate:
    """ln 1/P with its error."""
    if m < smallest:
        raise InputError(f"the bound needs at least {smallest} training examples, got {m}")
    if not 0 < delta < 1:
        raise InputError(f"delta is a probability between 0 and 1, got {delta}")
    estimate = log_p.estimate() if isinstance(log_p, LogProbability) else log_p
    slack = 0.0 if math.isnan(estimate.stderr) else 5 * estimate.stderr
    if not estimate.value <= slack:
        raise InputError(f"log P = {estimate.value:g} is not the logarithm of a probability")
    return -estimate


def _named(bound: Estimate, method: str) -> Estimate:
    return Estimate(bound.value, bound.stderr, method, converged=bound.converged)
