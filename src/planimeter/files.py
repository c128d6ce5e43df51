"""Files that appear when they are whole, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planimeter.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, moved into place when all is written.

    What was at `path` stays until then, and nothing of a file that was begun is left behind. Its
    folder is made if need be.

    Raises:
        InputError: the system does not let it be written; says why.
    """
    # The ending stays, which tells writers of figures what to write.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> InputError:
    """What the system refused, in words, with the way out where there is one."""
    reason = error.strerror or str(error) or type(error).__name__
    way_out = "; free some space there, and give the command again" if error.errno in _FULL else ""
    return InputError(f"cannot write to {path}: {reason}{way_out}")
