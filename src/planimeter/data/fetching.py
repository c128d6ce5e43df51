"""Fetching the files of a data set: checked, resumable, and nothing half-written in place.

A file grows as `NAME.partial` beside its place. A download that was cut off goes on where it ended
when it is asked for again (an HTTP range); a whole one is moved into place when its checksum is
right, and removed when it is not.
"""

from __future__ import annotations

import functools
import http.client
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from planimeter.data.files import FileSet, missing_files
from planimeter.errors import InputError

Progress = Callable[[str, int, int], None]
_PIECE = 1 << 18
_TIMEOUT = 30.0


def fetch(
    files: FileSet,
    *,
    address: str | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Download the files that are missing into the data folder, checksums verified.

    Arguments:
        files: which.
        address: of another mirror's folder; None for the usual one.
        progress: called with the name of a file, its bytes that are here and those that it has
            (0 where the server does not say), at its start and as it grows.

    Raises:
        InputError: a file cannot be fetched or its checksum is wrong; names where to put it.
    """
    import pooch

    source = (address or files.address).rstrip("/")
    missing = missing_files(files)
    if missing and not files.address:
        raise InputError(f"{files.name} cannot be fetched: {files.way_out()}")
    for path in missing:
        partial = path.with_name(f"{path.name}.partial")
        try:
            # pooch checks the sum of what the downloader hands it, then moves it into place.
            pooch.retrieve(
                f"{source}/{path.name}",
                known_hash=f"md5:{files.md5[path.name]}",
                fname=path.name,
                path=path.parent,
                downloader=functools.partial(_download, partial=partial, progress=progress),
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            kept = f"; {partial.name} goes on from there next time" if partial.exists() else ""
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()  # made for a file that did not come
            raise InputError(
                f"cannot fetch {source}/{path.name} ({type(error).__name__}: "
                f"{' '.join(str(error).split())}){kept}: put the file at {path} by hand (md5 "
                f"{files.md5[path.name]})"
            ) from error
    return files.path


def _download(url: str, output: str, _: Any, *, partial: Path, progress: Progress) -> None:
    """Let `partial` grow to the whole file, then hand it over as `output`."""
    here = partial.stat().st_size if partial.exists() else 0
    name = partial.name.removesuffix(".partial")
    progress(name, here, 0)
    request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != 206:  # the whole file, from a server that knows no ranges
                here = 0
            total = here + int(response.headers.get("Content-Length") or 0)
            with partial.open("ab" if here else "wb") as grows:
                while piece := response.read(_PIECE):
                    grows.write(piece)
                    here += len(piece)
                    progress(name, here, total)
    except HTTPError as error:
        # 416: there is nothing after what is here, so it is whole, or its sum is wrong.
        if error.code != 416:
            raise
        total = here
    if here < total:
        raise OSError(f"the connection ended after {here} of {total} bytes")
    shutil.move(partial, output)
