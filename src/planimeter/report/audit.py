"""The heat map of an audit: how much each measure changes where the function does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from planimeter.files import whole
from planimeter.flatness import MEASURES
from planimeter.report.files import check_figure_path
from planimeter.symmetry.audit_text import percent
from planimeter.symmetry.invariance import CLAIMED, INVARIANT, UNCLEAR, Audit

_FLOOR, _CEILING = 1e-6, 1e6


def audit_figure(audit: Audit, title: str) -> Any:
    """Measures by rescalings; the colour is the size of the relative change."""
    from matplotlib.figure import Figure

    kinds, names = list(audit.changes), list(audit.values)
    sizes = np.full((len(names), len(kinds)), np.nan)
    for column, kind in enumerate(kinds):
        for row, name in enumerate(names):
            change = audit.changes[kind].get(name)
            if change is not None:
                sizes[row, column] = min(max(abs(change.relative), _FLOOR), _CEILING)
    figure = Figure(
        figsize=(4.6 + 1.15 * len(kinds), 1.7 + 0.27 * len(names)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(np.log10(sizes), cmap="cividis", vmin=-4, vmax=2, aspect="auto")
    axes.set_xticks(range(len(kinds)), kinds)
    labels = [_both(name, MEASURES[name].symbol) for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    for column, kind in enumerate(kinds):
        for row, name in enumerate(names):
            change = audit.changes[kind].get(name)
            if change is None:
                continue
            mark = {INVARIANT: "=", UNCLEAR: "?", CLAIMED: "!"}.get(change.verdict, "")
            dark = math.log10(sizes[row, column]) < -1
            axes.text(
                column, row, f"{mark} {percent(change.relative)}".strip(), ha="center", va="center",
                fontsize=7, color="white" if dark else "black",
            )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.6, extend="both")
    bar.set_label("relative change (log10)")
    axes.set_title(title, fontsize=9, loc="left", pad=14)
    axes.set_xlabel(
        f"=  within {audit.tolerance:g}: invariant    ?  below three standard errors\n"
        "!  claimed invariant, but changes",
        fontsize=8,
    )
    return figure


def _both(name: str, symbol: str) -> str:
    """A measure as commands call it, and its symbol where that says more."""
    return name if symbol.replace(" ", "_").lower() == name else f"{name}   {symbol}"


def save_audit_figure(audit: Audit, path: Path, title: str) -> None:
    """Draw it into a file (.png, .pdf, .svg).

    Raises:
        InputError: another file name, or the file cannot be written.
    """
    check_figure_path(path)
    with whole(path) as beside:
        audit_figure(audit, title).savefig(beside, dpi=160)
