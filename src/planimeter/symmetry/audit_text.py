"""An audit as a person reads it: a table of plain text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planimeter.printing import plain_table

if TYPE_CHECKING:
    from planimeter.symmetry.invariance import Audit

SHOWN = 4
"""Names in a line before the rest is counted."""


def audit_text(audit: Audit) -> str:
    """Measures by rescalings, then what was rescaled, what was not found, and what to report."""
    kinds = list(audit.changes)
    rows = [["measure", "value", *kinds, "verdict"]]
    for name, value in audit.values.items():
        found = [audit.changes[kind].get(name) for kind in kinds]
        cells = ["-" if c is None else percent(c.relative, c.error) for c in found]
        rows.append([name, str(value), *cells, audit.verdict(name)])
    lines = [plain_table(rows), ""]
    for kind, names in audit.names.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"{kind}: {', '.join(names[:SHOWN])}{more}")
    lines += [f"{kind}: {why}" for kind, why in audit.absent.items()]
    if audit.refused:
        more = f" and {len(audit.refused) - SHOWN} more" if len(audit.refused) > SHOWN else ""
        lines.append(f"do not apply: {', '.join(list(audit.refused)[:SHOWN])}{more}")
    return "\n".join([*lines, "", str(audit.to_report())])


def percent(relative: float, error: float = 0.0) -> str:
    """`+12 ± 3 %`, or a factor where that is shorter to read."""
    if not math.isfinite(relative):
        return "from 0" if relative > 0 else "not finite"
    if abs(relative) < 5e-4 and not error:
        return "0"
    if -0.9 < relative < 2:
        own = f"{100 * relative:+.2g}" if abs(relative) < 0.995 else f"{100 * relative:+.0f}"
        spread = f" ± {100 * error:.1g}" if error < 0.095 else f" ± {100 * error:.0f}"
        return f"{own}{spread if error > 5e-4 else ''} %"
    spread = f" ± {error:.1g}" if error < 0.95 else f" ± {error:.0f}"
    return f"×{1 + relative:.2g}{spread if error > 5e-3 else ''}"
