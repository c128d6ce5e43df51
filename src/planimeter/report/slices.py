"""Files with figures of slices of a loss, and of the path of a sharpness.

To print (`printed_slices`), or to explore (`interactive_slices`): the name of the file decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planimeter.errors import InputError
from planimeter.files import whole
from planimeter.report.files import INTERACTIVE, check_figure_path
from planimeter.report.printed_slices import printed_path, printed_slice
from planimeter.slices import SharpnessPath, Slice


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
