"""What the figures of slices and paths show, as plain values."""

from __future__ import annotations

import numpy as np

from planimeter.slices import SharpnessPath

LEVELS = 24
"""Bands of the filled contours."""


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
