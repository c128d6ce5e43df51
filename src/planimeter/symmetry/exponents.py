r"""Units of products of activations, as products of powers of independent ones.

A product of two activations with the units a and b has the unit w = a b: in logarithms a linear
equation, :math:`\log w = \log a + \log b`. Solved for as many units as there are equations, the
others stay free: where a softmax fixes the scores of attention, :math:`q_c k_c = 1` leaves the
query's channel c free, and the key's is its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

Exponents = dict[int, Fraction]
"""Free units and their powers; without any the unit is 1."""


@dataclass(frozen=True)
class Product:
    """A unit that is a product of powers of others.

    Arguments:
        unit: the product.
        powers: the factors and their powers.
        reason: where they are multiplied, in words.
    """

    unit: int
    powers: dict[int, int]
    reason: str


def solved(
    products: Iterable[Product], find: Callable[[int], int], fixed: set[int]
) -> tuple[dict[int, Exponents], dict[int, str]]:
    """The units that follow from others, and where one is found to be 1, by which product.

    Arguments:
        find: the unit that stands for all that one is united with.
        fixed: the units that stand for those fixed to 1.
    """
    solution: dict[int, Exponents] = {}
    met_in: dict[int, set[int]] = {}
    why: dict[int, str] = {}
    for product in products:
        row: Exponents = {}
        result = find(product.unit)
        for unit, power in ((product.unit, -1), *product.powers.items()):
            root = find(unit)
            if root in fixed:
                continue
            for free, own in solution.get(root, {root: Fraction(1)}).items():
                row[free] = row.get(free, Fraction(0)) + power * own
        row = {free: power for free, power in row.items() if power}
        if not row:
            continue
        pivot = max(row, key=lambda free: (abs(row[free]) == 1, free != result, free))
        own_power = row.pop(pivot)
        new = {free: -other / own_power for free, other in row.items()}
        if not new:
            why[pivot] = product.reason
        for root in met_in.pop(pivot, set()):
            old = solution[root]
            by = old.pop(pivot)
            for free, own in new.items():
                old[free] = old.get(free, Fraction(0)) + by * own
                if not old[free]:
                    del old[free]
                    met_in[free].discard(root)
                else:
                    met_in.setdefault(free, set()).add(root)
            if not old:
                why[root] = product.reason
        solution[pivot] = new
        for free in new:
            met_in.setdefault(free, set()).add(pivot)
    return solution, why
