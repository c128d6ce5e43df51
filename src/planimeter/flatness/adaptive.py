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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from planimeter.curvature import top_eigenvalues, trace
from planimeter.curvature.stochastic import standard_error
from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.definition import Measure
from planimeter.landscape import LossLandscape
from planimeter.operators.batches import Batch

Progress = Callable[[int, int], None]
NORMS = ("l2", "linf")
TOGETHER = 16
"""Batches that climb side by side."""
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
    total = math.ceil(landscape.num_rows / m)
    ascents: list[Ascent] = []
    rows: list[int] = []
    for group in _groups(landscape, m, batches, seed):
        climb = partial(
            auto_pgd, landscape, theta=theta, scale=scale, norm=norm, radius=rho, steps=steps
        )
        try:
            ascents += climb(group)
        except RuntimeError:  # an operation has no rule for stacked networks, or memory is short
            if len(group) == 1:
                raise
            ascents += [one for batch in group for one in climb([batch])]
        rows += [len(targets) for _, targets in group]
        progress(len(rows), min(total, batches or total))
    rises = [ascent.best - ascent.start for ascent in ascents]
    weights = torch.tensor(rows, dtype=torch.float64) / sum(rows)
    values = torch.tensor(rises, dtype=torch.float64)
    error = 0.0
    if len(rises) < total:
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
    return Estimate(
        float(pairs.values[0]),
        0.0,
        f"Lanczos, residual {float(pairs.residuals[0]):.1e}",
        pairs.products,
        bool(pairs.converged[0]),
        seed,
    )


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
    batches: list[Batch],
    theta: Float[Tensor, " P"],
    scale: Float[Tensor, " P"],
    norm: str,
    radius: float,
    steps: int,
) -> list[Ascent]:
    r"""Auto-PGD on each of some batches over :math:`\{\theta + c z : \|z\|_p \le \rho\}`.

    Momentum 0.75, first step size :math:`2 \rho`; at checkpoints the step is halved, and the
    ascent goes back to its best point, when fewer than three quarters of the steps gained or
    neither step nor best point changed. Batches of the same size climb side by side.

    Source: Croce and Hein 2020, Algorithm 1.
    """
    evaluate = _Evaluation(landscape, batches, theta.to(landscape.dtype), scale.to(landscape.dtype))

    def uphill(slope: Float[Tensor, "b P"]) -> Float[Tensor, "b P"]:
        if norm == "linf":
            return slope.sign()
        return slope / slope.norm(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)

    def projected(z: Float[Tensor, "b P"]) -> Float[Tensor, "b P"]:
        if norm == "linf":
            return z.clamp_(-radius, radius)
        return z.mul_((radius / z.norm(dim=1, keepdim=True)).clamp_max(1.0))

    with landscape.mode():
        z = torch.zeros(len(batches), len(theta), dtype=landscape.dtype, device=landscape.device)
        start, slope = evaluate(z)
        best, best_z, best_slope, before = start, z, slope, z
        step = torch.full_like(start, 2 * radius)
        last_step, last_best, previous = torch.zeros_like(step), best, start
        gained, since, checkpoints = torch.zeros_like(start), 0, _checkpoints(steps)
        curve = [start]
        for k in range(steps):
            ahead = projected(z + step[:, None].to(z) * uphill(slope))
            # The first step has no momentum, since z is still where it was.
            new = ahead if k == 0 else projected(0.75 * ahead + 0.5 * z - 0.25 * before)
            before, z = z, new
            value, slope = evaluate(z)
            if not bool(torch.isfinite(value).all()):
                raise NotApplicableError(
                    f"the loss is not finite within radius {radius:g}: choose a smaller radius"
                )
            gained, previous, since = gained + (value > previous), value, since + 1
            better = value > best
            best = torch.where(better, value, best)
            if bool(better.all()):
                best_z, best_slope = z, slope
            elif bool(better.any()):
                best_z = torch.where(better[:, None], z, best_z)
                best_slope = torch.where(better[:, None], slope, best_slope)
            curve.append(best)
            if k + 1 in checkpoints:
                back = (gained < 0.75 * since) | ((last_step == step) & (last_best == best))
                last_step, last_best = step, best
                step = torch.where(back, step / 2, step)
                if bool(back.any()):
                    z, before = (torch.where(back[:, None], best_z, v) for v in (z, before))
                    slope = torch.where(back[:, None], best_slope, slope)
                previous = torch.where(back, best, previous)
                gained, since = torch.zeros_like(start), 0
    late = max(1, steps // 5)
    return [
        Ascent(c[0], c[-1], (c[-1] - c[-1 - late]) / (c[-1] - c[0]) if c[-1] > c[0] else 0.0, c[1:])
        for c in torch.stack(curve, dim=1).tolist()
    ]


class _Evaluation:
    """Losses and slopes by z of batches, each at its own point theta + c z."""

    def __init__(
        self,
        landscape: LossLandscape,
        batches: list[Batch],
        theta: Float[Tensor, " P"],
        scale: Float[Tensor, " P"],
    ) -> None:
        self.landscape, self.theta, self.scale = landscape, theta, scale
        self.batches = batches
        self.shapes = {name: value.shape for name, value in landscape.parameters.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.stack = _stacked(batches) if len(batches) > 1 else None

    def __call__(self, z: Float[Tensor, "b P"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b P"]]:
        points = torch.addcmul(self.theta, self.scale, z)
        if self.stack is not None:
            slope_of = torch.func.vmap(torch.func.grad_and_value(self._loss))
            slopes, values = slope_of(points, *self.stack)
        else:
            with torch.enable_grad():
                leaf = points[0].requires_grad_()
                value = self._loss(leaf, *self.batches[0])
                (slope,) = torch.autograd.grad(value, leaf)
            slopes, values = slope[None], value.detach()[None]
        return values.double(), slopes * self.scale

    def _loss(self, point: Float[Tensor, " P"], inputs: Any, targets: Tensor) -> Tensor:
        pieces = zip(self.shapes.items(), point.split(self.sizes), strict=True)
        parameters = {name: piece.view(shape) for (name, shape), piece in pieces}
        outputs = self.landscape.forward(parameters, inputs)
        return self.landscape.loss_function(outputs, targets)


def _stacked(batches: list[Batch]) -> Any:
    """Batches of one size as one, along a new first dimension."""
    leaves, layouts = zip(*(tree_flatten(batch) for batch in batches), strict=True)
    tensors = [torch.stack(list(parts)) for parts in zip(*leaves, strict=True)]
    return tree_unflatten(tensors, layouts[0])


def _groups(landscape: LossLandscape, m: int, most: int | None, seed: int) -> Iterator[list[Batch]]:
    """Shuffled batches, those of one size together where that is faster: not for convolutions."""
    convolves = any(
        isinstance(module, torch.nn.modules.conv._ConvNd) for module in landscape.model.modules()
    )
    together = 1 if convolves else TOGETHER
    group: list[Batch] = []
    batches = landscape.minibatches(m, torch.Generator().manual_seed(seed))
    for batch in islice(batches, most):
        if group and (len(group) == together or len(group[0][1]) != len(batch[1])):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


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
            {"probes": 16},
            by_layer=True,
        ),
    )
)
