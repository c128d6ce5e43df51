"""The command tree, and how errors and interrupts end it."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import typer

from planimeter import __version__
from planimeter.cli import audit, data, demo, measure, prior, sample, slice, study
from planimeter.cli.once import Once
from planimeter.cli.output import errors
from planimeter.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    """How flat and how probable a trained network is, and which of the two matters."""
    if version:
        typer.echo(f"planimeter {__version__}, torch {torch.__version__}")
        raise typer.Exit


app.command("demo")(demo.demo)
app.command("measure")(measure.measure)
app.command("prior")(prior.prior)
app.command("sample")(sample.sample)
app.command("audit")(audit.audit)
app.command("slice")(slice.slice_)
app.add_typer(study.app, name="study")
app.add_typer(data.app, name="data")
for command in (
    *app.registered_commands,
    *study.app.registered_commands,
    *data.app.registered_commands,
):
    command.cls = Once


def main() -> None:
    """Run a command; wrong input ends with one sentence and exit code 2, Ctrl-C with 130."""
    try:
        app()
    except InputError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        # Commands that keep something end with a message of their own and Exit.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            errors.print("interrupted")
        raise
