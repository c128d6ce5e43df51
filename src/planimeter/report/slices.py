"""Figures of slices of a loss, and of the path of a sharpness: to print, by matplotlib.

The same to explore, as HTML, is in `interactive_slices`; the name of the file decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from planimeter.errors import InputError
from planimeter.files import whole
from planimeter.report.files import INTERACTIVE, check_figure_path
from planimeter.slices import SharpnessPath, Slice

LEVELS = 24
"""Bands of the filled contours."""

_LOSS, _MODEL, _ACCURACY = "tab:blue", "black", "tab:orange"
_NOT_FINITE = (("∞", "^", np.isposinf), ("−∞", "v", np.isneginf), ("NaN", "x", np.isnan))


def save_slice_figure(result: Slice, path: Path, title: str = "") -> None:
    """A curve with the accuracy and the quadratic model, or filled contours on a log scale.

    Arguments:
        result: of one or two directions; losses that are not finite are marked, not left out.
        path: .png, .pdf or .svg, or .html for a curve or surface that can be turned and read off,
            in one file that needs nothing else.
        title: over the figure.

    Raises:
        InputError: another file name, a plane of fewer than 2×2 points, or the file cannot be
            written.
    """
    check_figure_path(path, interactive=True)
    _refuse_thin(result)
    if path.suffix == INTERACTIVE:
        from planimeter.report.interactive_slices import interactive_slice

        _save(interactive_slice(result, title), path)
    else:
        _save(printed_slice(result, title), path)


def save_path_figure(result: SharpnessPath, path: Path, title: str = "") -> None:
    """Each measure with its error bars against the factor, both axes logarithmic.

    Arguments:
        result: values that are not positive have no place on the axes; the legend counts them.
        path: .png, .pdf or .svg, or .html.
        title: over the figure.

    Raises:
        InputError: another file name, or the file cannot be written.
    """
    check_figure_path(path, interactive=True)
    if path.suffix == INTERACTIVE:
        from planimeter.report.interactive_slices import interactive_path

        _save(interactive_path(result, title), path)
    else:
        _save(printed_path(result, title), path)


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


def path_curves(result: SharpnessPath) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Values, drawable errors and convergence of each measure, by rising factor."""
    order = result.factors.argsort()
    return {
        name: (
            values[order].numpy(),
            np.nan_to_num(result.errors[name][order].numpy(), posinf=0.0),
            result.converged[name][order].numpy(),
        )
        for name, values in result.values.items()
    }


def path_label(name: str, values: np.ndarray) -> str:
    """The name, with the number of values that a log axis has no place for."""
    lost = int((~(np.isfinite(values) & (values > 0))).sum())
    return f"{name} ({lost} not positive)" if lost else name


def path_note(result: SharpnessPath) -> str:
    """Whether the loss stays the same along the path."""
    told = "the loss stays the same" if result.loss_kept else "THE LOSS CHANGES"
    return f"{told}: relative change {result.loss_change:.1e}"


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


def contour_levels(losses: np.ndarray) -> tuple[np.ndarray, bool]:
    """Levels for finite losses, and whether they are logarithmic: they are unless some is < 0.

    A loss of exactly 0 has no logarithm and is drawn with the smallest that has one.
    """
    low, high = float(losses.min()), float(losses.max())
    positive = losses[losses > 0]
    if low < 0 or not len(positive):
        room = 1e-9 * (high - low) or 1e-3 * abs(high) or 1e-3
        return np.linspace(low - room, high + room, LEVELS), False
    low = float(positive.min())
    room = 1e-9 if high > low * (1 + 1e-6) else 1e-3
    return np.geomspace(low * (1 - room), high * (1 + room), LEVELS), True


def _computed(result: Slice) -> np.ndarray:
    """Which points were computed: those of an interrupted grid are NaN without being so."""
    count = np.arange(result.losses.numel()) < result.points
    return count.reshape(tuple(result.losses.shape))


def _refuse_thin(result: Slice) -> None:
    if result.losses.ndim == 2 and min(result.losses.shape) < 2:
        raise InputError(
            f"a plane of {'×'.join(map(str, result.losses.shape))} points has no contours: give "
            f"at least 2×2 distances, or use slice_1d"
        )


def _save(figure: Any, path: Path) -> None:
    with whole(path) as beside:
        if path.suffix == INTERACTIVE:
            figure.write_html(beside, include_plotlyjs=True, config={"displaylogo": False})
        else:
            figure.savefig(beside, dpi=150)
