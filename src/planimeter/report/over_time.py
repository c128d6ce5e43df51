"""The figure of what was recorded during training: every quantity against the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planimeter.files import whole
from planimeter.flatness import MEASURES
from planimeter.study import Record, Study

Curve = tuple[list[int], list[float]]
"""Epochs and values."""


def curves(study: Study, records: Sequence[Record]) -> dict[str, dict[str, Curve]]:
    """What each trial recorded: axis label to trial label to epochs and values.

    Errors are in percent of their set; log P(f) is under each noise convention of the study.
    """
    found: dict[str, dict[str, Curve]] = {}
    for record in sorted(records, key=lambda r: r.key):
        for point in record.result["fit"].get("records", ()):
            for label, value in _values(study, record, point["values"]):
                epochs, values = found.setdefault(label, {}).setdefault(
                    record.trial.label, ([], [])
                )
                epochs.append(point["epoch"])
                values.append(value)
    return found


def interactive_curves(found: dict[str, dict[str, Curve]]) -> Any:
    """A plotly figure, a panel for each quantity."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(len(found), 1, shared_xaxes=True, vertical_spacing=0.12 / len(found))
    for i, (label, lines) in enumerate(found.items(), start=1):
        for name, (epochs, values) in lines.items():
            figure.add_trace(
                go.Scatter(x=epochs, y=values, name=name, mode="lines+markers", showlegend=False),
                row=i,
                col=1,
            )
        figure.update_yaxes(title_text=label, row=i, col=1)
        if _logarithmic(lines):
            figure.update_yaxes(type="log", row=i, col=1)
    figure.update_xaxes(title_text="epoch", row=len(found), col=1)
    figure.update_layout(
        height=220 * len(found),
        template="plotly_white",
        margin={"t": 20, "l": 70, "r": 20, "b": 50},
        font={"size": 12},
    )
    return figure


def printed_curves(found: dict[str, dict[str, Curve]], path: Path) -> None:
    """The same figure as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.0 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, lines) in zip(panels, found.items(), strict=True):
        for epochs, values in lines.values():
            panel.plot(epochs, values, marker=".", markersize=3, linewidth=1, alpha=0.8)
        panel.set_ylabel(label, fontsize=9)
        panel.grid(alpha=0.25)
        if _logarithmic(lines):
            panel.set_yscale("log")
    panels[-1].set_xlabel("epoch")
    with whole(path) as beside:
        figure.savefig(beside, dpi=150)


def _values(study: Study, record: Record, values: dict[str, Any]) -> list[tuple[str, float]]:
    """Axis labels and numbers of one record."""
    sizes = {
        "train_errors": ("training error (%)", study.data.train),
        "attack_errors": ("error on A (%)", record.trial.attack),
        "test_errors": ("test error (%)", study.data.test),
    }
    found = []
    for name, value in values.items():
        if name in sizes:
            label, size = sizes[name]
            found.append((label, 100 * value / max(size, 1)))
        elif name == "log_prior":
            found += [(f"log P(f), noise {p['noise']:g}", p["value"]) for p in value]
        elif name in MEASURES:
            found.append((MEASURES[name].label, value["value"]))
        else:
            found.append(({"loss": "loss on S", "theta_norm": "‖θ‖"}.get(name, name), value))
    return found


def _logarithmic(lines: dict[str, Curve]) -> bool:
    """Whether the values are positive and span more than a decade."""
    values = [v for _, own in lines.values() for v in own]
    return min(values) > 0 and max(values) > 10 * min(values)
