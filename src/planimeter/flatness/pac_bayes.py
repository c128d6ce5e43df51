r"""PAC-Bayes measures: norms against the noise that the weights stand, see `noise_scale`.

.. math:: 1/\sigma^2, \qquad \|\theta\|^2 / (4\sigma^2).

Weights and noise are those of the network with its BatchNorms folded
(`planimeter.flatness.folding`). (Jiang et al. 2019, arXiv 1912.02178, Appendix C.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from planimeter.estimate import Estimate
from planimeter.flatness.entry import entry
from planimeter.flatness.folding import folded
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.noise_scale import EPSILON, Progress, magnitude_noise_scale, noise_scale
from planimeter.landscape import LossLandscape


def pac_bayes_flatness(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The inverse variance of the noise that the weights stand, :math:`1/\sigma^2`
    (Jiang et al. 2019, `pac-bayes-flatness`).

    Arguments:
        landscape, drop, draws, tolerance, seed, progress: see `noise_scale`.

    Raises:
        InputError, NotApplicableError: see `noise_scale`.
    """
    sigma = noise_scale(
        landscape, drop=drop, draws=draws, tolerance=tolerance, seed=seed, progress=progress
    )
    return _of(sigma, lambda s: s**-2)


def magnitude_pac_bayes_flatness(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The inverse variance :math:`1/\sigma^2` of noise relative to each weight's magnitude
    (Jiang et al. 2019, `pac-bayes-mag-flatness`); see `magnitude_noise_scale`.

    Arguments:
        landscape, drop, draws, tolerance, seed, progress: see `noise_scale`.

    Raises:
        InputError, NotApplicableError: see `noise_scale`.
    """
    sigma = magnitude_noise_scale(
        landscape, drop=drop, draws=draws, tolerance=tolerance, seed=seed, progress=progress
    )
    return _of(sigma, lambda s: s**-2)


def pac_bayes_norm(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The norm over the noise, :math:`\|\theta\|^2 / (4\sigma^2)`: half the divergence
    :math:`KL(N(\theta, \sigma^2) \| N(0, \sigma^2))` (Jiang et al. 2019, `pac-bayes-orig`).

    The bound adds terms in the number of rows and the confidence alone and takes a root; those are
    left out.

    Arguments:
        landscape, drop, draws, tolerance, seed, progress: see `noise_scale`.

    Raises:
        InputError, NotApplicableError: see `noise_scale`.
    """
    sigma = noise_scale(
        landscape, drop=drop, draws=draws, tolerance=tolerance, seed=seed, progress=progress
    )
    square = float(folded(landscape).theta.square().sum())
    return _of(sigma, lambda s: square / (4 * s**2))


def magnitude_pac_bayes_norm(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""Half the divergence of magnitude-aware noise from the best isotropic prior around zero,

    .. math:: \tfrac14 \sum_i \log\frac{s_P^2}{s_i^2}, \qquad s_i = \sigma (|\theta_i| + \epsilon),
              \quad s_P^2 = \tfrac1P \sum_i (\theta_i^2 + s_i^2)

    (Jiang et al. 2019, `pac-bayes-mag-orig`, there with :math:`s_i^2 = \sigma^2 \theta_i^2 +
    \epsilon^2`). Terms in the number of rows and the confidence alone are left out.

    Arguments:
        landscape, drop, draws, tolerance, seed, progress: see `noise_scale`.

    Raises:
        InputError, NotApplicableError: see `noise_scale`.
    """
    sigma = magnitude_noise_scale(
        landscape, drop=drop, draws=draws, tolerance=tolerance, seed=seed, progress=progress
    )
    theta = folded(landscape).theta
    widths = theta.abs() + EPSILON

    def half_divergence(s: float) -> float:
        prior = float((theta.square() + (s * widths).square()).mean())
        return 0.5 * float((0.5 * math.log(prior) - (s * widths).log()).sum())

    return _of(sigma, half_divergence)


# -- private ----------------------------------------------------------------------------------


def _of(sigma: Estimate, function: Callable[[float], float]) -> Estimate:
    """A function of sigma; its slope by a central difference in log sigma."""
    step = 1e-4
    up, down = (function(sigma.value * math.exp(h)) for h in (step, -step))
    slope = abs(up - down) / (2 * step)
    stderr = slope * sigma.stderr / sigma.value
    return replace(sigma, value=function(sigma.value), stderr=stderr)


MEASURES: tuple[Measure, ...] = (
    entry(
        pac_bayes_flatness,
        "PAC-Bayes flatness",
        "1/σ²",
        "1/σ²",
        by_layer=True,
        draws=4,
        tolerance=0.2,
    ),
    entry(
        magnitude_pac_bayes_flatness,
        "magnitude-aware PAC-Bayes flatness",
        "1/σ'²",
        "1/σ², noise σ (|θ_i| + 0.001)",
        by_layer=True,
        draws=4,
        tolerance=0.2,
    ),
    entry(
        pac_bayes_norm,
        "PAC-Bayes norm",
        "‖θ‖²/4σ²",
        "‖θ‖² / (4 σ²)",
        by_layer=True,
        draws=4,
        tolerance=0.2,
    ),
    entry(
        magnitude_pac_bayes_norm,
        "magnitude-aware PAC-Bayes norm",
        "KL'/2",
        "1/4 Σ_i log(s_P²/s_i²), s_i = σ (|θ_i| + 0.001), s_P² = mean(θ² + s²)",
        by_layer=True,
        draws=4,
        tolerance=0.2,
    ),
)
