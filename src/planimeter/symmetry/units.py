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

from planimeter.symmetry.exponents import Exponents, Product, solved

ZERO = -1
"""The unit of an entry that is always zero: it fits with any factor."""


class Units:
    """Units in disjoint sets, with the reasons why some are fixed to 1."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, dict[str, None]] = {}
        self._products: list[Product] = []

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

    def product(
        self, left: Int[Tensor, "*left"], right: Int[Tensor, "*right"], reason: str, most: int
    ) -> Int[Tensor, "*shape"] | None:
        """Entry by entry, broadcast: the units of products; None for more than `most` entries.

        Arguments:
            reason: where they are multiplied, in words.
        """
        left, right = torch.broadcast_tensors(left, right)
        few_left, few_right = _without_repeats(left, right)
        if few_left.numel() > most:
            return None
        flat = torch.stack([few_left.reshape(-1), few_right.reshape(-1)], 1)
        pairs, place = torch.unique(flat, dim=0, return_inverse=True)
        known: dict[tuple[int, int], int] = {}
        found = [self._product(one, two, reason, known) for one, two in pairs.tolist()]
        few = torch.tensor(found, dtype=torch.long)[place].reshape(few_left.shape)
        return few.expand(left.shape)

    def power(self, units: Int[Tensor, "*shape"], exponent: int, reason: str) -> Tensor:
        """Entry by entry the units of a power, at least 1."""
        (few,) = _without_repeats(units)
        own, place = torch.unique(few, return_inverse=True)
        found = [self._follows({unit: exponent}, reason) for unit in own.tolist()]
        return torch.tensor(found, dtype=torch.long)[place].reshape(few.shape).expand(units.shape)

    def solve(self) -> dict[int, Exponents]:
        """Units that follow from others by the products; those that have to be 1 are fixed."""
        while True:
            fixed = self.fixed_roots()
            solution, why = solved(self._products, self.find, fixed)
            ones = {root: reason for root, reason in why.items() if not solution[root]}
            if not ones:
                return solution
            for root, reason in ones.items():
                self._reasons.setdefault(root, {})[reason] = None

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

    def _product(
        self, left: int, right: int, reason: str, known: dict[tuple[int, int], int]
    ) -> int:
        if ZERO in (left, right):
            return ZERO
        one, other = sorted((self.find(left), self.find(right)))
        if one in self._reasons or other in self._reasons:
            return other if one in self._reasons else one
        if (one, other) not in known:
            powers = {one: 2} if one == other else {one: 1, other: 1}
            known[one, other] = self._follows(powers, reason)
        return known[one, other]

    def _follows(self, powers: dict[int, int], reason: str) -> int:
        if ZERO in powers:
            return ZERO
        unit = int(self.new())
        self._products.append(Product(unit, powers, reason))
        return unit

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
