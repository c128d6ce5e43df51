"""Figures as files: refused before anything is computed where they could not be written."""

from __future__ import annotations

from pathlib import Path

from planimeter.errors import InputError, check_writable

PRINTED = (".png", ".pdf", ".svg")
INTERACTIVE = ".html"


def check_figure_path(path: Path, *, interactive: bool = False) -> None:
    """Refuse a file that no figure could be written to.

    Arguments:
        interactive: whether a figure that can be turned, .html, is one.

    Raises:
        InputError: the name has another ending, or there is no writing there.
    """
    kinds = (*PRINTED, INTERACTIVE) if interactive else PRINTED
    if path.suffix not in kinds:
        known = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
        raise InputError(f"figures are written as {known}, got {path}")
    check_writable(path)
