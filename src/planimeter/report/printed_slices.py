"""Figures of slices and paths to print, by matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from planimeter.report.slice_values import contour_levels, path_curves, path_label, path_note
from planimeter.slices import SharpnessPath, Slice

_LOSS, _MODEL, _ACCURACY = "tab:blue", "black", "tab:orange"
_NOT_FINITE = (("∞", "^", np.isposinf), ("−∞", "v", np.isneginf), ("NaN", "x", np.isnan))


def printed_slice(result: Slice, title: str = "") -> Any:
    """The matplotlib figure of a slice."""
    from matplotlib.figure import Figure

    flat = result.losses.ndim == 1
    figure = Figure(figsize=(6.4, 4.2) if flat else (6.4, 5.4), layout="constrained")
    (_curve if flat else _contours)(figure, result)
    figure.suptitle(title, fontsize=10)
    return figure


def printed_path(result: SharpnessPath, title: str = "") -> Any:
    """The matplotlib figure of a path; hollow markers did not converge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.set_yscale("log", nonpositive="clip")
    order = result.factors.argsort()
    x = result.factors[order].numpy()
    for name, (y, error, sure) in path_curves(result).items():
        label, shown = path_label(name, y), np.where(y > 0, y, np.nan)
        # An error bar that reaches below zero would end at no place of a log axis.
        low = np.minimum(error, 0.999 * np.nan_to_num(shown))
        bars = axis.errorbar(x, shown, (low, error), fmt="-", capsize=2, linewidth=1.2, label=label)
        colour = bars[0].get_color()
        faces = [colour if ok else "white" for ok in sure]
        axis.scatter(x, shown, s=28, facecolors=faces, edgecolors=colour, zorder=3)
    axis.set(xlabel="factor α", ylabel="measure", title=path_note(result))
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(figure: Any, result: Slice) -> None:
    axis = figure.subplots()
    order = result.distances[0].argsort()
    x, y = result.distances[0][order].numpy(), result.losses[order].numpy()
    finite = np.isfinite(y)
    axis.plot(x, np.where(finite, y, np.nan), ".-", color=_LOSS, ms=4, lw=1.4, label="loss")
    if result.quadratic is not None:
        fine = torch.linspace(float(x[0]), float(x[-1]), 400, dtype=torch.float64)
        axis.plot(fine, result.quadratic(fine), "--", color=_MODEL, lw=1.1, label="quadratic model")
    if finite.any():
        # The loss sets the scale: far out the quadratic model would hide it.
        low, high = float(y[finite].min()), float(y[finite].max())
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        axis.set_ylim(low - room, high + 2 * room)
    for label, marker, is_kind in _NOT_FINITE:
        if (kind := is_kind(y) & _computed(result)[order.numpy()]).any():
            top = axis.get_xaxis_transform()
            axis.plot(
                x[kind], np.full(kind.sum(), 0.97), marker, color="tab:red", transform=top,
                label=f"loss is {label}",
            )  # fmt: skip
    axis.axvline(0, color="0.7", lw=0.8, zorder=0)
    axis.set(xlabel=f"distance along {result.names[0]}", ylabel="loss")
    axis.grid(alpha=0.25)
    handles, labels = axis.get_legend_handles_labels()
    if result.accuracies is not None:
        right = axis.twinx()
        accuracy = 100 * result.accuracies[order].numpy()
        right.plot(x, accuracy, ":", color=_ACCURACY, lw=1.6, label="accuracy")
        right.set_ylabel("accuracy (%)", color=_ACCURACY)
        right.tick_params(axis="y", colors=_ACCURACY)
        right.set_ylim(0, 103)
        handles, labels = handles + (more := right.get_legend_handles_labels())[0], labels + more[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)


def _contours(figure: Any, result: Slice) -> None:
    from matplotlib.colors import LogNorm, Normalize

    axis = figure.subplots()
    order = [d.argsort() for d in result.distances]
    x, y = (d[o].numpy() for d, o in zip(result.distances, order, strict=True))
    z = result.losses[order[0]][:, order[1]].numpy()
    computed = _computed(result)[order[0].numpy()][:, order[1].numpy()]
    axis.set_facecolor("0.88")
    finite = np.isfinite(z)
    if finite.any():
        levels, logarithmic = contour_levels(z[finite])
        norm = (LogNorm if logarithmic else Normalize)(levels[0], levels[-1])
        shown = np.ma.masked_invalid(np.maximum(z, levels[0]) if logarithmic else z)
        drawn = axis.contourf(x, y, shown.T, levels, norm=norm, cmap="viridis")
        axis.contour(
            x, y, shown.T, levels[::2], norm=norm, colors="white", linewidths=0.4, alpha=0.5
        )
        ticks = levels[np.linspace(0, len(levels) - 1, 7).round().astype(int)]
        bar = figure.colorbar(drawn, ax=axis, ticks=ticks, format="%.3g")
        bar.set_label("loss (log scale)" if logarithmic else "loss")
        bar.minorticks_off()
    for label, marker, is_kind in _NOT_FINITE:
        if (kind := is_kind(z) & computed).any():
            i, j = np.nonzero(kind)
            axis.scatter(
                x[i], y[j], s=9, marker=marker, color="tab:red", lw=0.7, clip_on=False,
                label=f"loss is {label}",
            )  # fmt: skip
    (a, b), lowest = result.minimum
    if np.isfinite(lowest):
        label = f"{result.lowest_label}, {lowest:.4g}"
        axis.plot(a, b, "*", color="white", mec="black", ms=15, ls="", label=label)
    axis.plot(0, 0, "+", color="tab:red", ms=9, mew=1.8, ls="", label=f"θ, {result.loss:.4g}")
    axis.set(
        xlabel=f"distance along {result.names[0]}",
        ylabel=f"distance along {result.names[1]}",
        xlim=(x[0], x[-1]),
        ylim=(y[0], y[-1]),
    )
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)


def _computed(result: Slice) -> np.ndarray:
    """Which points were computed: those of an interrupted grid are NaN without being so."""
    count = np.arange(result.losses.numel()) < result.points
    return count.reshape(tuple(result.losses.shape))
