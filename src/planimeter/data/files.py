"""Files of data sets: where they are looked for, their checksums, and fetching them.

Nothing is downloaded unless `fetch` is called. Files are read from `$PLANIMETER_DATA/NAME/`,
or from `~/.cache/planimeter/NAME/` when the variable is not set.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from planimeter.errors import InputError


@dataclass(frozen=True)
class FileSet:
    """The files of a data set as they are fetched, and what is in them.

    Arguments:
        name: of the data set and of its folder.
        md5: sums of the files, by name.
        address: of the folder that they are fetched from.
        members: for a tar archive, md5 sums of the files in it, by path. They are also taken
            unpacked, with or without the archive's own folder.
        repacked: other names under which the archive is looked for, .tar.gz or .tar.xz; only its
            members are checked.
    """

    name: str
    md5: dict[str, str]
    address: str
    members: dict[str, str] = field(default_factory=dict)
    repacked: tuple[str, ...] = ()


def data_folder() -> Path:
    """`$PLANIMETER_DATA`, or `~/.cache/planimeter`."""
    configured = os.environ.get("PLANIMETER_DATA")
    return Path(configured) if configured else Path.home() / ".cache" / "planimeter"


def missing_files(files: FileSet) -> list[Path]:
    """Paths of the files that are not there; none where what is in them is there otherwise."""
    folder = data_folder() / files.name
    if files.members and (_unpacked(files) or _archive(files)):
        return []
    return [folder / name for name in files.md5 if not (folder / name).is_file()]


def read_checked(files: FileSet, name: str) -> bytes:
    """The bytes of one file, whose checksum is verified.

    Raises:
        InputError: the file is missing (names the path looked at and the command that fetches
            it) or its checksum is wrong.
    """
    path = data_folder() / files.name / name
    if not path.is_file():
        raise _missing(files, path)
    return _checked(path.read_bytes(), files.md5[name], path, files)


def read_members(files: FileSet) -> Iterator[tuple[str, bytes]]:
    """Path in the archive and bytes of each member, one at a time, checksums verified.

    Unpacked files are preferred, as they need no decompression. An archive is read once from
    front to end, so the members come in its order.

    Raises:
        InputError: neither an archive nor all of its files unpacked are there (names the path
            looked at and the command that fetches it), or a file is damaged.
    """
    archive = _archive(files)
    if unpacked := _unpacked(files):
        for name, path in unpacked.items():
            yield name, _checked(path.read_bytes(), files.members[name], path, files)
    elif archive:
        yield from _read_archive(archive, files)
    else:
        others = [*files.repacked, f"its {len(files.members)} files unpacked"]
        path = data_folder() / files.name / next(iter(files.md5))
        raise _missing(files, path, f" (nor {' nor '.join(others)})")


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


def _unpacked(files: FileSet) -> dict[str, Path]:
    """Where each member lies unpacked; empty unless all do."""
    folder, found = data_folder() / files.name, {}
    for name in files.members:
        for path in (folder / name, folder / PurePosixPath(name).name):
            if path.is_file():
                found[name] = path
                break
    return found if len(found) == len(files.members) else {}


def _archive(files: FileSet) -> Path | None:
    folder = data_folder() / files.name
    paths = (folder / name for name in (*files.md5, *files.repacked))
    return next((path for path in paths if path.is_file()), None)


def _read_archive(path: Path, files: FileSet) -> Iterator[tuple[str, bytes]]:
    absent = dict(files.members)
    try:
        with tarfile.open(path, "r:xz" if path.suffix == ".xz" else "r:gz") as archive:
            for entry in archive:
                name = str(PurePosixPath(entry.name))
                content = archive.extractfile(entry) if name in absent else None
                if content is not None:
                    yield name, _checked(content.read(), absent.pop(name), path / name, files, path)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it and run `planimeter data fetch {files.name}`"
        ) from error
    if absent:  # tarfile takes an archive that is cut off between two files for a whole one
        raise InputError(
            f"{path} has no {next(iter(absent))}: delete it and run `planimeter data fetch "
            f"{files.name}`"
        )


def _checked(
    content: bytes, md5: str, path: Path, files: FileSet, archive: Path | None = None
) -> bytes:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise InputError(
            f"{path} is damaged: its md5 is {digest}, it should be {md5}; delete {archive or 'it'} "
            f"and run `planimeter data fetch {files.name}`"
        )
    return content


def _missing(files: FileSet, path: Path, others: str = "") -> InputError:
    return InputError(
        f"{files.name} needs {path}, which does not exist{others}: set PLANIMETER_DATA to the "
        f"folder that holds {files.name}/, or run `planimeter data fetch {files.name}`"
    )
