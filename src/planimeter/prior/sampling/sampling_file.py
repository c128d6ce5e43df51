"""Counts of functions on disk: replaced as a whole every so often, and picked up where they end."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from planimeter.errors import InputError, check_writable
from planimeter.files import whole
from planimeter.prior.sampling.counting import CountTable, Recount


def check_sampling_path(path: Path) -> None:
    """Refuse, before anything is computed, a file that no counts could be kept in.

    Raises:
        InputError: the name does not end in .npz, or there is no writing there.
    """
    if path.suffix != ".npz":
        raise InputError(f"counts are kept in an .npz file, got {path}")
    check_writable(path)


def load_counts(
    path: Path, settings: dict[str, Any]
) -> tuple[CountTable, Recount | None, float] | None:
    """What a file holds: the table, an unfinished recount, the seconds; None if there is no file.

    Raises:
        InputError: the file cannot be read, or belongs to another stream; what differs is named.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = dict(file)
        there = json.loads(str(stored["settings"]))
        differing = [
            f"{key} is {there.get(key)!r} there and {value!r} here"
            for key, value in settings.items()
            if there.get(key) != value
        ]
        if differing:
            raise InputError(
                f"{path} holds other counts ({'; '.join(differing)}): remove it, or give another "
                f"file"
            )
        table = CountTable(
            stored["words"],
            stored["counts"],
            stored["missing"],
            int(stored["threshold"]),
            int(stored["batches"]),
        )
        recount = None
        if "recount_words" in stored:
            recount = Recount(
                stored["recount_words"], stored["recount_counts"], int(stored["recount_batches"])
            )
        return table, recount, float(stored["seconds"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} holds no counts that could be read ({type(error).__name__}): remove it, or "
            f"give another file"
        ) from error


def save_counts(
    path: Path,
    settings: dict[str, Any],
    table: CountTable,
    recount: Recount | None,
    seconds: float,
) -> None:
    """Write everything; the old file stays until the new one is whole.

    Raises:
        InputError: the file cannot be written.
    """
    content: dict[str, Any] = {
        "settings": np.array(json.dumps(settings)),
        "words": table.words,
        "counts": table.counts,
        "missing": table.missing,
        "threshold": np.array(table.threshold),
        "batches": np.array(table.batches),
        "seconds": np.array(seconds),
    }
    if recount is not None:
        content |= {
            "recount_words": recount.words,
            "recount_counts": recount.counts,
            "recount_batches": np.array(recount.batches),
        }
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, **content)
