"""The figure of a study: quantities against the test error, a column an optimiser.

Drawn twice: with plotly to explore (hovering names the trial), with matplotlib to print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planimeter.files import whole
from planimeter.report.table import CorrelationRow, Quantity, by_optimiser, drawn, usable
from planimeter.study import Record, Study
from planimeter.training import optimiser_label

_COLOUR_SCALE = "viridis"


def interactive_figure(
    study: Study, records: Sequence[Record], rows: Sequence[CorrelationRow]
) -> Any:
    """A plotly figure, a panel for each quantity that can be drawn, and optimiser."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    shown, columns = drawn(study, records), by_optimiser(study, usable(records))
    titles = [_panel_title(_row(rows, name, q)) for q in shown for name in columns]
    figure = make_subplots(
        len(shown),
        len(columns),
        subplot_titles=titles,
        vertical_spacing=0.22 / len(shown),
        horizontal_spacing=0.06,
        shared_yaxes="rows",
    )
    largest = max(study.grid.attack) or 1
    for i, quantity in enumerate(shown, start=1):
        for j, own in enumerate(columns.values(), start=1):
            values, errors = _values(quantity, own)
            figure.add_trace(
                go.Scatter(
                    x=[100 * r.result["test_error"] for r in own],
                    y=values,
                    error_y={"type": "data", "array": errors, "thickness": 1, "width": 0},
                    mode="markers",
                    marker={
                        "size": 9,
                        "color": [r.trial.attack for r in own],
                        "colorscale": _COLOUR_SCALE,
                        "cmin": 0,
                        "cmax": largest,
                        "showscale": i == 1 and j == len(columns),
                        "colorbar": {
                            "title": "|A|",
                            "len": 1 / len(shown),
                            "y": 1,
                            "yanchor": "top",
                        },
                        "line": {"width": 0.5, "color": "white"},
                    },
                    text=[_hover(r, quantity) for r in own],
                    hoverinfo="text",
                    showlegend=False,
                ),
                row=i,
                col=j,
            )
            if i == len(shown):
                figure.update_xaxes(title_text="test error (%)", row=i, col=j)
            if _logarithmic(quantity, usable(records)):
                figure.update_yaxes(type="log", row=i, col=j)
        figure.update_yaxes(title_text=quantity.label, row=i, col=1)
    figure.update_layout(
        height=300 * len(shown),
        template="plotly_white",
        margin={"t": 50, "l": 70, "r": 20, "b": 50},
        font={"size": 12},
    )
    figure.update_annotations(font_size=13)
    return figure


def printed_figure(
    study: Study, records: Sequence[Record], rows: Sequence[CorrelationRow], path: Path
) -> None:
    """The same figure as a PNG file."""
    from matplotlib.figure import Figure

    shown, columns = drawn(study, records), by_optimiser(study, usable(records))
    figure = Figure(figsize=(3.6 * len(columns) + 1.2, 2.7 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(columns), sharex=True, sharey="row", squeeze=False)
    points = None
    for line, quantity in zip(panels, shown, strict=True):
        for panel, (name, own) in zip(line, columns.items(), strict=True):
            values, errors = _values(quantity, own)
            error = [100 * r.result["test_error"] for r in own]
            panel.errorbar(error, values, errors, fmt="none", ecolor="0.6", linewidth=1, zorder=1)
            points = panel.scatter(
                error,
                values,
                c=[r.trial.attack for r in own],
                cmap=_COLOUR_SCALE,
                vmin=0,
                vmax=max(study.grid.attack) or 1,
                edgecolors="white",
                linewidths=0.5,
                s=36,
                zorder=2,
            )
            panel.set_title(_panel_title(_row(rows, name, quantity)), fontsize=10)
            panel.grid(alpha=0.25)
            if _logarithmic(quantity, usable(records)):
                panel.set_yscale("log")
        line[0].set_ylabel(quantity.label)
    for panel in panels[-1]:
        panel.set_xlabel("test error (%)")
    if points is not None:
        figure.colorbar(points, ax=panels, label="attack-set size |A|", shrink=0.5, aspect=40)
    with whole(path) as beside:
        figure.savefig(beside, dpi=150)


def _row(rows: Sequence[CorrelationRow], optimiser: str, quantity: Quantity) -> CorrelationRow:
    return next(r for r in rows if r.optimiser == optimiser and r.quantity.name == quantity.name)


def _panel_title(row: CorrelationRow) -> str:
    label = optimiser_label(row.optimiser)
    r = row.pearson
    return f"{label}: r = {r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}]"


def _values(quantity: Quantity, records: Sequence[Record]) -> tuple[list[float], list[float]]:
    pairs = [quantity.of(r) for r in records]
    values = [v if np.isfinite(v) else np.nan for v, _ in pairs]
    return values, [e if np.isfinite(e) else 0.0 for _, e in pairs]


def _logarithmic(quantity: Quantity, records: Sequence[Record]) -> bool:
    """Whether an axis can be logarithmic: a number at zero or below would be left out of it."""
    values = [quantity.of(record)[0] for record in records]
    return quantity.logarithmic and all(v > 0 for v in values if np.isfinite(v))


def _hover(record: Record, quantity: Quantity) -> str:
    value, error = quantity.of(record)
    result = record.result
    return (
        f"<b>{record.trial.label}</b><br>{quantity.label}: {value:.5g} ± {error:.2g}"
        f"<br>test error {100 * result['test_error']:.1f} %"
        f"<br>training loss {result['train_loss']:.3g}, {result['fit']['epochs']} epochs"
        f"<br>‖θ‖ = {result['theta_norm']:.1f}, key {record.key}"
    )
