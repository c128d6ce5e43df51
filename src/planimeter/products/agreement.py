"""Whether two ways of computing the same product agree, and which is faster."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.products.curvatures import Directions, LinearMap

SCALE = 0.7
"""What directions are multiplied with to see how a product rounds."""
ROUNDING = 10
"""So many times that difference may be between two ways of computing a product."""


def agree(
    precision: float,
    product: LinearMap,
    directions: Directions,
    found: Directions,
    expected: Directions,
) -> bool:
    """Whether `found`, which is product(directions), is as expected, up to rounding.

    A product that is much smaller than the terms it sums, as at a minimum, may have few right
    digits. Directions times a number that is no power of two round otherwise: that shows it.

    Arguments:
        precision: the largest relative rounding error of the parameters' dtypes.
    """
    apart = difference(found, expected)
    if apart <= precision**0.5:
        return True
    scaled = product([SCALE * direction for direction in directions])
    noise = difference([tensor / SCALE for tensor in scaled], found)
    return apart <= ROUNDING * noise


def elsewhere(directions: Directions) -> Directions:
    """Other directions, at random: linear maps that agree there are the same.

    Along the given ones a product may vanish but for rounding, as where a loss ignores a shift of
    all outputs.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(d.shape, generator=generator).to(d) for d in directions]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, all of its work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def flat(tensors: Directions) -> Float[Tensor, " P"]:
    """All numbers in a row, float64."""
    row = torch.cat([t.detach().reshape(-1) for t in tensors])
    # A copy in any case, so that no inference tensor gets out.
    return row.to(torch.float64, copy=True)


def difference(found: Directions, expected: Directions) -> float:
    """Relative, in the Euclidean norm over all parameters."""
    one, other = flat(found), flat(expected)
    scale = max(float(one.norm()), float(other.norm()))
    return float((one - other).norm()) / scale if scale > 0 else 0.0
