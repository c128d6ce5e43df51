r"""How much Gaussian noise the weights stand before accuracy falls.

.. math:: \sigma = \text{the largest } s \text{ with } a(\theta) - E_{z \sim N(0, I)}\,
          a(\theta + s\, c \odot z) \le 0.1,

with a the accuracy on the data and c = 1, or :math:`c_i = |\theta_i| + \epsilon` in the
magnitude-aware form. Here :math:`\sigma` is a standard deviation everywhere, never a variance.
(Jiang et al. 2019, arXiv 1912.02178, Appendix C; Neyshabur et al. 2017, arXiv 1706.08947.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate, standard_error
from planimeter.flatness.folding import folded
from planimeter.flatness.margins import margins
from planimeter.flatness.shared import shared
from planimeter.landscape import LossLandscape

Progress = Callable[[int, int], None]
EPSILON = 1e-3
"""Added to magnitudes, so that weights of zero get noise too."""
REACH = 24
"""Doublings (and halvings) of the noise that are tried before giving up."""
SPAN = 0.25
"""Distance in log sigma, on either side, over which the slope of the drop is taken."""


def noise_scale(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The largest standard deviation of weight noise at which accuracy falls by `drop` at most.

    The same draws z serve at every noise level, so the mean drop D over them is one curve; noise is
    doubled or halved until D crosses `drop`, then bisected in log sigma, and interpolated in the
    last interval. The error is that of the mean over draws, by Student's t, through the slope:
    :math:`\mathrm{se}(\log\sigma) = \mathrm{se}(D) / (dD / d\log\sigma)`. Where D is not monotone,
    it is the crossing that the search meets. Noise goes to every trainable parameter of the network
    with its BatchNorms folded (`planimeter.flatness.folding`).

    Arguments:
        landscape: on the training set.
        drop: of the accuracy, between 0 and 1.
        draws: noise vectors, at least 2.
        tolerance: length in log sigma of the last interval.
        seed: of the noise.
        progress: called with the accuracies computed and about how many there will be.

    Raises:
        InputError: a setting is out of range.
        NotApplicableError: no noise makes accuracy fall that far, or the targets are not classes.
    """
    return _scale(landscape, False, drop, draws, tolerance, seed, progress)


def magnitude_noise_scale(
    landscape: LossLandscape,
    *,
    drop: float = 0.1,
    draws: int = 16,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""`noise_scale` for noise of standard deviation :math:`\sigma (|\theta_i| + 10^{-3})`.

    The paper has :math:`(\sigma^2 \theta_i^2 + \epsilon^2)^{1/2}`, where the second term stays when
    sigma falls, so that no sigma may do.

    Arguments:
        landscape, drop, draws, tolerance, seed, progress: see `noise_scale`.

    Raises:
        InputError, NotApplicableError: see `noise_scale`.
    """
    return _scale(landscape, True, drop, draws, tolerance, seed, progress)


# -- private ----------------------------------------------------------------------------------


@dataclass
class _Search:
    """The mean drop as a function of log sigma, with the same draws everywhere."""

    landscape: LossLandscape
    widths: Float[Tensor, " P"] | float
    draws: int
    seed: int
    progress: Progress
    steps: int  # noise levels that are expected
    known: dict[float, tuple[float, float]] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        self.theta, self.accuracy = self.landscape.theta, self.landscape.accuracy()

    def drop(self, log_sigma: float) -> tuple[float, float]:
        """The mean over draws and its standard error."""
        if log_sigma not in self.known:
            # The draws are made again each time: kept, they would take draws times P numbers.
            generator = torch.Generator(self.theta.device).manual_seed(self.seed)
            losses = []
            for _ in range(self.draws):
                noise = torch.empty_like(self.theta).normal_(generator=generator)
                theta = self.theta + math.exp(log_sigma) * self.widths * noise
                losses.append(self.accuracy - self.landscape.at(theta).accuracy())
                self.done += 1
                self.progress(self.done, max(self.done, self.draws * self.steps))
            drops = torch.tensor(losses, dtype=torch.float64)
            self.known[log_sigma] = float(drops.mean()), standard_error(drops)
        return self.known[log_sigma]

    def bracket(self, start: float, target: float) -> tuple[float, float]:
        """Two noise levels, a factor 2 apart, between which the drop passes the target."""
        step = math.log(2.0)
        here = start
        if self.drop(here)[0] <= target:
            for _ in range(REACH):
                here += step
                if self.drop(here)[0] > target:
                    return here - step, here
            worst = max(mean for mean, _ in self.known.values())
            raise NotApplicableError(
                f"accuracy {self.accuracy:.3g} falls by {worst:.3g} at most, however large the "
                f"noise: it cannot fall by {target:g}; pass a smaller drop, or train further"
            )
        for _ in range(2 * REACH):
            here -= step
            if self.drop(here)[0] <= target:
                return here, here + step
        raise NotApplicableError(
            f"accuracy falls by more than {target:g} even for noise {math.exp(here - start):.1e} "
            f"times as large as the weights"
        )


def _scale(
    landscape: LossLandscape,
    magnitudes: bool,
    drop: float,
    draws: int,
    tolerance: float,
    seed: int,
    progress: Progress,
) -> Estimate:
    """Sigma, searched for once for a landscape and settings."""
    if not 0 < drop < 1:
        raise InputError(f"drop must lie between 0 and 1, got {drop}")
    if draws < 2:
        raise InputError(f"an error needs at least 2 draws, got {draws}")
    if not tolerance > 0:
        raise InputError(f"tolerance must be positive, got {tolerance}")
    landscape = folded(landscape)
    margins(landscape)  # refuses targets that are no classes, of which there is no accuracy
    return shared(
        landscape,
        lambda: _searched(landscape, magnitudes, drop, draws, tolerance, seed, progress),
        "noise_scale", magnitudes, drop, draws, tolerance, seed,
    )  # fmt: skip


def _searched(
    landscape: LossLandscape,
    magnitudes: bool,
    drop: float,
    draws: int,
    tolerance: float,
    seed: int,
    progress: Progress,
) -> Estimate:
    theta = landscape.theta
    widths = theta.abs() + EPSILON if magnitudes else 1.0
    halvings = max(0, math.ceil(math.log2(math.log(2.0) / tolerance)))
    search = _Search(landscape, widths, draws, seed, progress, halvings + 6)
    if search.accuracy < drop:
        raise NotApplicableError(
            f"accuracy {search.accuracy:.3g} cannot fall by {drop:g}: pass a smaller drop, or "
            f"train further"
        )
    typical = 1.0 if magnitudes else float(theta.square().mean().sqrt()) or 1.0
    low, high = search.bracket(math.log(0.25 * typical), drop)
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if search.drop(middle)[0] <= drop else (low, middle)
    (below, low_error), (above, high_error) = search.drop(low), search.drop(high)
    part = (drop - below) / (above - below)
    root = low + part * (high - low)
    rise = search.drop(root + SPAN)[0] - search.drop(root - SPAN)[0]
    progress(search.done, search.done)
    slope = max(rise, 0.0) / (2 * SPAN)
    error = (1 - part) * low_error + part * high_error
    sigma = math.exp(root)
    stderr = sigma * error / slope if slope > 0 else math.nan
    method = (
        f"sigma {sigma:.4g} ± {stderr:.2g} at an accuracy drop of {drop:g}, {draws} common draws, "
        f"{len(search.known)} noise levels, accuracy {search.accuracy:.4g}"
    )
    return Estimate(sigma, stderr, method, seed=seed, converged=slope > 0, dof=draws - 1)
