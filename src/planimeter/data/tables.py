"""Binary tables of the UCI repository: ionosphere, sonar, haberman, banknote, breast cancer.

Columns are kept as they are, in their units: `standardised` makes them comparable by the
statistics of the training set. A row with a missing value (`?`) is left out. Sums are of the
copies that this was written with; the lines that they are of are those of the repository's files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planimeter.data.dataset import Dataset
from planimeter.data.files import FileSet, read_members
from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError


@dataclass(frozen=True)
class Table:
    """A file of comma-separated rows whose last column is the class.

    Arguments:
        files: the one file.
        zero, one: what stands in the last column for classes 0 and 1.
        columns: numbers before the class.
        skipped: columns at the front that are no data (an identifier).
    """

    files: FileSet
    zero: str
    one: str
    columns: int
    skipped: int = 0


# By file: the sum of its lines, and what the repository calls it if copies have another name.
_FILES = {
    "ionosphere.data": ("a49bc18511a602542b02ce7020507a56", ""),
    "sonar.csv": ("84e1c0186ca4654f24ae4525cbb42a12", "sonar.all-data"),
    "haberman.csv": ("a2c38836f8d99adfb80ceef823b3ba61", "haberman.data"),
    "banknote_authentication.csv": (
        "1e38016104f5322a0ee1dbbb37a55179",
        "data_banknote_authentication.txt",
    ),
    "breast-cancer-wisconsin.data": ("a7dd3203695a7a0607943fa059958772", ""),
}


def _files(name: str, file: str, number: int) -> FileSet:
    """A table's one file; `number` is the repository's own for the data set."""
    md5, published = _FILES[file]
    called = f", where it is called {published}" if published else ""
    return FileSet(
        name,
        md5={file: md5},
        members={file: md5},
        source=f"from https://archive.ics.uci.edu/dataset/{number}{called}",
        folder="uci",
        also={file: published} if published else None,
        text=True,
    )


IONOSPHERE = Table(_files("ionosphere", "ionosphere.data", 52), "b", "g", 34)
SONAR = Table(_files("sonar", "sonar.csv", 151), "R", "M", 60)
HABERMAN = Table(_files("haberman", "haberman.csv", 43), "1", "2", 3)
BANKNOTE = Table(_files("banknote", "banknote_authentication.csv", 267), "0", "1", 4)
BREAST_CANCER = Table(
    _files("breast-cancer-wisconsin", "breast-cancer-wisconsin.data", 15), "2", "4", 9, skipped=1
)


def load_table(table: Table) -> Dataset:
    """A table, without the rows that have a missing value.

    Raises:
        InputError: its file is not there or is damaged.
    """
    ((file, content),) = read_members(table.files)
    lines = content.decode("ascii").split()
    rows = [line.split(",")[table.skipped :] for line in lines if "?" not in line]
    for row in rows:
        if len(row) != table.columns + 1 or row[-1] not in (table.zero, table.one):
            raise InputError(f"{file} has a row that is not of its form: {','.join(row)}")
    values = torch.tensor([[float(v) for v in row[:-1]] for row in rows], dtype=torch.float64)
    labels = torch.tensor([int(row[-1] == table.one) for row in rows])
    return Dataset(table.files.name, StoredInputs(values.float()), labels, None, None, 2)
