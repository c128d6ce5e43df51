"""All the usual numbers of a spectrum from one Krylov pass."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch

from planimeter.curvature.density import SpectralDensity, spectral_density
from planimeter.curvature.krylov import Eigenpairs, Progress, top_eigenvalues
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.operator import CurvatureOperator
from planimeter.printing import short_repr


@dataclass(frozen=True)
class SpectralSummary:
    """What one pass over a matrix says about its spectrum.

    Arguments:
        eigenpairs: those of largest magnitude, in descending order of it.
        density: the whole spectrum, with these counted exactly.
        largest, smallest: the extreme eigenvalues (algebraically).
        trace, frobenius_norm: with their standard errors.
        products, seconds: spent in all.
        seed, dtype, device: of the computation.
    """

    eigenpairs: Eigenpairs
    density: SpectralDensity
    largest: Estimate
    smallest: Estimate
    trace: Estimate
    frobenius_norm: Estimate
    products: int
    seconds: float = field(compare=False)
    seed: int = 0
    dtype: str = ""
    device: str = ""

    def __repr__(self) -> str:
        return short_repr(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"largest eigenvalue  {self.largest}",
                f"smallest eigenvalue {self.smallest}",
                f"trace               {self.trace}",
                f"Frobenius norm      {self.frobenius_norm}",
                f"{self.density}",
                f"{self.products} products, {self.seconds:.1f} s",
            ]
        )


def spectral_summary(
    operator: CurvatureOperator,
    *,
    k: int = 10,
    tolerance: float = 1e-3,
    probes: int = 6,
    steps: int = 25,
    extra: int = 50,
    max_products: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> SpectralSummary:
    """Extreme eigenvalues, trace, Frobenius norm and spectral density, sharing their products.

    The eigenpairs of largest magnitude are found first; the random probes then run in their
    complement, where trace and norm vary little, and every step serves all the estimates.

    Arguments:
        operator: size P.
        k: eigenpairs of largest magnitude.
        tolerance: of their residuals.
        probes, steps: of the density.
        extra: further probes of one product each, for trace and norm.
        max_products: for the eigenpairs.
        seed: of all that is random.
        progress: called with the products done and about how many there will be.

    Raises:
        InputError: k is not between 1 and P, or fewer than 2 probes.
    """
    started = time.perf_counter()
    guess = 5 * k + probes * steps + extra
    pairs = top_eigenvalues(
        operator,
        min(k, operator.size),
        which="magnitude",
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
        progress=lambda done, total: progress(done, max(guess, done)),
    )
    density = spectral_density(
        operator,
        probes=probes,
        steps=steps,
        extra=extra,
        known=pairs,
        seed=seed + 1,
        progress=lambda done, total: progress(pairs.products + done, pairs.products + total),
    )
    # The seed that makes all of it again is the one that was given here.
    density = replace(density, seed=seed)
    return SpectralSummary(
        pairs,
        density,
        _extreme(density, pairs, max),
        _extreme(density, pairs, min),
        density.trace(),
        density.frobenius_norm(),
        density.products,
        time.perf_counter() - started,
        seed,
        density.dtype,
        density.device,
    )


def log_product(pairs: Eigenpairs) -> Estimate:
    r"""The log-product of eigenvalues, :math:`\sum_i \log \lambda_i` (zhang2021, Figure S2).

    `converged` is False where an eigenpair is not. To first order the residuals :math:`r_i` allow
    an error of :math:`\sum_i r_i / \lambda_i`, which the method names.

    Raises:
        InputError: an eigenvalue is not positive, so that the product has no logarithm.
    """
    if bool((pairs.values <= 0).any()):
        count = int((pairs.values > 0).sum())
        raise InputError(
            f"only {count} of {len(pairs.values)} eigenvalues are positive: the log-product of "
            f"more than the top {count} does not exist"
        )
    bound = float((pairs.residuals / pairs.values).sum())
    return Estimate(
        float(pairs.values.log().sum()),
        0.0,
        f"Lanczos, top {len(pairs.values)}, residuals allow {bound:.1e}",
        pairs.products,
        bool(pairs.converged.all()),
        pairs.seed,
        pairs.dtype,
        pairs.device,
        pairs.seconds,
    )


def _extreme(density: SpectralDensity, pairs: Eigenpairs, pick: object) -> Estimate:
    """The extreme eigenvalue, known or else the extreme Ritz value of all probes."""
    best = max if pick is max else min
    nodes = [float(best(x.tolist())) for x in density.nodes]
    place = int(pairs.values.argmax() if best is max else pairs.values.argmin())
    value = float(pairs.values[place])
    outside = best(nodes, default=value)
    base = replace(density.functional(torch.zeros_like), stderr=0.0)
    if best(value, outside) == value or math.isclose(value, outside):
        return replace(
            base,
            value=value,
            method=f"Lanczos, residual {float(pairs.residuals[place]):.1e}",
            converged=bool(pairs.converged[place]),
        )
    return replace(
        base,
        value=outside,
        method="extreme Ritz value of the probes, a bound from inside the spectrum",
        converged=False,
    )
