r"""Keskar sharpness: how far the loss can rise in a small box around the minimum.

.. math:: \max_{\theta' \in C_\zeta} \frac{L(\theta') - L(\theta)}{1 + L(\theta)} \times 100,
          \qquad C_\zeta = \{\theta' : |\theta'_i - \theta_i| \le \zeta (|\theta_i| + 1)\},

or, in a random subspace, :math:`\theta' = \theta + A z` with A of shape (P, q) and
:math:`|z_j| \le \zeta (|(A^+ \theta)_j| + 1)`. (Keskar et al. 2016; zhang2021, Definition 2.1.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import scipy.optimize
import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.ascents import (
    AGREE,
    SETTLED,
    Ball,
    Climb,
    Evaluate,
    ascend,
    directions_for,
    starts,
)
from planimeter.flatness.at_points import losses_at, output_directions
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape
from planimeter.printing import short_repr

METHODS = ("sign", "sgd", "lbfgs")
_UNIT = Ball("linf", 1.0)
_CHECKING = {"steps": 5, "restarts": 5}
"""Of the ascents by which "sgd" is checked."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class KeskarSharpness:
    """A sharpness with everything its value depends on.

    Arguments:
        value: sharpness, in percent, of the best point found: a lower bound of the maximum.
        residual: what the ascents had still to gain, as a part of `value`: what their last fifth
            gave ("sign"), their last tenth ("sgd"), or what the slope promised at the end
            ("lbfgs").
        gap: the part of `value` by which the better half of the last ascents stayed below the best;
            of "sgd", by which ascents along the signs of the gradient from several starts went
            above it. Infinite where there was one start, or where those met a loss that is not
            finite.
        converged: whether `residual` is at most 0.01, `gap` at most 0.02 and any rise was found.
        loss: L(theta), at the centre of the box.
        max_loss: the largest full-batch loss found inside the box.
        curve: best sharpness so far, after each epoch or full-batch step.
        method, zeta, subspace, seed: where and how the maximum was looked for.
        settings: those that the method has besides, by name.
    """

    value: float
    residual: float
    gap: float
    converged: bool
    loss: float
    max_loss: float
    curve: tuple[float, ...]
    method: str
    zeta: float
    subspace: int | None
    seed: int
    settings: dict[str, float]

    def __repr__(self) -> str:
        return short_repr(self)

    def as_estimate(self) -> Estimate:
        """The value as an `Estimate` (deterministic given the seed, so without error)."""
        names = {"sign": "projected sign-gradient", "sgd": "projected SGD", "lbfgs": "L-BFGS-B"}
        where = f"subspace of {self.subspace}, " if self.subspace else ""
        more = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in self.settings.items())
        method = (
            f"{names[self.method]}, {where}zeta {self.zeta:g}, {more}, seed {self.seed}; "
            f"loss {self.loss:.6g}, residual {self.residual:.1e}, between starts {self.gap:.1e}"
        )
        return Estimate(self.value, 0.0, method, converged=self.converged, seed=self.seed)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self) | {"curve": list(self.curve)}


def keskar_sharpness(
    landscape: LossLandscape,
    *,
    method: str = "sign",
    zeta: float = 1e-4,
    subspace: int | None = None,
    steps: int = 8,
    restarts: int = 23,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    epochs: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> KeskarSharpness:
    r"""Keskar sharpness by one of three ascents; the largest full-batch loss seen is kept.

    At the centre the loss is L(theta) itself, so the value is never negative.

    Arguments:
        landscape: the loss whose rise is measured; use the training set without attack rows.
        method: "sign": full-batch steps along the sign of the gradient with momentum, from several
            starts (`planimeter.flatness.ascents`); "sgd": stochastic gradient ascent from the
            centre, projected to the box after every step, as in the paper's code, and then
            checked by a few ascents of "sign", which count for `converged` alone; "lbfgs":
            L-BFGS-B, the paper's reference, from the best quarter of the starts.
        zeta: relative half-width of the box.
        subspace: dimension q of a random subspace; None for the whole space.
        steps: full-batch steps of the ascents that go on to the end ("sign"), or iterations
            ("lbfgs").
        restarts: ascents besides the one along the gradient ("sign", "lbfgs").
        learning_rate, batch_size, epochs: of "sgd"; the defaults are zhang2021's for FCN/MNIST.
        seed: of everything random.
        progress: called with the epochs or steps done and their number.

    Raises:
        InputError: no such method, or a number that is not positive.
        NotApplicableError: the loss is not finite everywhere inside the box.

    Source: zhang2021, Definition 2.1 and Table 1; Keskar et al. 2016, Metric 2.1.
    """
    if method not in METHODS:
        raise InputError(f"no method {method!r}; there are {', '.join(METHODS)}")
    check_positive(
        zeta=zeta, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, steps=steps
    )
    if restarts < 0:
        raise InputError(f"restarts must be at least 0, got {restarts}")
    box = _Box(landscape, zeta, subspace, seed)
    settings: dict[str, float] = {"steps": steps, "restarts": restarts}
    if method == "sgd":
        curve = box.stochastic(learning_rate, batch_size, epochs, progress)
        residual, gap = late_rise(curve), gap_to_ascents(landscape, zeta, box.best, seed, subspace)
        settings = {"learning_rate": learning_rate, "batch": batch_size, "epochs": epochs}
    elif method == "sign":
        curve, residual, gap = box.sign_ascents(steps, restarts, progress)
    else:
        curve, residual, gap = box.quasi_newton(steps, restarts, progress)
    return sharpness_from_curve(
        curve,
        box.loss,
        box.best,
        residual=residual,
        gap=gap,
        method=method,
        zeta=zeta,
        subspace=subspace,
        seed=seed,
        settings=settings,
    )


def check_positive(**numbers: float) -> None:
    """Refuse the first that is not.

    Raises:
        InputError: there is one.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise InputError(f"{name} must be positive, got {number}")


def sharpness_from_curve(
    curve: list[float], loss: float, max_loss: float, residual: float, gap: float, **how: Any
) -> KeskarSharpness:
    """What an ascent has found.

    Arguments:
        curve, loss, max_loss, residual, gap: as of `KeskarSharpness`.
        how: the fields that say how it was looked for.
    """
    return KeskarSharpness(
        value=curve[-1],
        residual=residual,
        gap=gap,
        converged=curve[-1] > 0 and residual <= SETTLED and gap <= AGREE,
        loss=loss,
        max_loss=max_loss,
        curve=tuple(curve),
        **how,
    )


def late_rise(curve: list[float]) -> float:
    """The part of a curve's end that came in its last tenth."""
    before = curve[-1 - max(1, len(curve) // 10)] if len(curve) > 1 else 0.0
    return (curve[-1] - before) / curve[-1] if curve[-1] > 0 else 0.0


def gap_to_ascents(
    landscape: LossLandscape, zeta: float, best: float, seed: int, subspace: int | None = None
) -> float:
    """By which part of its rise a loss stays below what ascents of "sign" find in the same box.

    Arguments:
        best: the loss that was reached.
        landscape, zeta, subspace, seed: as of `keskar_sharpness`.
    """
    box = _Box(landscape, zeta, subspace, seed)
    try:
        box.sign_ascents(_CHECKING["steps"], _CHECKING["restarts"], lambda done, total: None)
    except NotApplicableError:
        return math.inf
    rise = best - box.loss
    return max(0.0, box.best - best) / rise if rise > 0 else 0.0


class _Box:
    """The box in coordinates z (of the parameters, or of a subspace), and the best loss seen."""

    def __init__(
        self, landscape: LossLandscape, zeta: float, subspace: int | None, seed: int
    ) -> None:
        self.landscape, self.zeta = landscape, zeta
        self.centre = landscape.theta
        self.generator = torch.Generator().manual_seed(seed)
        self.basis: Tensor | None = None
        coordinates = self.centre
        if subspace is not None:
            if not 1 <= subspace <= len(self.centre):
                raise InputError(
                    f"a subspace has 1 to {len(self.centre)} dimensions, not {subspace}"
                )
            shape = (len(self.centre), subspace)
            basis = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            self.basis = (basis / basis.norm(dim=0)).to(self.centre.device)
            coordinates = torch.linalg.lstsq(self.basis, self.centre[:, None]).solution[:, 0]
        self.width = zeta * (coordinates.abs() + 1)
        self.loss = self.best = landscape.loss()

    def point(self, z: Float[Tensor, " q"]) -> Float[Tensor, " P"]:
        return self.centre + (z if self.basis is None else self.basis @ z)

    def pulled(self, slope: Float[Tensor, " P"]) -> Float[Tensor, " q"]:
        return slope if self.basis is None else self.basis.T @ slope

    def clipped(self, z: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        return torch.clamp(z, -self.width, self.width)

    def sharpness(self) -> float:
        return 100 * (self.best - self.loss) / (1 + self.loss)

    def see(self, loss: float) -> float:
        self.best = max(self.best, loss)
        return loss

    def _outside(self, error: InputError) -> NotApplicableError:
        return NotApplicableError(
            f"inside the box of zeta {self.zeta:g} {error}: choose a smaller zeta"
        )

    def stochastic(
        self, learning_rate: float, batch_size: int, epochs: int, progress: Progress
    ) -> list[float]:
        """Stochastic ascent, the full-batch loss looked at after every epoch."""
        landscape, z, curve = self.landscape, torch.zeros_like(self.width), []
        try:
            for epoch in range(epochs):
                for batch in landscape.minibatches(batch_size, self.generator):
                    slope = landscape.batch_gradient(self.point(z), batch)
                    z = self.clipped(z + learning_rate * self.pulled(slope))
                self.see(landscape.at(self.point(z)).loss())
                curve.append(self.sharpness())
                progress(epoch + 1, epochs)
        except InputError as error:
            raise self._outside(error) from error
        return curve

    def sign_ascents(
        self, steps: int, restarts: int, progress: Progress
    ) -> tuple[list[float], float, float]:
        """Curve, residual and gap of ascents from the starts."""
        with self.landscape.mode():
            evaluate, z = self._from_starts(restarts)
            found = ascend(self._finite(evaluate), self.loss, z, _UNIT, steps, progress)
        self.best = max(self.best, found.best)
        curve = [100 * (best - self.loss) / (1 + self.loss) for best in found.curve]
        return curve, found.late, found.gap

    def _from_starts(self, restarts: int) -> tuple[Evaluate, Float[Tensor, "s q"]]:
        """Losses and slopes at points in units of the box, and the points to start from."""
        dtype, losses = self.landscape.dtype, losses_at(self.landscape)

        def evaluate(u: Float[Tensor, "s q"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s q"]]:
            z = u.double() * self.width
            points = self.centre + (z if self.basis is None else z @ self.basis.T)
            values, slopes = losses(points.to(dtype))
            return values.to(u.device), self._pulled_to_units(slopes).to(u)

        _, (slope,) = evaluate(torch.zeros_like(self.width, dtype=dtype)[None])
        count = directions_for(1 + restarts)
        turned = output_directions(self.landscape, None, count, self.generator)
        turned = self._pulled_to_units(turned).to(slope)
        return evaluate, starts(_UNIT, slope, turned, 1 + restarts, self.generator)

    def _pulled_to_units(self, slopes: Float[Tensor, "s P"]) -> Float[Tensor, "s q"]:
        slopes = slopes.double()
        return self.width * (slopes if self.basis is None else slopes @ self.basis)

    def _finite(self, evaluate: Evaluate) -> Evaluate:
        """The same with words of the box where the loss overflows."""

        def checked(u: Float[Tensor, "s q"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s q"]]:
            try:
                values, slopes = evaluate(u)
            except InputError as error:
                raise self._outside(error) from error
            bad = values[~torch.isfinite(values)]
            if len(bad):
                raise self._outside(InputError(f"the loss is {float(bad[0])}"))
            return values, slopes

        return checked

    def quasi_newton(
        self, steps: int, restarts: int, progress: Progress
    ) -> tuple[list[float], float, float]:
        r"""L-BFGS-B from the quarter of the starts that is highest after a step; curve,
        residual and gap.

        Coordinates u are units of the box, and the loss is measured in what its slope g at the
        centre promises a coordinate, :math:`\frac1q \sum_i |g_i|`: the method's first step, along
        the gradient itself, is then of the size of the box. What is still to be gained at u is at
        most :math:`\sum_i |g_i| - g \cdot u` to first order.
        """
        with self.landscape.mode():
            plain, points = self._from_starts(restarts)
            evaluate = self._finite(plain)
            _, (slope,) = evaluate(torch.zeros_like(points[:1]))
            unit = float(slope.abs().mean()) or 1.0
            climb = Climb(evaluate, points, _UNIT)
            climb.step()
            climb.keep(max(2, -(-len(points) // 4)))
            curve: list[float] = [self._seen(climb.highest)]
            total = steps * len(climb.best)

            def descent(u: Any) -> tuple[float, Any]:
                (value,), (slope,) = evaluate(torch.as_tensor(u).to(points)[None])
                self._seen(float(value))
                rise = (float(value) - self.loss) / unit
                return -rise, (-slope.double() / unit).cpu().numpy()

            def note(u: Any) -> None:
                curve.append(self.sharpness())
                progress(min(len(curve), total), total)

            ends: list[tuple[float, float]] = []
            for point in climb.best_z:
                end = scipy.optimize.minimize(
                    descent,
                    point.double().cpu().numpy(),
                    jac=True,
                    method="L-BFGS-B",
                    bounds=[(-1.0, 1.0)] * len(point),
                    callback=note,
                    options={"maxiter": steps, "ftol": 1e-12, "gtol": 1e-12},
                )
                promised = float(abs(end.jac).sum() + end.jac @ end.x)
                ends.append((-float(end.fun), promised))
        progress(total, total)
        curve.append(self.sharpness())
        ends.sort(reverse=True)
        rise, promised = ends[0]
        if rise <= 0:
            return curve, 0.0, 0.0
        half = max(2, -(-len(ends) // 2))
        gap = (rise - ends[half - 1][0]) / rise if len(ends) > 1 else math.inf
        return curve, promised / rise, gap

    def _seen(self, loss: float) -> float:
        self.see(loss)
        return self.sharpness()


def _estimate(landscape: LossLandscape, **settings: Any) -> Estimate:
    return keskar_sharpness(landscape, **settings).as_estimate()


MEASURES = (
    Measure(
        "keskar_sharpness",
        "Keskar sharpness (%)",
        "sharpness",
        "max over the box |θ'-θ| ≤ ζ(|θ|+1) of 100 (L(θ') - L(θ)) / (1 + L(θ))",
        "Keskar et al. 2016; zhang2021 Definition 2.1",
        "sharpness",
        frozenset(),
        _estimate,
        keskar_sharpness,
        {"steps": 3, "restarts": 2},
        by_layer=True,
    ),
)
