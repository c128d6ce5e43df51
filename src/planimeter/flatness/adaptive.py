r"""Adaptive and standard sharpness, on average and in the worst case.

With scales :math:`c_i = |\theta_i|` (adaptive) or 1 (standard), batches B of m rows and radius
:math:`\rho`,

.. math:: \frac1{\#B} \sum_B \max_{\|\delta / c\|_p \le \rho} L_B(\theta + \delta) - L_B(\theta),
          \qquad
          E_{\delta \sim N(0, \rho^2 \mathrm{diag}\, c^2)} L(\theta + \delta) - L(\theta),

and their limits for small radius, :math:`\lambda_{\max}(|\theta| H |\theta|)` and
:math:`\sum_i \theta_i^2 H_{ii}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature import top_eigenvalues, trace
from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate, skewed_standard_error, standard_error
from planimeter.flatness.ascents import (
    AGREE,
    SETTLED,
    Ascents,
    Ball,
    ascend,
    directions_for,
    starts,
)
from planimeter.flatness.at_points import losses_at, output_directions
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape
from planimeter.products.batches import Batch

Progress = Callable[[int, int], None]
NORMS = ("l2", "linf")
RADII = {("l2", True): 0.5, ("l2", False): 0.05, ("linf", True): 0.01, ("linf", False): 0.001}
"""Default radius by norm and whether adaptive: those of SAM and ASAM, and for linf of the size that
Andriushchenko et al. scan."""


def worst_case_sharpness(
    landscape: LossLandscape,
    *,
    adaptive: bool = True,
    norm: str = "linf",
    radius: float | None = None,
    m: int = 128,
    steps: int = 8,
    restarts: int = 9,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The rise of the loss in the worst direction, batch by batch, by Auto-PGD from several starts
    (`planimeter.flatness.ascents`).

    Every batch's maximum is a lower bound of the true one; the point with the largest loss counts.
    `converged` says that the better half of a batch's last ascents reached the same height, within
    2 % of the mean rise, and that their last fifth gave less than 1 %; of one start it is never
    said.

    Arguments:
        adaptive: :math:`c = |\theta|` instead of 1.
        norm: "l2" or "linf", of :math:`\delta / c`.
        radius: :math:`\rho > 0`; None for `RADII`.
        m: rows a batch (m-sharpness).
        steps: of Auto-PGD, for the quarter of the starts that goes on to the end.
        restarts: ascents besides the one along the gradient: along and against random combinations
            of the gradients of the outputs, and from random corners.
        batches: how many of the shuffled batches; None for all. With fewer, the error is that of
            their mean.
        seed: of the shuffling and of the starts.
        progress: called with the batches done and their number.

    Raises:
        InputError: an unknown norm, or a number that is not positive.
        NotApplicableError: the loss is not finite within the radius.

    Source: Andriushchenko et al. 2023; Auto-PGD: Croce and Hein 2020.
    """
    rho = _radius(norm, adaptive, radius)
    for name, number in (("m", m), ("steps", steps), ("batches", batches or 1)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    if restarts < 0:
        raise InputError(f"restarts must be at least 0, got {restarts}")
    theta = landscape.theta
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    total = _number_of_batches(landscape, m)
    ascents: list[Ascents] = []
    rows: list[float] = []
    ball, most = Ball(norm, rho), 0
    shuffled = landscape.minibatches(m, torch.Generator().manual_seed(seed))
    counted = (batch for batch in shuffled if landscape.function.weight(batch))
    for batch in islice(counted, batches):
        ascents.append(_ascents(landscape, batch, theta, scale, ball, steps, restarts, seed))
        rows.append(landscape.function.weight(batch))
        most = max(most, len(batch[1]))
        progress(len(rows), min(total, batches or total))
    weights = torch.tensor(rows, dtype=torch.float64) / sum(rows)
    values = torch.tensor([found.rise for found in ascents], dtype=torch.float64)
    value = float(weights @ values)
    error = 0.0
    partly = len(rows) < total and next(counted, None) is not None
    if partly:
        error = standard_error(values) if len(rows) > 1 else math.nan
    parts = weights * values / value if value > 0 else weights
    gap = sum(float(p) * found.gap for p, found in zip(parts, ascents, strict=True) if p > 0)
    late = sum(float(p) * found.late for p, found in zip(parts, ascents, strict=True))
    kind = "adaptive" if adaptive else "standard"
    return Estimate(
        value,
        error,
        f"Auto-PGD, {kind} {norm}, radius {rho:g}, m {most}, {1 + restarts} starts, "
        f"{steps} steps, {len(rows)} of {total} batches, residual {late:.1e}, between starts "
        f"{gap:.1e}",
        converged=value > 0 and gap <= AGREE and late <= SETTLED,
        seed=seed,
        dof=len(rows) - 1 if partly and len(rows) > 1 else None,
    )


def _ascents(
    landscape: LossLandscape,
    batch: Batch,
    theta: Float[Tensor, " P"],
    scale: Float[Tensor, " P"],
    ball: Ball,
    steps: int,
    restarts: int,
    seed: int,
) -> Ascents:
    r"""Of one batch's loss over :math:`\{\theta + c z: \|z\|_p \le \rho\}`."""
    centre, c = theta.to(landscape.dtype), scale.to(landscape.dtype)
    draws = torch.Generator().manual_seed(seed)
    with landscape.mode():
        losses = losses_at(landscape, batch)

        def evaluate(z: Float[Tensor, "s P"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s P"]]:
            values, slopes = losses(torch.addcmul(centre, c, z))
            return values.to(z.device), slopes.mul_(c)

        (start,), (slope,) = evaluate(torch.zeros_like(centre)[None])
        turned = output_directions(landscape, batch, directions_for(1 + restarts), draws)
        z = starts(ball, slope, turned.mul_(c), 1 + restarts, draws)
        try:
            return ascend(evaluate, float(start), z, ball, steps)
        except NotApplicableError as error:
            raise NotApplicableError(
                f"the loss is not finite within radius {ball.radius:g}: choose a smaller radius"
            ) from error


def _number_of_batches(landscape: LossLandscape, m: int) -> int:
    """Of one epoch: a loader keeps its own batches, whatever `m` is."""
    if landscape.data.tensors is not None:
        return math.ceil(landscape.num_rows / m)
    return sum(1 for _ in landscape.data)


def average_sharpness(
    landscape: LossLandscape,
    *,
    adaptive: bool = True,
    radius: float | None = None,
    draws: int = 20,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The mean rise of the loss under Gaussian noise in the parameters.

    Rises have a long upper tail where the noise is large: the error allows for it
    (`planimeter.estimate.skewed_standard_error`).

    Arguments:
        adaptive: deviations :math:`\rho |\theta_i|` instead of :math:`\rho`.
        radius: :math:`\rho > 0`; None for that of "linf".
        draws: independent noises, each in both signs, which takes out the gradient.
        seed: of the noise.
        progress: called with the draws done and their number.

    Raises:
        InputError: fewer than 2 draws, or a radius that is not positive.

    Source: Andriushchenko et al. 2023.
    """
    rho = _radius("linf", adaptive, radius)
    if draws < 2:
        raise InputError(f"an error needs at least 2 draws, got {draws}")
    theta, base = landscape.theta, landscape.loss()
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    generator = torch.Generator().manual_seed(seed)
    rises = []
    for draw in range(draws):
        noise = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta.device)
        step = rho * scale * noise
        both = [landscape.at(theta + sign * step).loss() for sign in (1.0, -1.0)]
        rises.append(sum(both) / 2 - base)
        progress(draw + 1, draws)
    samples = torch.tensor(rises, dtype=torch.float64)
    kind = "adaptive" if adaptive else "standard"
    return Estimate(
        float(samples.mean()),
        skewed_standard_error(samples),
        f"{kind}, radius {rho:g}, {draws} antithetic draws",
        seed=seed,
        dof=draws - 1,
    )


def adaptive_eigenvalue(
    landscape: LossLandscape,
    *,
    tolerance: float = 1e-3,
    max_products: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The limit of the worst case for small radius, :math:`\lambda_{\max}(|\theta| H |\theta|)`.

    Arguments:
        tolerance, max_products, seed: of the Lanczos search.

    Source: Kwon et al. 2021 (ASAM), Andriushchenko et al. 2023.
    """
    pairs = top_eigenvalues(
        landscape.hessian().scaled(landscape.theta.square()),
        1,
        tolerance=tolerance,
        max_products=max_products,
        multiplicities=False,
        seed=seed,
        progress=progress,
    )
    return pairs.first()


def adaptive_trace(
    landscape: LossLandscape,
    *,
    probes: int = 100,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The limit of the average for small radius, :math:`\sum_i \theta_i^2 H_{ii}`.

    Arguments:
        probes, tolerance, seed: of the trace (`planimeter.curvature.trace`).

    Source: Andriushchenko et al. 2023.
    """
    operator = landscape.hessian().scaled(landscape.theta.square())
    return trace(operator, probes=probes, tolerance=tolerance, seed=seed, progress=progress)


def _radius(norm: str, adaptive: bool, radius: float | None) -> float:
    if norm not in NORMS:
        raise InputError(f"no norm {norm!r}; there are {', '.join(NORMS)}")
    rho = RADII[norm, adaptive] if radius is None else radius
    if not rho > 0:
        raise InputError(f"radius must be positive, got {rho}")
    return rho


_ADAPTIVE = frozenset({"layer", "neuron"})
_WORST = "mean over batches of max_{{‖δ/c‖≤ρ}} L_B(θ+δ) - L_B(θ), c = {}"
_SOURCE = "Andriushchenko et al. 2023"

MEASURES = (
    tuple(
        Measure(
            f"{prefix}_sharpness" if not suffix else f"{prefix}_sharpness_{suffix}",
            f"{prefix} worst-case sharpness ({norm})",
            f"{'A' if adaptive else 'W'}_{norm}",
            _WORST.format("|θ|" if adaptive else "1"),
            f"{_SOURCE}; {'Kwon et al. 2021' if adaptive else 'Foret et al. 2021'}",
            "sharpness",
            _ADAPTIVE if adaptive else frozenset(),
            partial(worst_case_sharpness, adaptive=adaptive, norm=norm),
            worst_case_sharpness,
            {"batches": 4, "restarts": 3, "steps": 6},
            by_layer=True,
        )
        for prefix, adaptive in (("adaptive", True), ("standard", False))
        for norm, suffix in (("linf", ""), ("l2", "l2"))
    )
    + tuple(
        Measure(
            f"{prefix}_average_sharpness",
            f"{prefix} average sharpness",
            f"{'A' if adaptive else 'W'}_avg",
            f"E L(θ+δ) - L(θ), δ ~ N(0, ρ² {'θ²' if adaptive else 'I'})",
            f"{_SOURCE}",
            "sharpness",
            _ADAPTIVE if adaptive else frozenset(),
            partial(average_sharpness, adaptive=adaptive),
            average_sharpness,
            {"draws": 10},
            by_layer=True,
        )
        for prefix, adaptive in (("adaptive", True), ("standard", False))
    )
    + (
        Measure(
            "adaptive_eigenvalue",
            "λ_max of |θ|H|θ|",
            "λ(|θ|H|θ|)",
            "λ_max(|θ| H |θ|)",
            f"Kwon et al. 2021; {_SOURCE}",
            "sharpness",
            _ADAPTIVE,
            adaptive_eigenvalue,
            adaptive_eigenvalue,
            by_layer=True,
        ),
        Measure(
            "adaptive_trace",
            "trace of |θ|H|θ|",
            "Σθ²H",
            "Σ_i θ_i² H_ii",
            _SOURCE,
            "sharpness",
            _ADAPTIVE,
            adaptive_trace,
            adaptive_trace,
            {"probes": 8},
            by_layer=True,
        ),
    )
)
