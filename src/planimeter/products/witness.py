r"""Whether gradients and products are right, by differences that need one derivative less.

Two ways of differentiating check one another, but both inherit what a library has wrong. So the
gradient is held against differences of the loss, and a product against differences of gradients
(`planimeter.products.differences`),

.. math:: \frac{L(\theta + t v) - L(\theta - t v)}{2 t} = \nabla L(\theta) \cdot v, \qquad
          \frac{\nabla L(\theta + t v) - \nabla L(\theta - t v)}{2 t} = H v,

on a few rows, along one random direction that changes every parameter by a like part of its size,
near the point rather than at it: at zeros and other special values a second derivative may have
two sides. A difference that agrees, whatever its step, is enough. Where none does, there has to be
a *plateau*: two, one with a tenth of the step of the other, that agree with one another far better
than with what is doubted. A kink inside a step of length t changes the difference by its jump over
t, which makes no plateau, nor does rounding. Only plateaus along two directions are a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planimeter.errors import InputError
from planimeter.machine.memory import is_out_of_memory
from planimeter.products.agreement import SCALE
from planimeter.products.batches import Batch, BatchedLoss, Parameters, cut_rows
from planimeter.products.curvatures import Curvature, LinearMap
from planimeter.products.differences import (
    asking_for_float64,
    cut_off,
    gradient_at,
    moved,
    widened,
)

ROWS = 8
"""Rows that are looked at, a quarter of the first batch at most, from all over it."""
STEPS = (1e-8, 1e-9, 1e-7, 1e-6, 1e-5)
"""In the order in which they are tried: the first is so short that few kinks lie inside, and long
enough for five digits."""
TOLERANCE = 1e-3
"""A smaller relative difference in one parameter is let pass."""
NEGLIGIBLE = 1e-5
"""So is one that is this part of what the weightiest parameter contributes."""
PLATEAU = 10
"""So many times closer must two differences be to one another than to what they contradict."""
COARSE = 100
"""Both tolerances are so many times larger where a model is not in float64."""
NEAR = 1e-8
"""A step over which no loss changes, unless it jumps."""
FAR = (0.1, 1.0)
"""Steps that leave the neighbourhood of the point."""
ROUNDING = 100
"""So many times its rounding error may a number be wrong."""
COARSEST = 1e-6
"""With a larger rounding error than this inside, differences tell nothing."""
SETTLED = 1e-4
"""Differences with two steps may differ by this to stand in for a derivative."""
SETTLED_STEPS = (1e-6, 1e-7)
MOVED = 1e-3
"""How far the point is from the parameters, as a part of the size of each."""
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Sample:
    """A loss on few rows, a point in general position near the parameters, and a direction.

    Arguments:
        function: the loss.
        origin: the parameters.
        parameters: the point.
        directions: one tensor a parameter; a step of 1 is about as long as the parameter.
        scales: the typical entry of each direction.
        batch: the rows.
        seed: of point and direction.
        wide: whether all is in float64, though the model is not.
        value: the loss at the parameters; where it has a graph, none of these asked for one.
    """

    function: BatchedLoss
    origin: Parameters
    parameters: Parameters
    directions: list[Tensor]
    scales: list[float]
    batch: Batch
    seed: int
    wide: bool
    value: Tensor

    @property
    def epsilon(self) -> float:
        """The largest rounding error of the parameters' dtypes."""
        return max(torch.finfo(p.dtype).eps for p in self.parameters.values())

    def inside(self) -> AbstractContextManager[None]:
        """The context in which the model runs."""
        return asking_for_float64() if self.wide else nullcontext()


Samples = Callable[[int], Sample | None]
"""From the number of a direction to a sample with it."""
Way = Callable[[BatchedLoss, Parameters, Batch], LinearMap]
"""One of the ways to compute products with a curvature."""


def sample_of(
    function: BatchedLoss,
    parameters: Parameters,
    batch: Batch,
    seed: int = 0,
    *,
    whole: bool = False,
) -> Sample | None:
    """Few rows in float64 where the model runs so, else all rows, or its own dtype, or None.

    Arguments:
        whole: the rows belong together.
    """
    rows = len(batch[1])
    few = rows if whole else min(max(min(ROWS, rows // 4), 4), rows, function.rows or rows)
    narrow = any(p.dtype != torch.float64 for p in parameters.values())
    for wide in (True, False) if narrow else (False,):
        for count in (few, rows) if function.rows is None else (few,):
            # From all over the batch: rows may be sorted, and a fault may depend on their values.
            part = slice(0, rows // count * count, rows // count)
            taken = cut_rows(batch[0], part, rows), batch[1][part]
            try:
                return _sample(function, parameters, taken, seed, wide)
            except FAILURES as error:
                if is_out_of_memory(error):
                    raise
    return None


def jumps(sample: Sample) -> bool:
    """Whether the loss is another one right beside the parameters themselves, as where a whole
    number among them is rounded down."""
    if sample.epsilon > 1e-12:
        return False

    def change(step: float) -> float:
        beside = moved(sample.origin, sample.directions, step)
        near = float(sample.function.batch_loss(beside, sample.batch).detach())
        return abs(near - float(sample.value.detach()))

    size = abs(float(sample.value.detach()))
    with sample.inside(), suppress(InputError):
        for step in (NEAR, -NEAR):
            gap = change(step)
            if gap <= TOLERANCE * (size + gap) or _coarsest(sample) > 1e-12:
                continue
            rounding = ROUNDING * sample.epsilon * max(size, _reach(sample)[0])
            if change(step / 100) > max(gap / 2, rounding):
                return True
    return False


def verdict_on_gradient(samples: Samples) -> Literal["right", "wrong", "missing"]:
    """Whether the loss has the slope that its gradient says; in doubt it is right."""
    missing = False
    reach = cache(_reach)

    def compare(sample: Sample, step: float) -> Gaps:
        nonlocal missing
        (ahead, up), (behind, down) = (
            gradient_at(
                sample.function, moved(sample.parameters, sample.directions, s), sample.batch
            )
            for s in (step, -step)
        )
        missing = up is None
        slopes = [
            float(((one + two).double() * along.double()).sum()) / 2
            for one, two, along in zip(up or [], down or [], sample.directions, strict=False)
        ]
        gap = (ahead - behind) / (2 * step) - sum(slopes)
        size = max(abs(ahead), abs(behind))
        # A loss of exactly 0 still rounds, as the terms do of which it is made.
        size = size if step == STEPS[0] else max(size, reach(sample)[0])
        rounding = ROUNDING * sample.epsilon * size / step
        length = math.hypot(*slopes)
        return Gaps([torch.tensor(gap, dtype=torch.float64)], [length], [rounding])

    wrong = _is_contradicted(samples, compare)
    return "missing" if missing else "wrong" if wrong else "right"


def product_is_right(curvature: Curvature, way: Way, samples: Samples) -> bool:
    """Whether a way to compute products gives what differences give; in doubt yes."""
    reach = cache(_reach)

    @cache
    def product(seed: int, factor: float) -> list[Tensor]:
        sample = samples(seed)
        assert sample is not None
        linear = way(sample.function, sample.parameters, sample.batch)
        scaled = linear([factor * along for along in sample.directions])
        return [part.detach().double() / factor for part in scaled]

    def compare(sample: Sample, step: float) -> Gaps:
        given = sample.function, sample.parameters, sample.batch, sample.directions
        found = product(sample.seed, 1.0)
        other = [part.detach().double() for part in curvature.difference(*given, step)]
        pairs = list(zip(found, other, strict=True))
        sizes = [max(float(one.norm()), float(two.norm())) for one, two in pairs]
        most = max(size * scale for size, scale in zip(sizes, sample.scales, strict=True))
        floors = [NEGLIGIBLE * most / scale for scale in sample.scales]
        if step != STEPS[0]:
            # The derivative rounds, which shows as in `planimeter.products.agreement`; and so do
            # the gradients of which the difference is.
            again = zip(found, product(sample.seed, SCALE), strict=True)
            noise = [float((one - two).norm()) for one, two in again]
            slopes = [sample.epsilon / step * slope for slope in reach(sample)[1]]
            floors = [
                floor + ROUNDING * (own + slope)
                for floor, own, slope in zip(floors, noise, slopes, strict=True)
            ]
        return Gaps([two - one for one, two in pairs], sizes, floors)

    return not _is_contradicted(samples, compare)


def settles(curvature: Curvature, samples: Samples) -> bool:
    """Whether differences are the same for two steps: there is a second derivative, without kinks
    nearby."""
    sample = samples(0)
    if sample is None or sample.epsilon > 1e-12:
        return False
    given = sample.function, sample.parameters, sample.batch, sample.directions
    with sample.inside():
        one, two = (curvature.difference(*given, step) for step in SETTLED_STEPS)
    scaled = [
        (scale * float((a - b).norm()), scale * float(a.norm()))
        for a, b, scale in zip(one, two, sample.scales, strict=True)
    ]
    return max(gap for gap, _ in scaled) <= SETTLED * max(size for _, size in scaled)


@dataclass(frozen=True)
class Gaps:
    """How far a difference with one step is from a derivative, part by part.

    Arguments:
        gaps: the difference minus the derivative.
        sizes: what a tolerance is relative to.
        floors: what is let pass in any case.
    """

    gaps: list[Tensor]
    sizes: list[float]
    floors: list[float]


def _reach(sample: Sample) -> tuple[float, list[float]]:
    """The sizes that the loss and the parts of its gradient have far away."""
    loss, slopes = 0.0, [0.0] * len(sample.directions)
    for step in FAR:
        with suppress(InputError):  # where it is not finite
            far = moved(sample.parameters, sample.directions, step)
            value, gradient = gradient_at(sample.function, far, sample.batch)
            loss = max(loss, abs(value))
            norms = [float(part.norm()) for part in gradient or []] or slopes
            slopes = [max(pair) for pair in zip(slopes, norms, strict=True)]
    return loss, slopes


def _is_contradicted(samples: Samples, compare: Callable[[Sample, float], Gaps]) -> bool:
    """Whether differences contradict the same part along two directions."""
    both: set[int] | None = None
    for number in range(2):
        sample = samples(number)
        if sample is None:
            return False
        with sample.inside():
            steps, coarse = STEPS, 1
            series: dict[float, Gaps] = {}
            if sample.epsilon < 1e-12:
                series[steps[0]] = compare(sample, steps[0])
                if not _contradicted(list(series.values()), TOLERANCE):
                    return False
            # Where a model has float32 or less inside, that is what rounds.
            epsilon = max(sample.epsilon, _coarsest(sample))
            if epsilon > COARSEST:
                return False
            if epsilon > 1e-12:
                steps, coarse = tuple(part * epsilon ** (1 / 3) for part in (2, 1, 0.5)), COARSE
                series = {}
            for step in steps[len(series) :]:
                series[step] = compare(sample, step)
                if not _contradicted([series[step]], coarse * TOLERANCE):
                    return False
        ordered = [series[step] for step in sorted(series)]
        found = _contradicted(ordered, coarse * TOLERANCE)
        both = found if both is None else both & found
        if not both:
            return False
    return True


def _contradicted(series: list[Gaps], tolerance: float) -> set[int]:
    """The parts for which differences with one step, or a plateau of several, say otherwise."""
    found = set()
    for part in range(len(series[0].gaps)):
        pairs = list(pairwise(series)) or [(series[0], series[0])]
        for one, two in pairs:
            apart = float((one.gaps[part] - two.gaps[part]).norm())
            gap = min(float(one.gaps[part].norm()), float(two.gaps[part].norm()))
            allowed = max(each.sizes[part] * tolerance + each.floors[part] for each in (one, two))
            if gap > max(allowed, PLATEAU * apart):
                found.add(part)
    return found


def _sample(
    function: BatchedLoss, parameters: Parameters, batch: Batch, seed: int, wide: bool
) -> Sample:
    batch = cut_off(batch)
    if wide:
        parameters, batch = widened((parameters, batch))
    generator = torch.Generator().manual_seed(seed)
    sizes = [float(p.detach().double().square().mean() ** 0.5) for p in parameters.values()]
    usual = median([size for size in sizes if size > 0] or [1.0])
    scales = [size if size > 0 else usual for size in sizes]

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    point = {
        name: value.detach() + MOVED * scale * random(value)
        for (name, value), scale in zip(parameters.items(), scales, strict=True)
    }
    directions = [
        scale * random(value) for value, scale in zip(parameters.values(), scales, strict=True)
    ]
    one_batch = replace(function, batches=lambda: iter([batch]), check=None)
    parameters = cut_off(parameters)
    with asking_for_float64() if wide else nullcontext(), torch.enable_grad():
        value = one_batch.batch_loss(parameters, batch)
    return Sample(one_batch, parameters, point, directions, scales, batch, seed, wide, value)


def _coarsest(sample: Sample) -> float:
    """The largest rounding error of a floating dtype that the model computes in."""
    watch = _Dtypes()
    with torch.enable_grad(), watch:
        sample.function.batch_loss(sample.parameters, sample.batch)
    return max((torch.finfo(dtype).eps for dtype in watch.seen), default=0.0)


class _Dtypes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {
            leaf.dtype
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        }
        return result
