"""What SQLite says when results cannot be read or written, in words with the way out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planimeter.errors import InputError


class Locked(InputError):
    """Another program holds the file."""


class Gone(InputError):
    """The file is not there any more."""


class Damaged(InputError):
    """The file is no database, or parts of it cannot be read."""


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside into an `InputError`; a broken promise of ours stays raw.

    Raises:
        Locked, Gone, Damaged: see there.
        InputError: the disk is full, or the file may not be read or written.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _explained(path, error) from error
    except TypeError as error:
        if "unexpected keyword" not in str(error) and "required positional" not in str(error):
            raise
        raise InputError(
            f"{path} has trials of another version of planimeter ({error}): read it with that one"
        ) from error


def is_gone(path: Path) -> Gone:
    """The error for a file that was deleted or moved."""
    return Gone(f"{path} is not there any more: it was deleted or moved while it was in use")


def damaged(path: Path, why: object) -> Damaged:
    """The error for a file that cannot be read whole."""
    words = " ".join(str(why).split())
    return Damaged(
        f"{path} is damaged ({words}): `planimeter study repair {path.parent}` rescues what can "
        f"be read"
    )


def _explained(path: Path, error: Exception) -> InputError:
    name, words = getattr(error, "sqlite_errorname", ""), str(error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Locked(
            f"{path} is held by another program (a backup, a browser of databases): end it, and "
            f"give the command again; what was stored is kept"
        )
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR_WRITE")):
        return InputError(
            f"cannot write to {path}: the disk is full; free some space there, and give the "
            f"command again; what was stored is kept"
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        if not path.parent.exists() or name == "SQLITE_READONLY_DBMOVED":
            return is_gone(path)
        return InputError(
            f"cannot open {path} ({words}): it, or its folder, may not be read or written by you"
        )
    if name.startswith("SQLITE_IOERR"):
        return InputError(
            f"the disk of {path} does not read or write ({words}): copy the folder elsewhere, and "
            f"give the command again"
        )
    if "no such table" in words or "no such column" in words:
        return damaged(path, f"it has no tables of a study: {words}")
    return damaged(path, words)
