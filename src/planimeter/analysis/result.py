"""What every analysis gives: a number, its interval, and of how many members."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from planimeter.errors import InputError


class TooFewError(InputError):
    """The population has too few members for what is asked of it; the message says of what."""


@dataclass(frozen=True)
class Result:
    """A number with an interval that contains the truth in `confidence` of all populations.

    Arguments:
        value: the number; NaN where the population does not determine it.
        low, high: ends of the interval; NaN where there is none, infinite where it has no bound.
        n: members that count.
        confidence: of the interval, in (0, 1).
        notes: what a reader has to know, one sentence each.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = field(default=0.95, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return f"– ({self.n} network{'' if self.n == 1 else 's'})"
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}] (n = {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def check_confidence(confidence: float) -> None:
    """Raise an InputError unless a confidence lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}")


def simultaneous(confidence: float, comparisons: int) -> float:
    r"""The confidence of each of m intervals that together all hold with `confidence`.

    .. math:: 1 - (1 - c) / m \quad\text{(Bonferroni)},

    which holds however the intervals depend on one another, as those of measures of the same
    networks do.

    Raises:
        InputError: the confidence is not in (0, 1), or there are no comparisons.
    """
    check_confidence(confidence)
    if comparisons < 1:
        raise InputError(f"{comparisons} comparisons have no common confidence")
    return 1 - (1 - confidence) / comparisons
