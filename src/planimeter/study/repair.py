"""Rescuing the trials of a damaged `results.sqlite`.

A table of SQLite is a tree of pages, and its rows are in the leaves. SQLite reads rows from the
root on, so a page that is damaged hides all that hangs on it. Here every page of the file and of
its write-ahead log is looked at by itself: what reads as a row of a study's tables is taken, if its
texts are whole JSON and its key is the hash of its trial. Then what SQLite itself still reads is
added.

Source: the SQLite database file format (https://www.sqlite.org/fileformat2.html), sections 1.5, 1.6
and 2.1.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planimeter.errors import InputError
from planimeter.files import whole
from planimeter.study.spec import Study
from planimeter.study.store import SCHEMA, STORE_VERSION, Store
from planimeter.study.store_errors import Damaged
from planimeter.study.trial import is_key_of

_LEAF_OF_TABLE, _LEAF_OF_INDEX = 0x0D, 0x0A
_PAGE_SIZES = [2**power for power in range(9, 17)]
_USUAL_PAGE = 4096
_KEY = 16  # characters in the key of a trial

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Repair:
    """What was rescued.

    Arguments:
        rescued: trials in the new file.
        lost: trials that are known to have been there, by their keys, and could not be read.
        kept: where the damaged file is now; None if nothing was damaged.
    """

    rescued: int
    lost: int
    kept: Path | None


@dataclass
class _Found:
    trials: dict[str, Row] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    studies: list[Row] = field(default_factory=list)


def repair(store: Store, given: tuple[Study, str] | None = None) -> Repair:
    """Put every trial that can be read into a new file, and keep the damaged one beside it.

    Arguments:
        store: of the run folder.
        given: the study of the folder and its reference, for when that cannot be read either.

    Raises:
        InputError: another process writes there, there is no file, or the study itself is lost and
            was not given.
    """
    if not store.exists():
        raise InputError(f"no results in {store.folder}: there is nothing to repair")
    with store.locked():
        if _is_whole(store):
            return Repair(len(store.keys()), 0, None)
        found = _found_in(store.path)
        study = (given[1], given[0].model_dump_json()) if given else _study_of(found, store)
        with whole(store.path) as beside:
            _write(beside, study, found)
            kept = _set_aside(store.path)
    return Repair(len(found.trials), len(found.keys - set(found.trials)), kept)


def _is_whole(store: Store) -> bool:
    try:
        store.check()
        store.study()
        store.records()
    except Damaged:
        return False
    return True


def _found_in(path: Path) -> _Found:
    found = _Found()
    content = path.read_bytes()
    log = path.with_name(path.name + "-wal")
    for size in _sizes(content):
        pages = _Pages(content, log.read_bytes() if log.exists() else b"", size)
        for page in pages.all():
            for cells, take in ((pages.rows_of(page), _take), (pages.keys_of(page), _take_key)):
                for row in cells:
                    take(found, row)
        if found.trials:
            break
    for row in _rows_by_sqlite(path):
        _take(found, row)
    return found


def _take(found: _Found, row: Row) -> None:
    """A row of either table, if it is one and its texts are whole."""
    if len(row) == 4 and isinstance(row[0], str) and len(row[0]) == _KEY:
        found.keys.add(row[0])
        whole_texts = _is_json(row[1]) and _is_json(row[2]) and isinstance(row[3], float | int)
        if whole_texts and is_key_of(row[0], json.loads(row[1])):
            found.trials[row[0]] = row
    elif len(row) == 3 and isinstance(row[1], str) and _is_json(row[2]):
        found.studies.append(row)


def _take_key(found: _Found, row: Row) -> None:
    """An entry of the index of keys."""
    if len(row) == 2 and isinstance(row[0], str) and len(row[0]) == _KEY:
        found.keys.add(row[0])


def _study_of(found: _Found, store: Store) -> tuple[str, str]:
    for _, reference, spec in found.studies:
        try:
            Study.model_validate_json(spec)
        except ValueError:
            continue
        return reference, spec
    raise InputError(
        f"{len(found.trials)} trials can be read in {store.path}, but not the study that they are "
        f"of: name it with --study"
    )


def _write(path: Path, study: tuple[str, str], found: _Found) -> None:
    db = sqlite3.connect(path)
    try:
        db.executescript(SCHEMA)
        db.execute(f"PRAGMA user_version = {STORE_VERSION}")
        with db:
            db.execute("INSERT INTO study VALUES (1, ?, ?)", study)
            db.executemany("INSERT INTO trials VALUES (?, ?, ?, ?)", found.trials.values())
    except sqlite3.OperationalError as error:
        raise OSError(str(error)) from error  # a full disk; nothing has been moved yet
    finally:
        db.close()


def _set_aside(path: Path) -> Path:
    """Move the damaged file, with its log, where none is yet."""
    kept, number = path.with_name("results.damaged.sqlite"), 2
    while kept.exists():
        kept, number = path.with_name(f"results.damaged-{number}.sqlite"), number + 1
    for ending in ("-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.replace(kept.with_name(kept.name + ending))
    path.replace(kept)
    return kept


def _rows_by_sqlite(path: Path) -> Iterator[Row]:
    """What SQLite itself still reads, a row at a time."""
    with closing(sqlite3.connect(path)) as db:
        try:
            last = db.execute("SELECT max(rowid) FROM trials").fetchone()[0] or 0
        except sqlite3.Error:
            return
        # A damaged number of the last row may be as large as 2^63: no file holds a row a byte.
        last = min(last, path.stat().st_size)
        for table, most in (("study", 1), ("trials", last)):
            for number in range(1, most + 1):
                with suppress(sqlite3.Error):
                    yield from db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,))


def _sizes(content: bytes) -> list[int]:
    """The page size in the header first, then the usual one, then all others."""
    (said,) = struct.unpack(">H", content[16:18]) if len(content) >= 18 else (0,)
    said = 65536 if said == 1 else said
    likely = [said] if said in _PAGE_SIZES else []
    return list(dict.fromkeys([*likely, _USUAL_PAGE, *_PAGE_SIZES]))


class _Pages:
    """The pages of a file, those in its write-ahead log first where there are some."""

    def __init__(self, content: bytes, log: bytes, size: int) -> None:
        self.content, self.size = content, size
        self.logged = dict(_frames(log, size))

    def all(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and pages: of the file, then the log's newer ones."""
        for number in range(1, -(-len(self.content) // self.size) + 1):
            yield number, self.content[(number - 1) * self.size : number * self.size]
        yield from self.logged.items()

    def rows_of(self, page: tuple[int, bytes]) -> Iterator[Row]:
        """The rows in a leaf of a table; nothing from any other page, or from a damaged cell."""
        return self._records(page, _LEAF_OF_TABLE, self._cell_of_table)

    def keys_of(self, page: tuple[int, bytes]) -> Iterator[Row]:
        """The entries in a leaf of an index."""
        return self._records(page, _LEAF_OF_INDEX, self._cell_of_index)

    def _records(
        self, page: tuple[int, bytes], kind: int, payload: Callable[[bytes, int], bytes]
    ) -> Iterator[Row]:
        number, data = page
        head = 100 if number == 1 else 0
        if len(data) < head + 8 or data[head] != kind:
            return
        (cells,) = struct.unpack(">H", data[head + 3 : head + 5])
        for place in range(cells):
            start = head + 8 + 2 * place
            try:
                (offset,) = struct.unpack(">H", data[start : start + 2])
                yield _record(payload(data, offset))
            except (IndexError, ValueError, struct.error):
                continue

    def _cell_of_table(self, data: bytes, offset: int) -> bytes:
        length, offset = _varint(data, offset)
        _, offset = _varint(data, offset)
        return self._payload(data, offset, length, self.size - 35)

    def _cell_of_index(self, data: bytes, offset: int) -> bytes:
        length, offset = _varint(data, offset)
        return self._payload(data, offset, length, (self.size - 12) * 64 // 255 - 23)

    def _payload(self, data: bytes, offset: int, length: int, most: int) -> bytes:
        """What a cell holds, with what flowed over to other pages."""
        if length > len(self.content) + sum(map(len, self.logged.values())):
            raise ValueError("longer than the file")
        if length <= most:
            return data[offset : offset + length]
        least = (self.size - 12) * 32 // 255 - 23
        here = least + (length - least) % (self.size - 4)
        here = here if here <= most else least
        parts = [data[offset : offset + here]]
        (following,) = struct.unpack(">I", data[offset + here : offset + here + 4])
        left = length - here
        while left > 0:
            if following == 0:
                raise ValueError("an overflow page is missing")
            page = (
                self.logged.get(following)
                or self.content[(following - 1) * self.size : following * self.size]
            )
            (following,) = struct.unpack(">I", page[:4])
            parts.append(page[4 : 4 + left])
            left -= self.size - 4
        return b"".join(parts)


def _frames(log: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """The pages in a write-ahead log, by number; of several the last, which is the newest."""
    start = 32
    while start + 24 + size <= len(log):
        (number,) = struct.unpack(">I", log[start : start + 4])
        yield number, log[start + 24 : start + 24 + size]
        start += 24 + size


def _record(payload: bytes) -> Row:
    """The values of a record: a header of kinds, then their bytes."""
    end, place = _varint(payload, 0)
    kinds = []
    while place < end:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    if not 2 <= len(kinds) <= 4:
        raise ValueError("no row of a study's tables")
    values: list[Any] = []
    for kind in kinds:
        value, place = _value(payload, place, kind)
        values.append(value)
    return tuple(values)


def _value(payload: bytes, place: int, kind: int) -> tuple[Any, int]:
    sizes = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}
    size = sizes[kind] if kind in sizes else (kind - 12) // 2
    raw = payload[place : place + size]
    if len(raw) < size or kind in (10, 11):
        raise ValueError("a record is cut off")
    if kind == 0:
        return None, place
    if kind == 7:
        return struct.unpack(">d", raw)[0], place + size
    if kind in (8, 9):
        return kind - 8, place
    if kind < 7:
        return int.from_bytes(raw, "big", signed=True), place + size
    return (raw.decode("utf-8") if kind % 2 else raw), place + size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for count in range(9):
        byte = data[place]
        place += 1
        if count == 8:
            return (value << 8) | byte, place
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, place
    raise AssertionError


def _is_json(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False
