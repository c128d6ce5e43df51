"""How every command prints: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import math
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
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

output = Console()
errors = Console(stderr=True)
SILENCE = 10.0
"""Seconds between two lines of progress where no bar can be drawn."""

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
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, whole: int = 0
) -> None:
    """A table; long cells are folded, but not those of the first `whole` columns."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for place, column in enumerate(columns):
        table.add_column(escape(column), overflow="fold", no_wrap=place < whole)
    for row in rows:
        table.add_row(*map(escape, row))
    output.print(table)


def print_wide_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose cells stay whole: columns that do not fit follow below, the first one again."""
    widths = [max(map(len, column)) + 3 for column in zip(columns, *rows, strict=True)]
    groups: list[list[int]] = [[0]]
    for place in range(1, len(columns)):
        taken = sum(widths[p] for p in groups[-1])
        if len(groups[-1]) > 1 and taken + widths[place] > output.width:
            groups.append([0])
        groups[-1].append(place)
    for number, group in enumerate(groups):
        print_table(
            "" if number else title,
            [columns[place] for place in group],
            [[row[place] for place in group] for row in rows],
            whole=len(group),
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
    """A bar, or lines for a log."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._began = self._spoke = time.monotonic()

    def update(self, task_id: TaskID, *arguments: Any, **settings: Any) -> None:
        super().update(task_id, *arguments, **settings)
        now = time.monotonic()
        if self.disable and now - self._spoke >= SILENCE:
            self._spoke = now
            task = self.tasks[self.task_ids.index(task_id)]
            of = "" if task.total is None else f", {task.completed:g} of {task.total:g}"
            left = task.time_remaining
            more = "" if left is None else f", about {left:.0f} s left"
            errors.print(
                f"{now - self._began:.0f} s: {escape(task.description)}{of}{more}",
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
