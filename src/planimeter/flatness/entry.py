"""A registry entry for a function that returns an `Estimate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from planimeter.estimate import Estimate
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape

JIANG = "Jiang et al. 2019 (arXiv 1912.02178), Appendix C"


def entry(
    function: Callable[..., Estimate],
    label: str,
    symbol: str,
    formula: str,
    *invariances: str,
    source: str = JIANG,
    orientation: str = "sharpness",
    by_layer: bool = False,
    **quick: Any,
) -> Measure:
    """The measure that bears the function's name.

    `measure` passes `seed` and `progress` to everything: what has no use for them is not asked.

    Arguments:
        function: landscape and keyword settings to an `Estimate`.
        label, symbol, formula, orientation, by_layer: of the measure, see `Measure`.
        invariances: what it is invariant to.
        source: where it comes from.
        quick: settings for comparisons of several points.
    """
    unused = {"seed", "progress"} - set(inspect.signature(function).parameters)

    def compute(landscape: LossLandscape, **settings: Any) -> Estimate:
        return function(landscape, **{k: v for k, v in settings.items() if k not in unused})

    return Measure(
        function.__name__,
        label,
        symbol,
        formula,
        source,
        orientation,
        frozenset(invariances),
        compute,
        function,
        quick,
        by_layer,
    )
