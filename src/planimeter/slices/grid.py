r"""The loss on a line or a plane through :math:`\theta`, at given distances along directions.

.. math:: f(a) = L(\theta + a\, d), \qquad f(a, b) = L(\theta + a\, d_1 + b\, d_2).

Along eigenvectors :math:`v_i` of the Hessian the quadratic model
:math:`L(\theta) + \sum_i (g \cdot v_i\, t_i + \tfrac12 \lambda_i t_i^2)` is kept beside it:
where the two part, curvature at the point says nothing any more. (Li et al. 2018.)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.landscape import LossLandscape
from planimeter.landscape.accuracy import Predictions
from planimeter.printing import short_repr
from planimeter.products.batches import unflatten
from planimeter.slices.directions import Direction, eigenvector_directions, random_direction
from planimeter.slices.file import SliceFile

__all__ = [
    "Direction",
    "QuadraticModel",
    "Slice",
    "eigenvector_directions",
    "random_direction",
    "slice_1d",
    "slice_2d",
]

PARALLEL = 1e-6
"""Two directions whose cosine is this near to 1 or -1 span no plane."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class QuadraticModel:
    r"""The loss to second order, :math:`L + s \cdot t + \tfrac12 t^T C t` in the distances t.

    Arguments:
        loss: L(theta).
        slopes: s, the gradient times each direction.
        curvature: C, the Hessian between the directions.
    """

    loss: float
    slopes: tuple[float, ...]
    curvature: tuple[tuple[float, ...], ...]

    def __call__(self, *distances: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The model at distances along each direction, tensors of one shape."""
        t = torch.stack([d.double() for d in distances])
        c = torch.tensor(self.curvature, dtype=torch.float64)
        s = torch.tensor(self.slopes, dtype=torch.float64)
        linear = torch.einsum("i,i...->...", s, t)
        return self.loss + linear + torch.einsum("i...,ij,j...->...", t, c, t) / 2


@dataclass(frozen=True)
class Slice:
    """The loss on a line (n,) or a plane (n, m).

    Arguments:
        distances: along each direction, float64, as multiples of it.
        losses: (n,) or (n, m); inf and NaN where the network overflows, NaN where not `complete`.
        accuracies: fractions of the same shape; None where the targets are no classes.
        names: of the directions.
        loss: L(theta), at the distances 0 whether or not they are on the grid.
        accuracy: at theta; None as above.
        quadratic: the quadratic model along eigenvectors; None along other directions.
        seeds: of the directions; None for those without.
        points: grid points that were computed; fewer than there are when it was interrupted.
        settings: the landscape and its data, for records.
        seconds: wall time spent, that of earlier runs of a resumed grid included.
    """

    distances: tuple[Float[Tensor, " _"], ...]
    losses: Float[Tensor, " n *m"]
    accuracies: Float[Tensor, " n *m"] | None
    names: tuple[str, ...]
    loss: float
    accuracy: float | None
    quadratic: QuadraticModel | None
    seeds: tuple[int | None, ...]
    points: int
    settings: dict[str, Any]
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def complete(self) -> bool:
        """Whether every grid point was computed."""
        return self.points == self.losses.numel()

    @property
    def minimum(self) -> tuple[tuple[float, ...], float]:
        """Distances of the lowest finite loss, and that loss: of the grid points that were computed
        and theta, which need not be one of them."""
        finite = torch.where(torch.isfinite(self.losses), self.losses, torch.inf)
        flat = int(finite.argmin())
        lowest = float(finite.reshape(-1)[flat])
        if not lowest <= self.loss:
            return tuple(0.0 for _ in self.distances), self.loss
        index = torch.unravel_index(torch.tensor(flat), self.losses.shape)
        where = tuple(float(d[i]) for d, i in zip(self.distances, index, strict=True))
        return where, lowest

    @property
    def lowest_label(self) -> str:
        """What `minimum` may be called."""
        return "lowest" if self.complete else "lowest so far"

    def __str__(self) -> str:
        shape, (where, lowest) = "×".join(map(str, self.losses.shape)), self.minimum
        computed = self.losses.reshape(-1)[: self.points]
        bad = int((~torch.isfinite(computed)).sum())
        lines = [
            f"{shape} points along {' and '.join(self.names)}",
            f"loss {self.loss:.6g} at theta; {self.lowest_label} {lowest:.6g} at "
            f"{', '.join(f'{d:.4g}' for d in where)}",
        ]
        if bad:
            lines.append(f"{bad} losses are not finite")
        if not self.complete:
            lines.append(f"INCOMPLETE: {self.points} of {self.losses.numel()} points")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        model = self.quadratic
        return {
            "names": list(self.names),
            "distances": [d.tolist() for d in self.distances],
            "losses": self.losses.tolist(),
            "accuracies": None if self.accuracies is None else self.accuracies.tolist(),
            "loss": self.loss,
            "accuracy": self.accuracy,
            "quadratic": model
            and {
                "loss": model.loss,
                "slopes": list(model.slopes),
                "curvature": [list(row) for row in model.curvature],
            },
            "seeds": list(self.seeds),
            "points": self.points,
            "complete": self.complete,
            "settings": self.settings,
            "seconds": self.seconds,
        }


def slice_1d(
    landscape: LossLandscape,
    direction: Direction | Float[Tensor, " P"],
    distances: Sequence[float] | Float[Tensor, " n"],
    *,
    out: Path | str | None = None,
    progress: Progress = lambda done, total: None,
) -> Slice:
    r"""The loss along a line, :math:`f(a) = L(\theta + a\, d)`.

    Arguments:
        landscape: the loss, on all its data at every point; its theta is the origin.
        direction: d, a `Direction` or a vector (P,).
        distances: the a, at least one, finite, in any order.
        out: an .npz file that is written after every point, and picked up where it ends.
        progress: called after each point with the points done and their number.

    Returns:
        The slice. Sums over the data are float64, the network runs in its own dtype. Losses that
        are not finite are kept. Ctrl-C ends it early: what was done is returned, `complete` False.

    Raises:
        InputError: the direction is zero, not finite or of another size, a distance is not finite,
            or `out` is unreadable or holds another slice.

    Source: Goodfellow, Vinyals, Saxe 2015; Li et al. 2018, Section 3.
    """
    return _sliced(landscape, [direction], [distances], out, progress)


def slice_2d(
    landscape: LossLandscape,
    first: Direction | Float[Tensor, " P"],
    second: Direction | Float[Tensor, " P"],
    distances: Sequence[float] | Float[Tensor, " n"],
    second_distances: Sequence[float] | Float[Tensor, " m"] | None = None,
    *,
    out: Path | str | None = None,
    progress: Progress = lambda done, total: None,
) -> Slice:
    r"""The loss on a plane, :math:`f(a, b) = L(\theta + a\, d_1 + b\, d_2)`.

    Arguments:
        landscape: the loss, on all its data at every point; its theta is the origin.
        first, second: :math:`d_1` and :math:`d_2`, each a `Direction` or a vector (P,), not
            parallel; they need not be orthogonal.
        distances: the a (n,), finite.
        second_distances: the b (m,), finite; None for the same as the a.
        out: an .npz file that is written after every row (one a, all b), and picked up where it
            ends.
        progress: called after each point with the points done and their number.

    Returns:
        The slice, losses (n, m); otherwise as `slice_1d`.

    Raises:
        InputError: as `slice_1d`, or the directions are parallel.

    Source: Li et al. 2018, Section 3.
    """
    grid = [distances, distances if second_distances is None else second_distances]
    return _sliced(landscape, [first, second], grid, out, progress)


def _sliced(
    landscape: LossLandscape,
    given: Sequence[Direction | Tensor],
    grid: Sequence[Sequence[float] | Tensor],
    out: Path | str | None,
    progress: Progress,
) -> Slice:
    started = time.perf_counter()
    axes = [_checked_distances(distances) for distances in grid]
    directions = [_checked_direction(landscape, direction) for direction in given]
    if len(directions) == 2:
        _refuse_parallel(*directions)
    theta = landscape.theta
    counts = _predictions(landscape)
    loss, accuracy = _evaluated(landscape, theta, counts)
    settings = _settings(landscape, directions, counts is not None)
    shape = (len(axes[0]), len(axes[1]) if len(axes) == 2 else 1)
    losses = torch.full(shape, torch.nan, dtype=torch.float64)
    accuracies = losses.clone()
    rows, earlier = 0, 0.0
    file = None
    if out is not None:
        file = SliceFile(Path(out), settings, axes, [d.vector for d in directions], loss)
        rows, earlier = file.resume(losses, accuracies)
    points = rows * shape[1]
    model = _quadratic(landscape, directions, loss)
    seconds = earlier
    try:
        for i in range(rows, shape[0]):
            start = theta + float(axes[0][i]) * directions[0].vector
            for j in range(shape[1]):
                point = start
                if len(axes) == 2:
                    point = start + float(axes[1][j]) * directions[1].vector
                losses[i, j], accuracies[i, j] = _evaluated(landscape, point, counts)
                points += 1
                progress(points, losses.numel())
            seconds = earlier + time.perf_counter() - started
            if file is not None:
                file.save(losses, accuracies, i + 1, seconds)
    except KeyboardInterrupt:
        if file is not None:  # the interrupt may have come while the last row was written
            file.save(losses, accuracies, points // shape[1], seconds)
    kept = tuple(len(axis) for axis in axes)
    return Slice(
        distances=tuple(axes),
        losses=losses.reshape(kept),
        accuracies=accuracies.reshape(kept) if counts is not None else None,
        names=tuple(d.name for d in directions),
        loss=loss,
        accuracy=accuracy if counts is not None else None,
        quadratic=model,
        seeds=tuple(d.seed for d in directions),
        points=points,
        settings=settings,
        seconds=earlier + time.perf_counter() - started,
    )


def _evaluated(
    landscape: LossLandscape, theta: Tensor, counts: Predictions | None
) -> tuple[float, float]:
    """Loss and accuracy from one pass; a loss that is not finite is a value like any other.

    `LossLandscape.loss` refuses those, because nothing can be measured there.
    """
    parameters = unflatten(theta, landscape.parameters)
    function = landscape.function

    def compute() -> tuple[float, float]:
        total, right, rows, labels = 0.0, 0.0, 0.0, 0
        for _, weight, (inputs, targets) in function.pieces():
            outputs = landscape.forward(parameters, inputs)
            value = function.loss(outputs, targets)
            if value.ndim != 0:
                raise InputError(
                    f"the loss must be a mean over the batch (a scalar), it returned shape "
                    f"{tuple(value.shape)}: use reduction='mean'"
                )
            total += weight * float(value.detach())
            rows += weight
            if counts is not None:
                hits = counts.hits(outputs, targets)
                right += int(hits.sum()) if not bool(outputs.isnan().any()) else torch.nan
                labels += hits.numel()
        return total / rows, right / labels if labels else torch.nan

    with torch.enable_grad(), landscape.mode():  # a loss may differentiate inside
        result: tuple[float, float] = function.surviving(compute)
    return result


def _predictions(landscape: LossLandscape) -> Predictions | None:
    """How classes are read off the outputs; None where the targets are none."""
    try:
        return landscape.predictions()
    except NotApplicableError:
        return None


def _quadratic(
    landscape: LossLandscape, directions: Sequence[Direction], loss: float
) -> QuadraticModel | None:
    """The model along eigenvectors, for which v'Hw = λ_w v'w whatever v is."""
    known = [d.curvature for d in directions if d.curvature is not None]
    if len(known) < len(directions):
        return None
    gradient = landscape.gradient()
    slopes = tuple(float(gradient @ d.vector) for d in directions)
    curvature = [[0.0] * len(known) for _ in known]
    for i, one in enumerate(directions):
        for j, two in enumerate(directions[: i + 1]):
            cross = known[i] * float(one.vector @ two.vector / one.vector.square().sum())
            curvature[i][j] = curvature[j][i] = known[i] if i == j else cross
    return QuadraticModel(loss, slopes, tuple(tuple(row) for row in curvature))


def _checked_distances(distances: Sequence[float] | Tensor) -> Float[Tensor, " n"]:
    axis = torch.as_tensor(distances, dtype=torch.float64).cpu()
    if axis.ndim != 1 or not len(axis):
        raise InputError(
            f"distances must be numbers in a row, at least one, got shape {tuple(axis.shape)}"
        )
    if not bool(torch.isfinite(axis).all()):
        raise InputError(f"distances must be finite, got {axis[~torch.isfinite(axis)][0].item()}")
    return axis


def _checked_direction(landscape: LossLandscape, given: Direction | Tensor) -> Direction:
    direction = given if isinstance(given, Direction) else Direction(given)
    vector = direction.vector.detach().to(landscape.device, torch.float64)
    if vector.shape != (landscape.num_parameters,):
        raise InputError(
            f"the direction {direction.name!r} has shape {tuple(vector.shape)}, the model "
            f"{landscape.num_parameters} parameters"
        )
    if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise InputError(f"the direction {direction.name!r} is zero, or not finite")
    return Direction(vector, direction.name, direction.seed, direction.curvature)


def _refuse_parallel(one: Direction, two: Direction) -> None:
    cosine = float(one.vector @ two.vector / (one.vector.norm() * two.vector.norm()))
    if abs(cosine) > 1 - PARALLEL:
        raise InputError(
            f"the directions {one.name!r} and {two.name!r} are parallel (cosine {cosine:.6g}): a "
            f"plane needs two that are not, with another seed for one"
        )


def _settings(
    landscape: LossLandscape, directions: Sequence[Direction], counts: bool
) -> dict[str, Any]:
    """What the slice is of; a file that was written under others is not picked up."""
    loss = landscape.loss_function
    return {
        "model": type(landscape.model).__name__,
        "parameters": landscape.num_parameters,
        "theta": hashlib.sha256(landscape.theta.cpu().numpy().tobytes()).hexdigest()[:16],
        "loss_function": getattr(loss, "__name__", type(loss).__name__),
        "rows": landscape.num_rows,
        "classes": counts,
        "directions": [d.name for d in directions],
        **landscape.record(),
    }
