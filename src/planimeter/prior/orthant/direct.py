r"""The probability of the positive orthant by counting: draw z, see whether all of it is positive.

.. math:: \hat P = k / N, \qquad z = L \epsilon, \quad \Sigma = L L^T, \quad \epsilon \sim N(0, I).

Good where P is not small, and then free of every assumption. A draw is given up at the first panel
of coordinates that has a negative one, so the cost is that of the few that get far. The error of
:math:`\log \hat P` is half the width of the logarithm of Wilson's interval at one standard
deviation, :math:`\sqrt{(1 - P)/(N P)}` where counts are large.

Source: Wilson 1927, for the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.prior.orthant.in_place import panels

_SMALL = 2**27


@dataclass(frozen=True)
class DirectResult:
    """Counts of direct sampling.

    Arguments:
        log_z: logarithm of the share of positive draws.
        stderr: its standard error, in nats.
        hits, samples: positive draws, and all of them.
    """

    log_z: float
    stderr: float
    hits: int
    samples: int


def direct_log_orthant(
    factor: Float[Tensor, "n n"], *, samples: int = 100_000, seed: int = 0, panel: int = 32
) -> DirectResult:
    """log P(z > 0) for z = L epsilon by counting.

    Arguments:
        factor: L, lower triangular; its strict upper triangle is not read.
        samples: N, at least 1.
        seed: of the draws.
        panel: coordinates between which hopeless draws are given up.

    Raises:
        InputError: no draw was positive.
    """
    n, device = len(factor), factor.device
    generator = torch.Generator(device=device).manual_seed(seed)
    together = max(1, max(_SMALL, 8 * n * n) // (8 * n))
    hits = sum(
        _positive(factor, stop - start, generator, panel)
        for start, stop in panels(samples, together)
    )
    return _result(hits, samples)


def direct_log_cone(
    factor: Float[Tensor, "n r"], *, samples: int = 100_000, seed: int = 0
) -> DirectResult:
    """log P(A u > 0) for u of r standard normals, by counting.

    Arguments:
        factor: A.
        samples: N, at least 1.
        seed: of the draws.

    Raises:
        InputError: no draw was positive.
    """
    n, rank = factor.shape
    generator = torch.Generator(device=factor.device).manual_seed(seed)
    hits = 0
    for start, stop in panels(samples, max(1, _SMALL // (8 * n))):
        draws = torch.randn(
            (rank, stop - start), generator=generator, dtype=factor.dtype, device=factor.device
        )
        hits += int((factor @ draws > 0).all(0).sum())
    return _result(hits, samples)


def _result(hits: int, samples: int) -> DirectResult:
    if not hits:
        raise InputError(
            f"none of {samples} draws has these labels, so P(f) is below {3 / samples:.1e} (95 %): "
            f"use method='smc'"
        )
    return DirectResult(math.log(hits / samples), _log_error(hits, samples), hits, samples)


def _positive(
    factor: Float[Tensor, "n n"], samples: int, generator: torch.Generator, panel: int
) -> int:
    """How many draws are positive in every coordinate."""
    earlier: list[Tensor] = []
    for start, stop in panels(len(factor), panel):
        fresh = torch.randn(
            (stop - start, samples), generator=generator, dtype=factor.dtype, device=factor.device
        )
        earlier.append(fresh)
        z = factor[start:stop, start:stop].tril() @ fresh
        for (left, right), noise in zip(panels(start, panel), earlier, strict=False):
            z.addmm_(factor[start:stop, left:right], noise)
        alive = (z > 0).all(0).nonzero().reshape(-1)
        if len(alive) < samples:
            earlier = [noise.index_select(1, alive) for noise in earlier]
            samples = len(alive)
        if not samples:
            break
    return samples


def _log_error(hits: int, samples: int) -> float:
    share = hits / samples
    centre = share + 0.5 / samples
    half = math.sqrt(share * (1 - share) / samples + 0.25 / samples**2)
    return 0.5 * math.log((centre + half) / (centre - half))
