r"""Keskar sharpness: how far the loss can rise in a small box around the minimum.

.. math:: \max_{\theta' \in C_\zeta} \frac{L(\theta') - L(\theta)}{1 + L(\theta)} \times 100,
          \qquad C_\zeta = \{\theta' : |\theta'_i - \theta_i| \le \zeta (|\theta_i| + 1)\},

or, in a random subspace, :math:`\theta' = \theta + A z` with A of shape (P, q) and
:math:`|z_j| \le \zeta (|(A^+ \theta)_j| + 1)`. (Keskar et al. 2016; zhang2021, Definition 2.1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import scipy.optimize
import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.definition import Measure
from planimeter.landscape import LossLandscape

METHODS = ("sign", "sgd", "lbfgs")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class KeskarSharpness:
    """A sharpness with everything its value depends on.

    Arguments:
        value: sharpness, in percent, of the best point found: a lower bound of the maximum.
        residual: relative rise of the best loss gain over the last tenth of the curve.
        converged: whether `residual` is at most 0.01 and any rise was found (at a point where
            every gradient vanishes exactly, ascent cannot start).
        loss: L(theta), at the centre of the box.
        max_loss: the largest full-batch loss found inside the box.
        curve: best sharpness so far, after each epoch or full-batch step.
        method, zeta, subspace, seed: where and how the maximum was looked for.
        settings: those that the method has besides, by name.
    """

    value: float
    residual: float
    converged: bool
    loss: float
    max_loss: float
    curve: tuple[float, ...]
    method: str
    zeta: float
    subspace: int | None
    seed: int
    settings: dict[str, float]

    def as_estimate(self) -> Estimate:
        """The value as an `Estimate` (deterministic given the seed, so without error)."""
        names = {"sign": "projected sign-gradient", "sgd": "projected SGD", "lbfgs": "L-BFGS-B"}
        where = f"subspace of {self.subspace}, " if self.subspace else ""
        more = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in self.settings.items())
        method = (
            f"{names[self.method]}, {where}zeta {self.zeta:g}, {more}, seed {self.seed}; "
            f"loss {self.loss:.6g}, residual {self.residual:.1e}"
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
    steps: int = 15,
    restarts: int = 2,
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
        method: "sign": full-batch steps of a fraction of the box along the sign of the gradient,
            halved from the best point where they do not gain; "sgd": stochastic gradient ascent,
            projected to the box after every step, as in the paper's code; "lbfgs": L-BFGS-B, the
            paper's reference.
        zeta: relative half-width of the box.
        subspace: dimension q of a random subspace; None for the whole space.
        steps: full-batch steps of each ascent ("sign"), or iterations ("lbfgs").
        restarts: further ascents from random corners ("sign").
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
    box = _Box(landscape, zeta, subspace, seed)
    settings: dict[str, float]
    if method == "sgd":
        curve = box.stochastic(learning_rate, batch_size, epochs, progress)
        settings = {"learning_rate": learning_rate, "batch": batch_size, "epochs": epochs}
    elif method == "sign":
        curve = box.sign_ascents(steps, restarts, progress)
        settings = {"steps": steps, "restarts": restarts}
    else:
        curve = box.quasi_newton(steps, progress)
        settings = {"steps": steps}
    return sharpness_from_curve(
        curve,
        box.loss,
        box.best,
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
    curve: list[float], loss: float, max_loss: float, **how: Any
) -> KeskarSharpness:
    """What an ascent has found, and how far it still rose at its end.

    Arguments:
        curve, loss, max_loss: as of `KeskarSharpness`.
        how: the fields that say how it was looked for.
    """
    before = curve[-1 - max(1, len(curve) // 10)] if len(curve) > 1 else 0.0
    residual = (curve[-1] - before) / curve[-1] if curve[-1] > 0 else 0.0
    return KeskarSharpness(
        value=curve[-1],
        residual=residual,
        converged=curve[-1] > 0 and residual <= 0.01,
        loss=loss,
        max_loss=max_loss,
        curve=tuple(curve),
        **how,
    )


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

    def loss_and_slope(self, z: Float[Tensor, " q"]) -> tuple[float, Float[Tensor, " q"]]:
        """The full-batch loss at z, which counts, and its slope by z."""
        try:
            loss, slope = self.landscape.at(self.point(z)).loss_and_gradient()
        except InputError as error:
            raise self._outside(error) from error
        return self.see(loss), self.pulled(slope)

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

    def sign_ascents(self, steps: int, restarts: int, progress: Progress) -> list[float]:
        """From the centre, and from random corners of the box.

        The first step is the whole box: where the loss is convex, going from corner to corner
        along the gradient's signs never loses.
        """
        curve: list[float] = []
        total = (1 + max(restarts, 0)) * steps
        for start in range(1 + max(restarts, 0)):
            z = torch.zeros_like(self.width)
            if start:
                signs = torch.randint(0, 2, z.shape, generator=self.generator).to(z)
                z = self.width * (2 * signs - 1)
            loss, slope = self.loss_and_slope(z)
            size = 2.0
            for _ in range(steps):
                ahead = self.clipped(z + size * self.width * slope.sign())
                new_loss, new_slope = self.loss_and_slope(ahead)
                curve.append(self.sharpness())
                progress(len(curve), total)
                if new_loss > loss:
                    stuck = bool(torch.equal(ahead, z))
                    z, loss, slope = ahead, new_loss, new_slope
                else:
                    stuck = False
                    size /= 2
                if stuck or size < 1e-3:
                    break
        return curve

    def quasi_newton(self, steps: int, progress: Progress) -> list[float]:
        """L-BFGS-B in units of the box, so that all coordinates are alike."""
        curve: list[float] = []
        scale = 1 / max(self.zeta, 1e-12)

        def descent(u: Any) -> tuple[float, Any]:
            loss, slope = self.loss_and_slope(self.width * torch.as_tensor(u).to(self.width))
            return -scale * loss, (-scale * self.width * slope).cpu().numpy()

        def note(u: Any) -> None:
            curve.append(self.sharpness())
            progress(len(curve), steps)

        count = len(self.width)
        scipy.optimize.minimize(
            descent,
            torch.zeros(count, dtype=torch.float64).numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-1.0, 1.0)] * count,
            callback=note,
            options={"maxiter": steps, "ftol": 1e-12, "gtol": 1e-12},
        )
        return curve or [self.sharpness()]


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
        {"steps": 10, "restarts": 0},
        by_layer=True,
    ),
)
