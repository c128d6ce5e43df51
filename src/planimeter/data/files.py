"""Files of data sets: where they are looked for, and their checksums.

Nothing is downloaded unless `planimeter.data.fetching.fetch` is called. Files are read from
`$PLANIMETER_DATA/FOLDER/`, or from `~/.cache/planimeter/FOLDER/` when the variable is not set.

What is in a file is checked rather than how it was packed: gzip and tar give other bytes wherever
they are run, and the copy in a Linux distribution has other sums than the one that was published.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from planimeter.errors import InputError


@dataclass(frozen=True)
class FileSet:
    """The files of a data set as they are published, and what is in them.

    Arguments:
        name: of the data set.
        md5: sums of the files as they are published, by name: a tar archive, or one file a member,
            as it is or with gzip (`.gz` added to its name).
        members: md5 sums of the files that data are read from, by path in the archive. They are
            also taken unpacked, with or without the archive's own folder. Without sums (None),
            only an archive with the right sum of its own is taken.
        address: of the folder that the files are fetched from; empty if they cannot be fetched.
        source: where a person gets them, if they cannot be fetched.
        folder: in the data folder; the data set's name if empty.
        elsewhere: other folders in which a system may have them.
        repacked: other names under which the archive is looked for, .tar.gz or .tar.xz; only its
            members are checked.
        also: other names of members, by member.
        text: members are text, whose sums are of its lines without the spaces at their ends and
            without empty ones: copies differ in how lines end.
    """

    name: str
    md5: Mapping[str, str]
    members: Mapping[str, str | None]
    address: str = ""
    source: str = ""
    folder: str = ""
    elsewhere: tuple[str, ...] = ()
    repacked: tuple[str, ...] = ()
    also: Mapping[str, str] | None = None
    text: bool = False

    @property
    def path(self) -> Path:
        """The folder in which the files are looked for first."""
        return data_folder() / (self.folder or self.name)

    def way_out(self) -> str:
        """What a person can do to get the files, as the end of a sentence."""
        if self.address:
            return f"run `planimeter data fetch {self.name}`"
        return f"put {' and '.join(self.md5)} into {self.path} ({self.source})"


def data_folder() -> Path:
    """`$PLANIMETER_DATA`, or `~/.cache/planimeter`."""
    configured = os.environ.get("PLANIMETER_DATA")
    return Path(configured) if configured else Path.home() / ".cache" / "planimeter"


def found_files(files: FileSet) -> list[Path]:
    """The files that data would be read from; empty unless all that is needed is there."""
    unpacked = {name: _unpacked(files, name) for name in files.members}
    there = [path for path in unpacked.values() if path is not None]
    if len(there) == len(unpacked) and None not in files.members.values():
        return there
    archive = _archive(files)
    return [archive] if archive else []


def missing_files(files: FileSet) -> list[Path]:
    """Paths of the published files that are needed; none where their content is there."""
    if found_files(files):
        return []
    present = {
        path.name.removesuffix(".gz") for m in files.members if (path := _unpacked(files, m))
    }
    return [files.path / name for name in files.md5 if name.removesuffix(".gz") not in present]


def read_members(files: FileSet) -> Iterator[tuple[str, bytes]]:
    """Path in the archive and bytes of each member, one at a time, checksums verified.

    Unpacked files are preferred, as they need no decompression. An archive is read once from
    front to end, so the members come in its order.

    Raises:
        InputError: the files are not there (names the path looked at, and the way out), or one is
            damaged.
    """
    paths = found_files(files)
    if not paths:
        raise _missing(files)
    if paths[0] == _archive(files):
        yield from _read_archive(paths[0], files)
        return
    for name, path in zip(files.members, paths, strict=True):
        yield name, _checked(_content(path, files), files.members[name], path, path, files)


def _unpacked(files: FileSet, member: str) -> Path | None:
    """Where a member lies as a file of its own, as it is or with gzip."""
    base = PurePosixPath(member).name
    names = [member, base, f"{base}.gz"]
    if files.also and member in files.also:
        names.append(files.also[member])
    for folder in (files.path, *map(Path, files.elsewhere)):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def _archive(files: FileSet) -> Path | None:
    """A tar archive with all members."""
    paths = (files.path / name for name in (*files.md5, *files.repacked) if ".tar." in name)
    return next((path for path in paths if path.is_file()), None)


def _content(path: Path, files: FileSet) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, files, str(error)) from error


def _read_archive(path: Path, files: FileSet) -> Iterator[tuple[str, bytes]]:
    if None in files.members.values():
        with path.open("rb") as archive_file:
            digest = hashlib.file_digest(archive_file, _md5).hexdigest()
        if digest != files.md5.get(path.name):
            raise _wrong_sum(path, digest, str(files.md5.get(path.name)), path, files)
    absent = dict(files.members)
    try:
        with tarfile.open(path, "r:xz" if path.suffix == ".xz" else "r:gz") as archive:
            for entry in archive:
                name = str(PurePosixPath(entry.name))
                content = archive.extractfile(entry) if name in absent else None
                if content is not None:
                    yield name, _checked(content.read(), absent.pop(name), path / name, path, files)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise _damaged(path, files, str(error)) from error
    if absent:  # tarfile takes an archive that is cut off between two files for a whole one
        raise InputError(f"{path} has no {next(iter(absent))}: delete it and {files.way_out()}")


def _checked(content: bytes, md5: str | None, path: Path, to_delete: Path, files: FileSet) -> bytes:
    if md5 is None:
        return content
    hashed = content
    if files.text:
        hashed = b"\n".join(line.strip() for line in content.splitlines() if line.strip())
    digest = _md5(hashed).hexdigest()
    if digest != md5:
        raise _wrong_sum(path, digest, md5, to_delete, files)
    return content


def _md5(content: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(content, usedforsecurity=False)


def _wrong_sum(path: Path, got: str, right: str, to_delete: Path, files: FileSet) -> InputError:
    what = "it" if to_delete == path else to_delete
    return InputError(
        f"{path} is damaged: its md5 is {got}, it should be {right}; delete {what} and "
        f"{files.way_out()}"
    )


def _damaged(path: Path, files: FileSet, why: str) -> InputError:
    return InputError(f"{path} is damaged ({why}): delete it and {files.way_out()}")


def _missing(files: FileSet) -> InputError:
    first = missing_files(files)[0]
    others = list(files.repacked)
    if ".tar." in first.name and None not in files.members.values():
        others.append(f"its {len(files.members)} files unpacked")
    nor = f" (nor {' nor '.join(others)})" if others else ""
    return InputError(
        f"{files.name} needs {first}, which does not exist{nor}: set PLANIMETER_DATA to the "
        f"folder that holds {first.parent.name}/, or {files.way_out()}"
    )
