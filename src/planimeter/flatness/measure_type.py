"""What a flatness measure is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from planimeter.estimate import Estimate


@dataclass(frozen=True)
class Measure:
    """A number that says how flat a minimum is.

    Arguments:
        name: registry name.
        label: how figures write it.
        symbol: how narrow tables write it.
        formula: in plain text.
        reference: where it comes from.
        orientation: "sharpness" (larger is sharper) or "flatness".
        invariant_to: claimed invariances: "layer", "neuron"; empty for none.
        compute: landscape and keyword settings (`seed` and `progress` among them) to an `Estimate`.
        function: what `compute` calls, whose documentation explains the settings.
        quick: settings under which a comparison of several points stays affordable.
        by_layer: whether the definition makes sense for the parameters of one layer alone, the
            others held (`planimeter.flatness.measure_layers`).
    """

    name: str
    label: str
    symbol: str
    formula: str
    reference: str
    orientation: str
    invariant_to: frozenset[str]
    compute: Callable[..., Estimate]
    function: Callable[..., Any]
    quick: dict[str, Any] = field(default_factory=dict)
    by_layer: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that `compute` takes, the keywords of `function`, and their defaults."""
        keywords = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default
            for p in keywords
            if p.kind is p.KEYWORD_ONLY and p.name not in ("progress", *self._fixed)
        }

    @property
    def _fixed(self) -> dict[str, Any]:
        """Settings that make this measure out of a function for several."""
        return getattr(self.compute, "keywords", {})
