r"""Which entries of which activations share a factor.

A *unit* is a factor :math:`d_u > 0` by which a layer could multiply one of its channels. An
activation carries a tensor of its own shape that says by which unit each of its entries would be
multiplied; entries that an operation puts together have to share one, so their units are united.
Units that meet something that is not positively homogeneous are fixed to 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

ZERO = -1
"""The unit of an entry that is always zero: it fits with any factor."""


class Units:
    """Units in disjoint sets, with the reasons why some are fixed to 1."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, dict[str, None]] = {}

    def new(self, *shape: int) -> Int[Tensor, "*shape"]:
        """New units, free ones."""
        start = len(self._parents)
        count = int(torch.Size(shape).numel())
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count).reshape(shape)

    def fixed(self, reason: str, shape: Iterable[int] = ()) -> Int[Tensor, "*shape"]:
        """One unit that is 1, expanded to a shape."""
        unit = self.new()
        self.fix(unit, reason)
        return unit.expand(tuple(shape))

    def fix(self, units: Int[Tensor, "*shape"], reason: str) -> None:
        """Fix units to 1."""
        for unit in distinct(units):
            if unit != ZERO:
                self._reasons.setdefault(self.find(unit), {})[reason] = None

    def is_fixed(self, units: Int[Tensor, "*shape"]) -> bool:
        """Whether all of these are fixed already."""
        return all(u == ZERO or self.find(u) in self._reasons for u in distinct(units))

    def reasons(self, units: Int[Tensor, "*shape"]) -> list[str]:
        """Why some of these are fixed; nothing where all are free."""
        found: dict[str, None] = {}
        for unit in distinct(units):
            if unit != ZERO:
                found |= self._reasons.get(self.find(unit), {})
        return list(found)

    def find(self, unit: int) -> int:
        """The unit that stands for all that this one is united with."""
        while (parent := self._parents[unit]) != unit:
            self._parents[unit] = self._parents[parent]
            unit = parent
        return unit

    def unite(
        self, left: Int[Tensor, "*left"], right: Int[Tensor, "*right"]
    ) -> Int[Tensor, "*both"]:
        """Entry by entry, broadcast: the units of a sum."""
        left, right = torch.broadcast_tensors(left, right)
        few_left, few_right = _without_repeats(left, right)
        pairs = torch.stack([few_left.reshape(-1), few_right.reshape(-1)], 1)
        pairs = pairs[(pairs != ZERO).all(1) & (pairs[:, 0] != pairs[:, 1])]
        for one, other in torch.unique(pairs, dim=0).tolist():
            self._join(one, other)
        if bool((few_left == ZERO).any()):
            return torch.where(left == ZERO, right, left)
        return left

    def together(self, units: Int[Tensor, "*shape"], dims: Iterable[int]) -> Int[Tensor, "*united"]:
        """Unite along dimensions, which are kept with size 1."""
        result = units
        for dim in {d % units.ndim for d in dims} if units.ndim else ():
            size = min(result.shape[dim], 1)
            if result.shape[dim] > 1 and result.stride(dim) != 0:
                best = result.amax(dim, keepdim=True)
                self.unite(best, result)
                result = best
            else:
                result = result.narrow(dim, 0, size)
        return result

    def roots(self) -> Int[Tensor, " units"]:
        """For each unit the one that stands for it, and last ZERO for ZERO."""
        return torch.tensor([*(self.find(u) for u in range(len(self._parents))), ZERO])

    def fixed_roots(self) -> set[int]:
        """The units that stand for those fixed to 1."""
        return set(self._reasons)

    def _join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        self._parents[other] = one
        if other in self._reasons:
            moved = self._reasons.pop(other)
            self._reasons[one] = {**self._reasons.get(one, {}), **moved}


def distinct(units: Int[Tensor, "*shape"]) -> list[int]:
    """The units in a tensor, each once."""
    found: list[int] = torch.unique(_without_repeats(units)[0]).tolist()
    return found


def compressed(units: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The same, without memory for dimensions along which nothing changes."""
    shape = units.shape
    for dim in range(units.ndim):
        if units.shape[dim] > 1 and units.stride(dim) != 0:
            first = units.narrow(dim, 0, 1)
            if bool((units == first).all()):
                units = first
    return units.expand(shape)


def _without_repeats(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape without the dimensions along which all only repeat themselves."""
    for dim in range(tensors[0].ndim):
        if tensors[0].shape[dim] > 1 and all(t.stride(dim) == 0 for t in tensors):
            tensors = tuple(t.narrow(dim, 0, 1) for t in tensors)
    return tensors
