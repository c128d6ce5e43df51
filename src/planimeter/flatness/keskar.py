r"""Keskar sharpness: how far the loss can rise in a small box around the minimum.

.. math:: \max_{\theta' \in C_\zeta} \frac{L(\theta') - L(\theta)}{1 + L(\theta)} \times 100,
          \qquad C_\zeta = \{\theta' : |\theta'_i - \theta_i| \le \zeta (|\theta_i| + 1)\}.

(Keskar et al. 2016; zhang2021, Definition 2.1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape


@dataclass(frozen=True)
class KeskarSharpness:
    """A sharpness with everything its value depends on.

    Arguments:
        value: sharpness, in percent, of the best point found: a lower bound of the maximum.
        residual: relative rise of the best loss gain over the last tenth of the epochs.
        converged: whether `residual` is at most 0.01 and any rise was found (at a point where
            every gradient vanishes exactly, ascent cannot start).
        loss: L(theta), at the centre of the box.
        max_loss: the largest full-batch loss found inside the box.
        curve: best sharpness so far, after each epoch.
        zeta, learning_rate, batch_size, epochs, seed: the settings of the maximiser.
    """

    value: float
    residual: float
    converged: bool
    loss: float
    max_loss: float
    curve: tuple[float, ...]
    zeta: float
    learning_rate: float
    batch_size: int
    epochs: int
    seed: int

    def as_estimate(self) -> Estimate:
        """The value as an `Estimate` (deterministic given the seed, so without error)."""
        method = (
            f"projected SGD, zeta {self.zeta:g}, learning rate {self.learning_rate:g}, batch "
            f"{self.batch_size}, {self.epochs} epochs, seed {self.seed}; loss {self.loss:.6g}, "
            f"residual {self.residual:.1e}"
        )
        return Estimate(self.value, 0.0, method, converged=self.converged)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self) | {"curve": list(self.curve)}


def keskar_sharpness(
    landscape: LossLandscape,
    *,
    zeta: float = 1e-4,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    epochs: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KeskarSharpness:
    r"""Keskar sharpness by stochastic gradient ascent, projected to the box after every step.

    The full-batch loss is evaluated after every epoch and its maximum kept; at the centre it is
    L(theta) itself, so the value is never negative.

    Arguments:
        landscape: the loss whose rise is measured; use the training set without attack rows.
        zeta: relative half-width of the box.
        learning_rate, batch_size, epochs: of the ascent; defaults are zhang2021's for FCN/MNIST.
        seed: of the shuffling.
        progress: called after each epoch with the epochs done and their number.

    Raises:
        InputError: `zeta`, `learning_rate`, `epochs` or `batch_size` is not positive.

    Source: zhang2021, Definition 2.1 and Table 1.
    """
    for name, number in (
        ("zeta", zeta),
        ("learning_rate", learning_rate),
        ("epochs", epochs),
        ("batch_size", batch_size),
    ):
        if not number > 0:
            raise InputError(f"{name} must be positive, got {number}")
    generator = torch.Generator().manual_seed(seed)
    centre = landscape.theta
    half_width = zeta * (centre.abs() + 1)
    low, high = centre - half_width, centre + half_width
    loss = best = landscape.loss()
    theta = centre.clone()
    curve = []
    for epoch in range(epochs):
        for batch in landscape.minibatches(batch_size, generator):
            step = learning_rate * landscape.batch_gradient(theta, batch)
            theta = torch.clamp(theta + step, low, high)
        best = max(best, landscape.at(theta).loss())
        curve.append(100 * (best - loss) / (1 + loss))
        progress(epoch + 1, epochs)
    before = curve[-1 - max(1, epochs // 10)] if epochs > 1 else 0.0
    residual = (curve[-1] - before) / curve[-1] if curve[-1] > 0 else 0.0
    return KeskarSharpness(
        value=curve[-1],
        residual=residual,
        converged=curve[-1] > 0 and residual <= 0.01,
        loss=loss,
        max_loss=best,
        curve=tuple(curve),
        zeta=zeta,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
    )
