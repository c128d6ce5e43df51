r"""The largest loss in a ball around a point, climbed to from several starts side by side.

.. math:: \max_{\|z\|_p \le \rho} L(\theta + c \odot z), \qquad p = 2, \infty.

A loss has several maxima in a ball, and the gradient at the centre leads to whichever its few
badly fitted rows pull towards. Other starts are what changes the outputs h most,

.. math:: z = \pm \rho\, \mathrm{steepest}(c \odot J^T u), \qquad J = \partial h / \partial \theta,
          \quad u \sim N(0, I),

directions of covariance :math:`J^T J`, and so mostly along the top eigenvectors of the Gauss-Newton
matrix; and, because some maxima are out of sight from the centre, corners of the box (random points
of the sphere). All starts climb by Auto-PGD. How high a start lies says nothing, one step much:
then the lower half is given up, and after three steps the lower half of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import NotApplicableError

AGREE = 0.02
"""Ascents have found the same maximum when their rises differ by less than this part."""
SETTLED = 0.01
"""An ascent has arrived when its last fifth gave less than this part of its rise."""
HALVED_AFTER = (1, 3)
"""Steps after which the lower half of the ascents is given up."""

Evaluate = Callable[[Float[Tensor, "s q"]], tuple[Float[Tensor, " s"], Float[Tensor, "s q"]]]
"""Points z to the losses there, float64, and the slopes by z."""


@dataclass(frozen=True)
class Ball:
    r"""The points :math:`\|z\|_p \le \rho`.

    Arguments:
        norm: "l2" or "linf".
        radius: :math:`\rho`.
    """

    norm: str
    radius: float

    def project(self, z: Float[Tensor, "s q"]) -> Float[Tensor, "s q"]:
        """The nearest points of the ball, in place."""
        if self.norm == "linf":
            return z.clamp_(-self.radius, self.radius)
        return z.mul_((self.radius / z.norm(dim=1, keepdim=True)).clamp_max(1.0))

    def steepest(self, slopes: Float[Tensor, "s q"]) -> Float[Tensor, "s q"]:
        """The points of the ball in which linear functions of these slopes are largest."""
        if self.norm == "linf":
            return self.radius * slopes.sign()
        # In units of the largest: squares of slopes need not be within the range of the dtype.
        tiny = torch.finfo(slopes.dtype).tiny
        slopes = slopes / slopes.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        return slopes * (self.radius / slopes.norm(dim=1, keepdim=True).clamp_min(1.0))


@dataclass(frozen=True)
class Ascents:
    """What several ascents of one loss found.

    Arguments:
        start: the loss at the centre.
        best: the largest loss found.
        curve: the largest loss so far, at the starts and after every step.
        gap: the part of the rise by which the better half (two at least) of the ascents that went
            on to the end stayed below the best at most; infinite where there was but one.
        late: the part of the rise that came in the last fifth of the steps.
    """

    start: float
    best: float
    curve: tuple[float, ...]
    gap: float
    late: float

    @property
    def rise(self) -> float:
        """From the centre to the best point."""
        return self.best - self.start


def starts(
    ball: Ball,
    slope: Float[Tensor, " q"],
    outputs: Float[Tensor, "k q"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "s q"]:
    """Points of the ball to start from: up the gradient, along and against output directions, and
    random corners.

    Arguments:
        ball: where.
        slope: of the loss at the centre.
        outputs: slopes of combinations of outputs, `directions_for(count)` of them.
        count: how many.
        generator: of the corners.
    """
    both = torch.stack([ball.steepest(outputs), -ball.steepest(outputs)], 1).flatten(0, 1)
    blind = torch.randn(max(0, count - 1 - len(both)), len(slope), generator=generator)
    return torch.cat([ball.steepest(slope[None]), both, ball.steepest(blind.to(slope))])[:count]


def directions_for(count: int) -> int:
    """Output directions that `starts` needs for so many points: two thirds of all but the first
    are along or against one."""
    return math.ceil((count - 1) / 3)


def ascend(
    evaluate: Evaluate,
    centre: float,
    z: Float[Tensor, "s q"],
    ball: Ball,
    steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ascents:
    r"""Auto-PGD from several starts, of which a quarter (two at least) goes on to the end.

    Momentum 0.75, first step size :math:`2 \rho`; at checkpoints a step is halved, and the ascent
    goes back to its best point, when fewer than three quarters of the steps gained or neither step
    nor best point changed. A point's loss comes with the slope of the next step, so s starts cost
    about :math:`3 s + (\mathrm{steps} - 3)\, s / 4` gradients.

    Arguments:
        evaluate: losses and slopes at several points.
        centre: the loss at z = 0.
        z: the starts, in the ball.
        ball, steps: where, and how many steps for those that go on.
        progress: called with the steps done and their number.

    Raises:
        NotApplicableError: a loss is not finite.

    Source: Croce and Hein 2020, Algorithm 1.
    """
    kept = {after: max(2, -(-len(z) // 2**i)) for i, after in enumerate(HALVED_AFTER, start=1)}
    climb = Climb(evaluate, z, ball)
    curve = [max(centre, climb.highest)]
    checkpoints = checkpoint_steps(steps)
    for k in range(steps):
        climb.keep(kept.get(k, len(z)))
        climb.step()
        curve.append(max(centre, climb.highest))
        if k + 1 in checkpoints:
            climb.check()
        progress(k + 1, steps)
    rises = climb.best.sort(descending=True).values - centre
    rise, half = curve[-1] - centre, max(2, -(-len(rises) // 2))
    gap = math.inf if len(rises) < 2 else 0.0
    late = 0.0
    if rise > 0:
        gap = gap if len(rises) < 2 else (rise - float(rises[half - 1])) / rise
        late = (curve[-1] - curve[-1 - max(1, steps // 5)]) / rise
    return Ascents(centre, curve[-1], tuple(curve), gap, late)


class Climb:
    """Auto-PGD of several points; every tensor has one row or number a point."""

    def __init__(self, evaluate: Evaluate, z: Float[Tensor, "s q"], ball: Ball) -> None:
        self.evaluate, self.ball, self.z, self.first = evaluate, ball, z, True
        self.value, slope = self._at(z)
        self.up = ball.steepest(slope)
        self.before = self.best_z = z
        self.best, self.best_up = self.value, self.up
        self.size = torch.full_like(self.value, 2.0)
        self.last_size, self.last_best = torch.zeros_like(self.size), self.best
        self.gained, self.taken = torch.zeros_like(self.size), 0
        self.highest = float(self.best.max())

    def _at(self, z: Float[Tensor, "s q"]) -> tuple[Float[Tensor, " s"], Float[Tensor, "s q"]]:
        value, slope = self.evaluate(z)
        if not bool(torch.isfinite(value).all()):
            raise NotApplicableError("the loss is not finite everywhere in it")
        return value, slope

    def keep(self, count: int) -> None:
        """Give up all but the highest."""
        if count >= len(self.best):
            return
        rows = self.best.argsort(descending=True)[:count]
        for name in (
            "z", "value", "up", "before", "best", "best_z", "best_up", "size", "last_size",
            "last_best", "gained",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[rows])

    def step(self) -> None:
        """One step of every ascent, with momentum from the second on."""
        ahead = self.z + self.size[:, None].to(self.z) * self.up
        ahead = self.ball.project(ahead)
        if not self.first:
            ahead = self.ball.project(0.75 * ahead + 0.5 * self.z - 0.25 * self.before)
        self.before, self.z, self.first = self.z, ahead, False
        previous, (self.value, slope) = self.value, self._at(ahead)
        self.up = self.ball.steepest(slope)
        self.gained, self.taken = self.gained + (self.value > previous), self.taken + 1
        self._record(self.value > self.best)
        self.highest = max(self.highest, float(self.best.max()))

    def _record(self, better: Tensor) -> None:
        rows = better[:, None]
        self.best = torch.where(better, self.value, self.best)
        self.best_z = torch.where(rows, self.z, self.best_z)
        self.best_up = torch.where(rows, self.up, self.best_up)

    def check(self) -> None:
        """At a checkpoint: half the step, from the best point, where there was little gain."""
        still = (self.last_size == self.size) & (self.last_best == self.best)
        back = (self.gained < 0.75 * self.taken) | still
        self.last_size, self.last_best = self.size, self.best
        self.size = torch.where(back, self.size / 2, self.size)
        rows = back[:, None]
        self.before = torch.where(rows, self.best_z, self.before)
        self.z = torch.where(rows, self.best_z, self.z)
        self.up = torch.where(rows, self.best_up, self.up)
        self.value = torch.where(back, self.best, self.value)
        self.gained, self.taken = torch.zeros_like(self.gained), 0


def checkpoint_steps(steps: int) -> set[int]:
    """The steps after which `Climb.check` is due, ever closer (Croce and Hein 2020, Section 4)."""
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    return {math.ceil(place * steps) for place in places[1:]}
