"""Results of a study: one SQLite file a run folder, one writer, each trial recorded once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from planimeter.errors import InputError
from planimeter.study.spec import Study
from planimeter.study.trial import Trial

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id INTEGER PRIMARY KEY CHECK (id = 1), reference TEXT, spec TEXT);
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, trial TEXT NOT NULL, result TEXT NOT NULL, finished_at REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Record:
    """A finished trial: its key, its definition, its result, and when it was stored (Unix time)."""

    key: str
    trial: Trial
    result: dict[str, Any]
    finished_at: float


class Store:
    """The results of a run folder, `FOLDER/results.sqlite`.

    A commit is durable before `add` returns, so a killed driver loses only trials in flight.
    Readers never block the writer (write-ahead log).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.sqlite"

    def exists(self) -> bool:
        """Whether anything was ever stored here."""
        return self.path.is_file()

    @contextmanager
    def writing(self, study: Study, reference: str) -> Iterator[None]:
        """Hold the folder's writer lock, and bind the folder to a study.

        Raises:
            InputError: another process is writing here, or the folder holds another study.
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
            raise InputError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            with self._connection() as db:
                db.executescript(_SCHEMA)
                row = db.execute("SELECT spec FROM study").fetchone()
                spec = study.model_dump_json()
                if row is None:
                    db.execute("INSERT INTO study VALUES (1, ?, ?)", (reference, spec))
                elif json.loads(row[0]) != json.loads(spec):
                    raise InputError(
                        f"{self.folder} holds another study, or an earlier version of this one: "
                        f"choose another folder with --out, or delete it"
                    )
            yield
        finally:
            lock.release()

    def add(self, trial: Trial, result: dict[str, Any]) -> None:
        """Record a finished trial; a second record under the same key is an error."""
        row = (trial.key, json.dumps(asdict(trial)), json.dumps(result), time.time())
        with self._connection() as db:
            db.execute("INSERT INTO trials VALUES (?, ?, ?, ?)", row)

    def keys(self) -> set[str]:
        """Keys of the trials that are done."""
        if not self.exists():
            return set()
        with self._connection() as db:
            return {key for (key,) in db.execute("SELECT key FROM trials")}

    def records(self) -> list[Record]:
        """All finished trials, in the order in which they finished."""
        with self._connection() as db:
            rows = db.execute("SELECT * FROM trials ORDER BY finished_at, key").fetchall()
        return [Record(k, Trial(**json.loads(t)), json.loads(r), at) for k, t, r, at in rows]

    def study(self) -> tuple[Study, str]:
        """The study of this folder, and the reference by which it was run.

        Raises:
            InputError: nothing was run here.
        """
        if not self.exists():
            raise InputError(f"no results in {self.folder}: run a study with --out {self.folder}")
        with self._connection() as db:
            row = db.execute("SELECT spec, reference FROM study").fetchone()
        return Study.model_validate_json(row[0]), row[1]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits at the end, and rolls back on an exception."""
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            with db:
                yield db
        finally:
            db.close()
