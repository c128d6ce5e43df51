"""The one exception for input that a user can mend, and what several floors refuse by it."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Something that was passed in is wrong; the message names the value and the way out.

    The command line prints the message alone and exits with code 2.
    """


class MeasurementWarning(UserWarning):
    """A measurement went on in another way than asked, and its message says how and why."""


class NotApplicableError(InputError):
    """A measure has no meaning for this network or loss; the message says why."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown word: `; did you mean 'digits'?`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_writable(path: Path) -> None:
    """Refuse, before anything is computed, a file that could not be written; makes its folder.

    Raises:
        InputError: the system does not let it be written; says why.
    """
    # The file itself is left alone: another process may be writing it.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        what = "it is a folder" if path.is_dir() else "it may not be changed"
        raise InputError(f"cannot write to {path}: {what}")
