r"""log P(f): the prior probability that a Gaussian process classifies a set of inputs as f does.

.. math:: P(f) = \int \prod_i 1[f_i z_i > 0]\, N(z; 0, K + \varsigma I)\, dz, \qquad f_i = \pm 1,

with the noise variance :math:`\varsigma = 0` (Heaviside link: the network's own sign function, and
what zhang2021 defines), or :math:`\varsigma = 1`, which equals the probit link on K (what its
authors computed). Natural logarithms throughout.

Beside the kernel, one matrix of its size in float64 and the particles are all the memory that is
used: the signed correlation is read from the kernel in panels, everything else is done in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior.orthant.log_probability import LogProbability
from planimeter.prior.orthant.minimax_tilting import MinimaxResult, minimax_log_orthant
from planimeter.prior.orthant.signed_kernel import dense
from planimeter.prior.orthant.stages import (
    Chain,
    Progress,
    Settings,
    checked_kernel,
)


def log_prior(
    kernel: Float[Tensor, "n n"],
    labels: Shaped[Tensor, " n"],
    noise: float = 0.0,
    *,
    method: str = "auto",
    particles: int = 1000,
    runs: int = 8,
    stderr: float | None = None,
    max_runs: int = 64,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_sweeps: int = 200,
    precision: torch.dtype = torch.float64,
    progress: Progress = lambda stage, done, total: None,
) -> LogProbability:
    """log P(f) with a standard error: EP, cumulant correction, EP-guided sequential Monte Carlo.

    No jitter is added to the kernel. Inputs that occur more than once with the same label count
    once, which changes nothing; with opposite labels P(f) is 0 and the value -inf.

    Arguments:
        kernel: (n, n) covariance of the outputs, symmetric, positive definite up to duplicates; it
            is not copied or changed.
        labels: (n,) 0/1 or -1/+1; a single class is legal.
        noise: variance added to the diagonal, at least 0; 1.0 is the probit link on `kernel`.
        method: "smc"; "ep" (with the correction; no error is known); "direct" (counting, for large
            P); "exact" (at most three distinct inputs); "minimax" (an independent check for n up
            to 300); or "auto": exact where it can be, direct where EP is rough and P is large, and
            smc otherwise.
        particles, runs: of the Monte Carlo; the error falls with the root of their product.
            "direct" and "minimax" make 12 draws for each particle.
        stderr: go on with more runs ("smc") until the standard error is no larger, in nats.
        max_runs: stop there, with an alarm.
        seed: of the Monte Carlo.
        tolerance, max_sweeps: of EP, in nats and sweeps.
        precision: of the matrices that EP factors, torch.float64 or torch.float32.
        progress: called with a stage ("EP", "SMC"), the steps done and their largest number.

    Raises:
        InputError: the kernel is not square, symmetric, finite or of full rank, or does not fit the
            memory; the labels are not binary or too few; a setting is out of its range; or the
            method does not apply.

    Source: zhang2021, Section 2 and Appendix D.
    """
    settings = Settings(
        method=method,
        particles=particles,
        runs=runs,
        stderr=stderr,
        max_runs=max_runs,
        seed=seed,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
        precision=precision,
        progress=progress,
    )
    return _log_priors(kernel, [binary_signs(labels)], noise, settings)[0]


def log_priors(
    kernel: Float[Tensor, "n n"],
    labellings: Shaped[Tensor, "m n"] | Sequence[Shaped[Tensor, " _"]],
    noise: float = 0.0,
    **settings: Any,
) -> tuple[LogProbability, ...]:
    """log P of several labellings of the same inputs: a ladder of attack sets, or a training run.

    The kernel is checked once, and EP starts from the sites of the nearest earlier labelling, so
    put neighbours near each other. Values agree with `log_prior` within the tolerance of EP and
    the errors of Monte Carlo.

    Arguments:
        kernel, noise: as for `log_prior`.
        labellings: (m, n) each 0/1 or -1/+1.
        settings: every other argument of `log_prior`.

    Raises:
        InputError: as for `log_prior`.
    """
    signs = [binary_signs(labels) for labels in labellings]
    if not signs:
        raise InputError("there are no labellings")
    return _log_priors(kernel, signs, noise, Settings(**settings))


def minimax_tilting(
    kernel: Float[Tensor, "n n"],
    labels: Shaped[Tensor, " n"],
    noise: float = 0.0,
    *,
    samples: int = 20_000,
    seed: int = 0,
) -> MinimaxResult:
    """log P(f) by minimax exponential tilting: shares nothing with EP, for n up to about 300.

    Arguments:
        kernel, labels, noise: as for `log_prior`.
        samples: draws.
        seed: of the draws.

    Returns:
        value, standard error, effective samples and the saddle point's residual.

    Raises:
        InputError: as for `log_prior`; or inputs that are the same are labelled oppositely.

    Source: Botev 2017.
    """
    signs = binary_signs(labels)
    checked = checked_kernel(kernel, len(signs), noise, Settings())
    clash = checked.contradiction(signs)
    if clash is not None:
        raise InputError(
            f"P(f) is 0: inputs {clash[0]} and {clash[1]} are the same but labelled differently"
        )
    return minimax_log_orthant(dense(checked.signed(signs)), samples=samples, seed=seed)


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


def _log_priors(
    kernel: Float[Tensor, "n n"],
    labellings: list[Float[Tensor, " n"]],
    noise: float,
    settings: Settings,
) -> tuple[LogProbability, ...]:
    chain = Chain(checked_kernel(kernel, len(labellings[0]), noise, settings), noise, settings)
    return tuple(chain(signs) for signs in labellings)
