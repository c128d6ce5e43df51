"""`counting.merged` by an accelerator, which sorts a hundred times faster than a core."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor


def merged_on(
    device: torch.device | str,
    words: NDArray[np.uint64],
    counts: NDArray[np.int64],
    missing: NDArray[np.int64],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Each function once: with the sum of its counts, and the least that may be missing.

    Arguments:
        device: that sorts; the arrays and the result are on the CPU.
        words, counts, missing: as in `counting.CountTable`, functions in any order and repeated.
    """
    rows, own, bounds = (
        torch.from_numpy(values).to(device) for values in (words.view(np.int64), counts, missing)
    )
    order = _order(rows)
    rows, own, bounds = rows[order], own[order], bounds[order]
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    first[1:] = (rows[1:] != rows[:-1]).any(dim=1)
    group = first.cumsum(0) - 1
    rows = rows[first]
    sums = own.new_zeros(len(rows)).scatter_add_(0, group, own)
    least = bounds.new_zeros(len(rows)).scatter_reduce_(
        0, group, bounds, "amin", include_self=False
    )
    return rows.cpu().numpy().view(np.uint64), sums.cpu().numpy(), least.cpu().numpy()


def _order(rows: Int[Tensor, "k w"]) -> Int[Tensor, " k"]:
    """An order that puts equal rows together: sorted by word after word, the last one first."""
    order = rows[:, -1].argsort(stable=True)
    for word in range(rows.shape[1] - 2, -1, -1):
        order = order[rows[order, word].argsort(stable=True)]
    return order
