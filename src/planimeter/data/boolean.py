"""The Boolean system: all 2^n inputs of n bits, and a target function.

Row r is r in binary, the most significant bit first, so that a function is a string of 2^n bits,
its values in the order of the rows. There are 2^(2^n) of them, and small networks find a few of
those far more often than others (zhang2021, Section 5.1, with n = 7).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from planimeter.data.dataset import Dataset
from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError, suggestion

TARGETS = ("random", "parity", "majority")
LARGEST_N = 20


def boolean_system(n: int = 7, target: str = "random", target_seed: int = 0) -> Dataset:
    """All inputs of n bits, as 0 and 1 in shape (2^n, n), labelled by a target function.

    Arguments:
        n: bits, 1...20.
        target: 2^n bits; `parity` (whether the number of ones is odd), `majority` (whether more
            than half of the bits are ones) or `random`.
        target_seed: of the random function, each value of which is 0 or 1 with probability 1/2.

    Raises:
        InputError: n is out of range, or the target is no function of n bits.
    """
    if not 1 <= n <= LARGEST_N:
        raise InputError(f"a Boolean system has 1 to {LARGEST_N} bits, got n = {n}")
    rows = torch.arange(2**n)[:, None]
    bits = (rows >> torch.arange(n - 1, -1, -1)) & 1
    values = StoredInputs(bits.to(torch.uint8))
    return Dataset("boolean", values, _labels(bits, target, target_seed), None, None, 2)


def _labels(bits: Int[Tensor, "rows n"], target: str, seed: int) -> Int[Tensor, " rows"]:
    rows, n = bits.shape
    if target == "random":
        return torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(seed))
    if target == "parity":
        return bits.sum(1) % 2
    if target == "majority":
        return (2 * bits.sum(1) > n).long()
    if set(target) <= {"0", "1"} and len(target) == rows:
        return torch.tensor([int(bit) for bit in target])
    if set(target) <= {"0", "1"}:
        raise InputError(f"a function of {n} bits has {rows} values, the target has {len(target)}")
    raise InputError(
        f"no target {target!r}: give {rows} bits or one of {', '.join(TARGETS)}"
        + suggestion(target, TARGETS)
    )
