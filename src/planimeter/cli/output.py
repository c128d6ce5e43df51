"""How every command prints: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SILENCE = 10.0
"""Seconds between two lines of progress where no bar can be drawn."""
PIPED = 160
"""Characters in a line of a file or pipe, unless COLUMNS says otherwise."""


def _console(*, stderr: bool = False) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if terminal else PIPED)


output = _console()
errors = _console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Mean = Annotated[
    str | None, typer.Option(help="Subtracted from the inputs in [0, 1]: a number a channel.")
]
Std = Annotated[str | None, typer.Option(help="What they are then divided by, a number a channel.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random in this command.")]


def print_json(content: Any) -> None:
    """Strict JSON on standard output: NaN becomes null, infinities become strings."""
    typer.echo(json.dumps(_strict(content), indent=2, ensure_ascii=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Iterable[str]], *, whole: Sequence[bool] = ()
) -> None:
    """A table; long cells are folded, but for the columns that are to stay `whole`."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for column, keep in zip(columns, whole or [False] * len(columns), strict=True):
        table.add_column(escape(column), overflow="fold", no_wrap=keep)
    for row in rows:
        table.add_row(*map(escape, row))
    output.print(table)


def print_wide_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, fold: int | None = None
) -> None:
    """A table whose cells stay whole: columns that do not fit follow below, the first one again.

    Arguments:
        fold: cells of other columns than the first may be folded to this many characters.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    whole = [place == 0 or fold is None or width <= fold for place, width in enumerate(widths)]
    widths = [w + 3 if keep else (fold or 0) + 3 for w, keep in zip(widths, whole, strict=True)]
    groups: list[list[int]] = [[0]]
    for place in range(1, len(columns)):
        taken = sum(widths[p] for p in groups[-1])
        if len(groups[-1]) > 1 and taken + widths[place] > output.width:
            groups.append([0])
        groups[-1].append(place)
    for number, group in enumerate(groups):
        fits = sum(widths[place] for place in group) <= output.width
        print_table(
            "" if number else title,
            [columns[place] for place in group],
            [[row[place] for place in group] for row in rows],
            whole=[whole[place] and fits for place in group],
        )


def progress_bar() -> Progress:
    """A bar on standard error, with counts, elapsed and remaining time.

    Where that is no terminal, a line every ten seconds.
    """
    return _Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


class _Progress(Progress):
    """A bar; or lines for a log, also while nothing is heard of what runs."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._began = time.monotonic()
        self._over = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def start(self) -> None:
        super().start()
        if self.disable:
            self._speaker.start()

    def stop(self) -> None:
        self._over.set()
        if self._speaker.is_alive():
            self._speaker.join()
        super().stop()

    def _speak(self) -> None:
        while not self._over.wait(SILENCE):
            for task in self.tasks:
                if task.finished:
                    continue
                of = "" if task.total is None else f", {task.completed:g} of {task.total:g}"
                left = task.time_remaining
                more = "" if left is None else f", about {left:.0f} s left"
                errors.print(
                    f"{time.monotonic() - self._began:.0f} s: {escape(task.description)}{of}{more}",
                    highlight=False,
                    soft_wrap=True,
                )


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
