"""The figure of spectral densities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from planimeter.curvature import SpectralDensity
from planimeter.files import whole
from planimeter.report.files import check_figure_path

WIDTH = 0.01
"""Width of an eigenvalue's bump, as a part of the range of the spectrum."""


def save_density_figure(densities: dict[str, SpectralDensity], path: Path, title: str) -> None:
    """Each density on a logarithmic axis with its one-standard-error band, as PNG, PDF or SVG.

    Eigenvalues that are known exactly are marked below the curve.

    Raises:
        InputError: another file name, or the file cannot be written.
    """
    check_figure_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(densities), 3.6), layout="constrained")
    axes = figure.subplots(1, len(densities), squeeze=False)[0]
    for axis, (name, density) in zip(axes, densities.items(), strict=True):
        every = torch.cat([density.known, *density.nodes])
        low, high = float(every.min()), float(every.max())
        width = WIDTH * max(high - low, 1e-30)
        grid = torch.linspace(low - 4 * width, high + 4 * width, 1200, dtype=torch.float64)
        values, errors = (t.numpy() for t in density.density(grid, width))
        # Below a tenth of one eigenvalue's bump there is nothing to see.
        floor = 0.1 / (density.size * width * np.sqrt(2 * np.pi))
        axis.fill_between(
            grid, np.maximum(values - errors, floor), np.maximum(values + errors, floor), alpha=0.3
        )
        axis.plot(grid, np.maximum(values, floor), linewidth=1.2)
        axis.plot(density.known, np.full(len(density.known), floor), "|", color="black", ms=9)
        axis.set(
            yscale="log",
            ylim=(0.8 * floor, None),
            xlabel="eigenvalue",
            ylabel="density" if axis is axes[0] else "",
            title=name,
        )
        axis.margins(x=0)
    figure.suptitle(title, fontsize=10)
    with whole(path) as beside:
        figure.savefig(beside, dpi=150)
