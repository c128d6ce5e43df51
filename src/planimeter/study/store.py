"""Results of a study: one SQLite file a run folder, one writer, each trial recorded once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from planimeter.errors import InputError
from planimeter.files import cannot_write
from planimeter.study.spec import Study
from planimeter.study.store_errors import Locked, in_words, is_gone
from planimeter.study.trial import Trial

SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id INTEGER PRIMARY KEY CHECK (id = 1), reference TEXT, spec TEXT);
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, trial TEXT NOT NULL, result TEXT NOT NULL, finished_at REAL NOT NULL
);
"""
STORE_VERSION = 1
"""Raise this when the tables change: a file with a larger number is of a newer planimeter."""

OUTDATED = (
    "of an earlier version of planimeter, which computed something of them otherwise; "
    "`planimeter study run` does them again"
)
"""What is said of the records of such trials."""

PATIENCE = 600.0
"""Seconds that a finished trial waits for another program to let go of the file."""
_ATTEMPT = 5.0  # seconds within SQLite, where Ctrl-C is not heard


@dataclass(frozen=True)
class Record:
    """A finished trial: its key, its definition, its result, and when it was stored (Unix time)."""

    key: str
    trial: Trial
    result: dict[str, Any]
    finished_at: float

    @property
    def outdated(self) -> bool:
        """Whether it was computed by a version whose results of such a trial were other ones."""
        return self.key != self.trial.key


class Store:
    """The results of a run folder, `FOLDER/results.sqlite`.

    A commit is durable before `add` returns, so a killed driver loses only trials in flight.
    Readers never block the writer (write-ahead log), and can read a folder that is not writable.
    What SQLite cannot do is an `InputError` that says why, and the way out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.sqlite"

    def exists(self) -> bool:
        """Whether anything was ever stored here."""
        return self.path.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's writer lock; the folder is made if need be.

        Raises:
            InputError: another process is writing here, or the folder cannot be written to.
        """
        lock = FileLock(self.folder / "writer.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"another run is writing to {self.folder}: wait for it or end it"
            ) from error
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self, study: Study, reference: str) -> Iterator[None]:
        """Hold the folder's writer lock, and bind the folder to a study.

        Raises:
            InputError: another process is writing here, the folder holds another study, or its
                file is damaged or of a newer version.
        """
        with self.locked():
            self.bind(study, reference)
            yield

    def bind(self, study: Study, reference: str) -> None:
        """Make the tables, and keep the study; the caller holds the lock.

        Raises:
            InputError: there is another study, or the file is damaged.
        """
        with self._connection(new=True) as db:
            _quick_check(db)
            db.executescript(SCHEMA)
            db.execute(f"PRAGMA user_version = {STORE_VERSION}")
            row = db.execute("SELECT spec FROM study").fetchone()
            spec = study.model_dump_json()
            if row is None:
                db.execute("INSERT INTO study VALUES (1, ?, ?)", (reference, spec))
            elif _decoded(row[0]) != json.loads(spec):
                raise InputError(
                    f"{self.folder} holds another study, or an earlier version of this one: "
                    f"choose another folder with --out, or delete it"
                )

    def add(
        self, trial: Trial, result: dict[str, Any], waiting: Callable[[str], None] = lambda _: None
    ) -> None:
        """Record a finished trial; a second record under the same key is an error.

        Arguments:
            waiting: told once when another program holds the file, for which `PATIENCE` is had.

        Raises:
            InputError: it cannot be stored; a `Gone` if the file is not there any more.
        """
        row = (trial.key, json.dumps(asdict(trial)), json.dumps(result), time.time())
        until, told = time.monotonic() + PATIENCE, False
        while True:
            try:
                with self._connection(timeout=_ATTEMPT) as db:
                    db.execute("INSERT INTO trials VALUES (?, ?, ?, ?)", row)
                return
            except Locked:
                if time.monotonic() > until:
                    raise
                if not told:
                    waiting(f"{self.path} is held by another program: waiting for it")
                told = True

    def check(self) -> None:
        """Have SQLite look at every page.

        Raises:
            Damaged: one of them is not as it should be.
        """
        with self._reading() as db:
            _quick_check(db)

    def keys(self) -> set[str]:
        """Keys of the trials that are done."""
        if not self.exists():
            return set()
        with self._reading() as db:
            if _is_empty(db):
                return set()
            return {key for (key,) in db.execute("SELECT key FROM trials")}

    def records(self) -> list[Record]:
        """All finished trials, in the order in which they finished.

        Of a trial that several versions of planimeter computed, the one of this version.
        """
        with self._reading() as db:
            if _is_empty(db):
                return []
            rows = db.execute("SELECT * FROM trials ORDER BY finished_at, key").fetchall()
            found = [Record(k, Trial(**_decoded(t)), _decoded(r), at) for k, t, r, at in rows]
        today = {record.key for record in found if not record.outdated}
        return [r for r in found if not r.outdated or r.trial.key not in today]

    def study(self) -> tuple[Study, str]:
        """The study of this folder, and the reference by which it was run.

        Raises:
            InputError: nothing was run here, or the file is damaged.
        """
        if self.exists():
            with self._reading() as db:
                row = None
                if not _is_empty(db):
                    row = db.execute("SELECT spec, reference FROM study").fetchone()
                if row is not None:
                    _decoded(row[0])
                    try:
                        return Study.model_validate_json(row[0]), row[1]
                    except ValidationError as error:
                        raise InputError(
                            f"the study in {self.path} is of another version of planimeter: read "
                            f"it with that one"
                        ) from error
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: name the folder of a run")
        raise InputError(f"no results in {self.folder}: run a study with --out {self.folder}")

    @contextmanager
    def _connection(
        self, *, new: bool = False, timeout: float = 30
    ) -> Iterator[sqlite3.Connection]:
        """A connection that commits at the end, and rolls back on an exception."""
        with in_words(self.path):
            if not new and not self.exists():
                raise is_gone(self.path)
            db = sqlite3.connect(self.path, timeout=timeout)
            try:
                _check_version(db, self.path)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                with db:
                    yield db
            finally:
                db.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read by; to a copy where the folder does not let SQLite lock the file."""
        with in_words(self.path), tempfile.TemporaryDirectory() as copies:
            if not self.exists():
                raise is_gone(self.path)
            db = sqlite3.connect(self.path, timeout=30)
            try:
                try:
                    _check_version(db, self.path)
                except sqlite3.OperationalError as error:
                    if getattr(error, "sqlite_errorname", "") not in _NOT_WRITABLE:
                        raise
                    db.close()
                    db = sqlite3.connect(_copy(self.path, Path(copies)))
                    _check_version(db, self.path)
                yield db
            finally:
                db.close()


_NOT_WRITABLE = ("SQLITE_CANTOPEN", "SQLITE_READONLY_DIRECTORY", "SQLITE_READONLY")


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > STORE_VERSION:
        raise InputError(
            f"{path} was written by a newer planimeter (its tables are version {version}, this "
            f"one knows {STORE_VERSION}): update planimeter to read it"
        )
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # needs the locks and the log


def _quick_check(db: sqlite3.Connection) -> None:
    for (line,) in db.execute("PRAGMA quick_check(1)"):
        if line != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {line}")


def _is_empty(db: sqlite3.Connection) -> bool:
    """Whether a run has only just made the file."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not tables


def _copy(path: Path, folder: Path) -> Path:
    for ending in ("", "-wal"):
        part = path.with_name(path.name + ending)
        if part.exists():
            shutil.copyfile(part, folder / part.name)
    return folder / path.name


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"a row is no JSON: {error}") from error
