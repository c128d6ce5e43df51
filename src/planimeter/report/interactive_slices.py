"""Figures of slices and paths to explore: curves that tell their numbers, a surface that turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from planimeter.report.slice_values import contour_levels, path_curves, path_label, path_note
from planimeter.slices import SharpnessPath, Slice

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def interactive_slice(result: Slice, title: str = "") -> Any:
    """A plotly curve with the accuracy on a second axis, or a surface with a log axis."""
    return (_curve if result.losses.ndim == 1 else _surface)(result, title)


def interactive_path(result: SharpnessPath, title: str = "") -> Any:
    """A plotly figure of a path, log-log with error bars; hollow markers did not converge."""
    from plotly import graph_objects as go

    figure = go.Figure()
    x = result.factors.sort().values.numpy()
    for i, (name, (y, error, sure)) in enumerate(path_curves(result).items()):
        colour = _COLOURS[i % len(_COLOURS)]
        shown = np.where(y > 0, y, np.nan)
        figure.add_scatter(
            x=x,
            y=shown,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": error,
                "arrayminus": np.minimum(error, 0.999 * np.nan_to_num(shown)),
            },
            mode="lines+markers",
            line={"color": colour, "width": 1.5},
            marker={"size": 8, "symbol": ["circle" if ok else "circle-open" for ok in sure]},
            name=path_label(name, y),
        )
    figure.update_xaxes(type="log", title_text="factor α")
    figure.update_yaxes(type="log", title_text="measure")
    return _laid_out(figure, title, path_note(result))


def _curve(result: Slice, title: str) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    order = result.distances[0].argsort()
    x, y = result.distances[0][order], result.losses[order].numpy()
    figure.add_scatter(
        x=x.numpy(),
        y=np.where(np.isfinite(y), y, np.nan),
        mode="lines+markers",
        marker={"size": 5},
        name="loss",
    )
    finite = y[np.isfinite(y)]
    if result.quadratic is not None:
        fine = torch.linspace(float(x[0]), float(x[-1]), 400, dtype=torch.float64)
        figure.add_scatter(
            x=fine.numpy(),
            y=result.quadratic(fine).numpy(),
            mode="lines",
            line={"dash": "dash", "color": "black", "width": 1.2},
            name="quadratic model",
        )
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    bad = ~np.isfinite(y) & (order.numpy() < result.points)
    if bad.any():
        figure.add_scatter(
            x=x.numpy()[bad],
            y=np.full(bad.sum(), high + room),
            mode="markers",
            marker={"symbol": "x", "color": "#d62728", "size": 8},
            text=[f"loss is {value}" for value in y[bad]],
            hoverinfo="x+text",
            name="loss not finite",
        )
    if result.accuracies is not None:
        figure.add_scatter(
            x=x.numpy(),
            y=100 * result.accuracies[order].numpy(),
            mode="lines",
            line={"dash": "dot", "color": "#ff7f0e", "width": 2},
            name="accuracy",
            secondary_y=True,
        )
        figure.update_yaxes(
            title_text="accuracy (%)",
            range=[0, 103],
            tickmode="linear",
            dtick=20,
            showgrid=False,
            secondary_y=True,
        )
    figure.update_xaxes(title_text=f"distance along {result.names[0]}")
    figure.update_yaxes(title_text="loss", range=[low - room, high + 2 * room], secondary_y=False)
    return _laid_out(figure, title)


def _surface(result: Slice, title: str) -> Any:
    from plotly import graph_objects as go

    order = [d.argsort() for d in result.distances]
    x, y = (d[o].numpy() for d, o in zip(result.distances, order, strict=True))
    z = result.losses[order[0]][:, order[1]].numpy()
    finite = np.isfinite(z)
    levels, logarithmic = contour_levels(z[finite]) if finite.any() else (np.ones(2), False)
    floor, ticks = levels[0], levels[np.linspace(0, len(levels) - 1, 7).round().astype(int)]
    heights = np.where(finite, np.maximum(z, floor), np.nan)
    coloured = np.log10(heights) if logarithmic else heights
    hover = np.array([[f"loss {value:.6g}" for value in row] for row in z])
    if result.accuracies is not None:
        accuracies = 100 * result.accuracies[order[0]][:, order[1]].numpy()
        told = [[f"<br>accuracy {value:.2f} %" for value in row] for row in accuracies]
        hover = np.char.add(hover, np.array(told))
    figure = go.Figure(
        go.Surface(
            x=x,
            y=y,
            z=heights.T,
            surfacecolor=coloured.T,
            colorscale="Viridis",
            colorbar={
                "title": "loss",
                "len": 0.7,
                "tickvals": np.log10(ticks) if logarithmic else ticks,
                "ticktext": [f"{tick:.3g}" for tick in ticks],
            },
            text=hover.T,
            hoverinfo="x+y+text",
            name="loss",
        )
    )
    computed = np.arange(result.losses.numel()).reshape(result.losses.shape) < result.points
    i, j = np.nonzero(~finite & computed[order[0].numpy()][:, order[1].numpy()])
    if len(i):
        figure.add_scatter3d(
            x=x[i],
            y=y[j],
            z=np.full(len(i), floor),
            mode="markers",
            marker={"symbol": "circle", "size": 3, "color": "#d62728"},
            text=[f"loss is {value}" for value in z[i, j]],
            hoverinfo="x+y+text",
            name="loss not finite",
        )
    (a, b), lowest = result.minimum
    marks = (
        (result.lowest_label, a, b, lowest, "white"),
        ("θ", 0.0, 0.0, result.loss, "#d62728"),
    )
    for label, at_x, at_y, height, colour in marks:
        if np.isfinite(height):
            figure.add_scatter3d(
                x=[at_x],
                y=[at_y],
                z=[max(height, floor)],
                mode="markers",
                marker={"symbol": "diamond", "size": 5, "color": colour, "line": {"width": 2}},
                name=f"{label}, {height:.4g}",
                showlegend=True,
            )
    figure.update_layout(
        scene={
            "xaxis": {"title": {"text": "first distance"}},
            "yaxis": {"title": {"text": "second distance"}},
            "zaxis": {"title": {"text": "loss"}, "type": "log" if logarithmic else "linear"},
        }
    )
    return _laid_out(
        figure, title, f"first: {result.names[0]}<br>second: {result.names[1]}", height=760
    )


def _laid_out(figure: Any, title: str, note: str = "", height: int = 560) -> Any:
    heading = f"{title}<br><sup>{note}</sup>" if note else title
    figure.update_layout(
        title={"text": heading, "font": {"size": 15}},
        template="plotly_white",
        height=height,
        legend={"orientation": "h", "y": -0.16},
        margin={"t": 90, "l": 70, "r": 70, "b": 70},
    )
    return figure
