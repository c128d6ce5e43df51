"""What `measure` and `measure_layers` return: dicts that print as tables."""

from __future__ import annotations

from planimeter.estimate import Estimate
from planimeter.printing import plain_table


class Measurements(dict[str, Estimate]):
    """Measure to value."""

    def __str__(self) -> str:
        if not self:
            return "no measures"
        rows = [[name, str(value), value.method] for name, value in self.items()]
        return plain_table([["measure", "value", "how"], *rows])

    def __repr__(self) -> str:
        return f"Measurements({len(self)}: {_some(list(self))})"


class LayerMeasurements(dict[str, Measurements]):
    """Layer to measure to value."""

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for found in self.values() for name in found))
        rows = [
            [layer, *(str(found[name]) if name in found else "-" for name in names)]
            for layer, found in self.items()
        ]
        return plain_table([["layer", *names], *rows])

    def __repr__(self) -> str:
        return f"LayerMeasurements({len(self)} layers: {_some(list(self))})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
