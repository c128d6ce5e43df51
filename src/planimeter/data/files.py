"""Files of data sets: where they are looked for, their checksums, and fetching them.

Nothing is downloaded unless `fetch` is called. Files are read from `$PLANIMETER_DATA/NAME/`,
or from `~/.cache/planimeter/NAME/` when the variable is not set.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planimeter.errors import InputError


@dataclass(frozen=True)
class FileSet:
    """The files of a data set: their md5 sums by file name, and the address of their folder."""

    name: str
    md5: dict[str, str]
    address: str


def data_folder() -> Path:
    """`$PLANIMETER_DATA`, or `~/.cache/planimeter`."""
    configured = os.environ.get("PLANIMETER_DATA")
    return Path(configured) if configured else Path.home() / ".cache" / "planimeter"


def missing_files(files: FileSet) -> list[Path]:
    """Paths of the files that are not there."""
    folder = data_folder() / files.name
    return [folder / name for name in files.md5 if not (folder / name).is_file()]


def read_checked(files: FileSet, name: str) -> bytes:
    """The bytes of one file, whose checksum is verified.

    Raises:
        InputError: the file is missing (names the path looked at and the command that fetches
            it) or its checksum is wrong.
    """
    path = data_folder() / files.name / name
    if not path.is_file():
        raise InputError(
            f"{files.name} needs {path}, which does not exist: set PLANIMETER_DATA to the folder "
            f"that holds {files.name}/, or run `planimeter data fetch {files.name}`"
        )
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != files.md5[name]:
        raise InputError(
            f"{path} is damaged: its md5 is {digest}, it should be {files.md5[name]}; delete it "
            f"and run `planimeter data fetch {files.name}`"
        )
    return content


def fetch(
    files: FileSet,
    *,
    address: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Path:
    """Download the files that are missing into the data folder, checksums verified.

    Arguments:
        files: which.
        address: of another mirror's folder; None for the usual one.
        progress: called with the name of each file before it is fetched.

    Raises:
        InputError: a file cannot be fetched or its checksum is wrong; names where to put it.
    """
    import pooch

    folder = data_folder() / files.name
    source = (address or files.address).rstrip("/")
    for path in missing_files(files):
        progress(path.name)
        try:
            # pooch downloads to a temporary file and moves it into place only when it is whole.
            pooch.retrieve(
                f"{source}/{path.name}",
                known_hash=f"md5:{files.md5[path.name]}",
                fname=path.name,
                path=folder,
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot fetch {source}/{path.name} ({type(error).__name__}): put the file at "
                f"{path} by hand (md5 {files.md5[path.name]})"
            ) from error
    return folder
