"""`planimeter data`: which data sets there are, and fetching them."""

from __future__ import annotations

from typing import Annotated

import typer

from planimeter.cli.output import AsJson, errors, output, print_json, print_table
from planimeter.data import DATASETS
from planimeter.data.files import data_folder, fetch, missing_files
from planimeter.errors import InputError

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.command("list", epilog="Example: planimeter data list")
def list_data(as_json: AsJson = False) -> None:
    """The data sets, and whether their files are here."""
    rows = []
    for name, info in DATASETS.items():
        missing = missing_files(info.files) if info.files else []
        state = "ready" if not missing else f"missing: planimeter data fetch {name}"
        rows.append((name, info.description, state))
    if as_json:
        content = [{"name": n, "description": d, "ready": s == "ready"} for n, d, s in rows]
        print_json({"folder": str(data_folder()), "data": content})
    else:
        print_table(f"Data sets (files in {data_folder()})", ("name", "what", "state"), rows)


@app.command("fetch", epilog="Example: planimeter data fetch mnist")
def fetch_data(
    name: Annotated[str, typer.Argument(help="Name of a data set.")],
    mirror: Annotated[
        str | None, typer.Option(help="Address of another folder of its files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a data set into $PLANIMETER_DATA, checksums verified."""
    if name not in DATASETS:
        raise InputError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    files = DATASETS[name].files
    if files is None:
        where = "embedded: nothing to fetch"
    else:
        folder = fetch(files, address=mirror, progress=lambda f: errors.print(f"fetching {f}"))
        where = f"in {folder}"
    if as_json:
        print_json({"name": name, "where": where})
    else:
        output.print(f"{name} is {where}", highlight=False)
