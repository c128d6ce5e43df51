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
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature import top_eigenvalues, trace
from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate, standard_error
from planimeter.flatness.definition import Measure
from planimeter.landscape import LossLandscape
from planimeter.operators.batches import Batch

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
    steps: int = 20,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The rise of the loss in the worst direction, batch by batch, by Auto-PGD.

    Every batch's maximum is a lower bound of the true one; the point with the largest loss counts.

    Arguments:
        adaptive: :math:`c = |\theta|` instead of 1.
        norm: "l2" or "linf", of :math:`\delta / c`.
        radius: :math:`\rho > 0`; None for `RADII`.
        m: rows a batch (m-sharpness).
        steps: of Auto-PGD.
        batches: how many of the shuffled batches; None for all. With fewer, the error is that of
            their mean.
        seed: of the shuffling.
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
    theta = landscape.theta
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    total = _number_of_batches(landscape, m)
    ascents: list[Ascent] = []
    rows: list[float] = []
    shuffled = landscape.minibatches(m, torch.Generator().manual_seed(seed))
    counted = (batch for batch in shuffled if landscape.function.weight(batch))
    for batch in islice(counted, batches):
        ascents.append(auto_pgd(landscape, batch, theta, scale, norm, rho, steps))
        rows.append(landscape.function.weight(batch))
        progress(len(rows), min(total, batches or total))
    rises = [ascent.best - ascent.start for ascent in ascents]
    weights = torch.tensor(rows, dtype=torch.float64) / sum(rows)
    values = torch.tensor(rises, dtype=torch.float64)
    error = 0.0
    if len(rises) < total and next(counted, None) is not None:
        error = standard_error(values) if len(rises) > 1 else math.nan
    settled = max(ascent.late for ascent in ascents)
    kind = "adaptive" if adaptive else "standard"
    return Estimate(
        float(weights @ values),
        error,
        f"Auto-PGD, {kind} {norm}, radius {rho:g}, m {m}, {steps} steps, "
        f"{len(rises)} of {total} batches, residual {settled:.1e}",
        converged=settled < 0.05,
        seed=seed,
    )


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
        standard_error(samples),
        f"{kind}, radius {rho:g}, {draws} antithetic draws",
        seed=seed,
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


@dataclass(frozen=True)
class Ascent:
    """What an ascent of one batch's loss found.

    Arguments:
        start: the loss at the centre.
        best: the largest loss found.
        late: the part of the rise that came in the last fifth of the steps.
        curve: the best loss after every step.
    """

    start: float
    best: float
    late: float = 0.0
    curve: list[float] = field(default_factory=list)


def auto_pgd(
    landscape: LossLandscape,
    batch: Batch,
    theta: Float[Tensor, " P"],
    scale: Float[Tensor, " P"],
    norm: str,
    radius: float,
    steps: int,
) -> Ascent:
    r"""Auto-PGD on the loss of one batch over :math:`\{\theta + c z : \|z\|_p \le \rho\}`.

    Momentum 0.75, first step size :math:`2 \rho`; at checkpoints the step is halved, and the
    ascent goes back to its best point, when fewer than three quarters of the steps gained or
    neither step nor best point changed. A point's loss comes with the slope of the next step, so a
    step costs one gradient.

    Source: Croce and Hein 2020, Algorithm 1.
    """
    evaluate = _evaluation(landscape, batch, theta, scale, norm)
    project = _project_box if norm == "linf" else _project_ball
    with landscape.mode():
        z = torch.zeros(len(theta), dtype=landscape.dtype, device=landscape.device)
        start, up = evaluate(z)
        best, best_z, best_up, before = start, z, up, z
        step, last_step, last_best, previous = 2 * radius, 0.0, start, start
        gained, since, checkpoints = 0, 0, _checkpoints(steps)
        curve = [start]
        for k in range(steps):
            ahead = project(torch.add(z, up, alpha=step), radius)
            if k:  # the first step has no momentum, since z is still where it was
                ahead.mul_(0.75).add_(z, alpha=0.5).sub_(before, alpha=0.25)
                ahead = project(ahead, radius)
            before, z = z, ahead
            value, up = evaluate(z)
            if not math.isfinite(value):
                raise NotApplicableError(
                    f"the loss is not finite within radius {radius:g}: choose a smaller radius"
                )
            gained, previous, since = gained + (value > previous), value, since + 1
            if value > best:
                best, best_z, best_up = value, z, up
            curve.append(best)
            if k + 1 in checkpoints:
                back = gained < 0.75 * since or (last_step == step and last_best == best)
                last_step, last_best = step, best
                if back:
                    step /= 2
                    z = before = best_z
                    up, previous = best_up, best
                gained = since = 0
    late = max(1, steps // 5)
    rise = curve[-1] - start
    return Ascent(start, best, (best - curve[-1 - late]) / rise if rise > 0 else 0.0, curve[1:])


def _evaluation(
    landscape: LossLandscape,
    batch: Batch,
    theta: Float[Tensor, " P"],
    scale: Float[Tensor, " P"],
    norm: str,
) -> Callable[[Float[Tensor, " P"]], tuple[float, Float[Tensor, " P"]]]:
    """z to the loss at theta + c z and the steepest direction there, of norm 1."""
    inputs, targets = batch
    centre, c = theta.to(landscape.dtype), scale.to(landscape.dtype)
    sizes = [value.numel() for value in landscape.parameters.values()]

    def evaluate(z: Float[Tensor, " P"]) -> tuple[float, Float[Tensor, " P"]]:
        with torch.enable_grad():
            point = torch.addcmul(centre, c, z).requires_grad_()
            pieces = zip(landscape.parameters.items(), point.split(sizes), strict=True)
            parameters = {name: piece.view_as(p).to(p.dtype) for (name, p), piece in pieces}
            loss = landscape.function.loss(landscape.forward(parameters, inputs), targets)
            (slope,) = torch.autograd.grad(loss, point)
        if norm == "linf":  # the scale is no part of a sign
            return float(loss.detach()), slope.sign_()
        slope.mul_(c)
        return float(loss.detach()), slope.div_(
            slope.norm().clamp_min(torch.finfo(slope.dtype).tiny)
        )

    return evaluate


def _project_box(z: Float[Tensor, " P"], radius: float) -> Float[Tensor, " P"]:
    return z.clamp_(-radius, radius)


def _project_ball(z: Float[Tensor, " P"], radius: float) -> Float[Tensor, " P"]:
    return z.mul_((radius / z.norm()).clamp_max(1.0))


def _checkpoints(steps: int) -> set[int]:
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    return {math.ceil(place * steps) for place in places[1:]}


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
            {"batches": 4},
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
