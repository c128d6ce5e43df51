"""`planimeter data`: which data sets there are, and fetching them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.progress import TaskID

from planimeter.cli.output import AsJson, output, print_json, print_wide_table, progress_bar
from planimeter.data.datasets import DATASETS, DatasetInfo, known
from planimeter.data.fetching import fetch
from planimeter.data.files import FileSet, data_folder, found_files

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.command("list", epilog="Example: planimeter data list")
def list_data(as_json: AsJson = False) -> None:
    """The data sets: rows, classes, and where their files are or how to get them."""
    content = [_entry(name, info) for name, info in DATASETS.items()]
    if as_json:
        print_json({"folder": str(data_folder()), "data": content})
        return
    rows = [
        (
            entry["name"],
            " + ".join(f"{n:,}" for n in entry["rows"] or [] if n) or "2^n",
            str(entry["classes"]),
            entry["description"],
            entry["where"],
        )
        for entry in content
    ]
    columns = ("name", "rows", "classes", "what", "where")
    print_wide_table(f"Data sets (files in {data_folder()})", columns, rows, fold=30)


@app.command("fetch", epilog="Example: planimeter data fetch mnist")
def fetch_data(
    name: Annotated[str, typer.Argument(help="Name of a data set.")],
    mirror: Annotated[
        str | None, typer.Option(help="Address of another folder of its files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a data set into $PLANIMETER_DATA, checksums verified.

    What was cut off goes on where it ended when the command is given again.
    """
    files = known(name).files
    if files is None:
        where = "embedded: nothing to fetch"
    else:
        with progress_bar() as bar:
            tasks: dict[str, TaskID] = {}

            def show(file: str, done: int, total: int) -> None:
                if file not in tasks:
                    tasks[file] = bar.add_task(f"{file} (bytes)", total=None)
                bar.update(tasks[file], completed=done, total=total or None)

            fetch(files, address=mirror, progress=show)
        where = f"in {_folders(files)}"
    if as_json:
        print_json({"name": name, "where": where})
    else:
        output.print(f"{name} is {where}", highlight=False)


def _entry(name: str, info: DatasetInfo) -> dict[str, Any]:
    files = info.files
    if files is None:
        ready, where = True, "embedded"
    elif found_files(files):
        ready, where = True, _folders(files)
    else:
        ready, where = False, f"missing: {files.way_out()}"
    return {
        "name": name,
        "description": info.description,
        "rows": info.rows,
        "classes": info.classes,
        "class_names": info.class_names,
        "normalisation": info.normalisation,
        "ready": ready,
        "where": where,
    }


def _folders(files: FileSet) -> str:
    """Where the files are."""
    return ", ".join(sorted({str(path.parent) for path in found_files(files)}))
