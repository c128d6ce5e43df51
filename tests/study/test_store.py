import json
import resource
import sqlite3
import subprocess
import threading
from dataclasses import asdict

import pytest

import planimeter.study.store as store_module
from planimeter.errors import InputError
from planimeter.study import Store, trials_of
from planimeter.study.store_errors import Damaged, Gone, Locked
from planimeter.study.training_spec import AveragingSpec


def test_records_come_back_as_they_went_in(small_study, tmp_path):
    store, trials = Store(tmp_path / "run"), trials_of(small_study)
    with store.writing(small_study, "small"):
        store.add(trials[0], {"test_error": 0.25})
        assert store.keys() == {trials[0].key}
    (record,) = store.records()
    assert record.trial == trials[0]
    assert record.result == {"test_error": 0.25}
    assert store.study() == (small_study, "small")


def test_a_trial_is_recorded_once(small_study, tmp_path):
    store, trial = Store(tmp_path), trials_of(small_study)[0]
    with store.writing(small_study, "small"):
        store.add(trial, {"test_error": 0.25})
        with pytest.raises(sqlite3.IntegrityError):
            store.add(trial, {"test_error": 0.5})
    assert store.records()[0].result == {"test_error": 0.25}


def test_two_writers_are_refused(small_study, tmp_path):
    with (
        Store(tmp_path).writing(small_study, "small"),
        pytest.raises(InputError, match="another run is writing"),
        Store(tmp_path).writing(small_study, "small"),
    ):
        pass
    with Store(tmp_path).writing(small_study, "small"):
        pass


def test_a_folder_holds_one_study(small_study, tmp_path):
    with Store(tmp_path).writing(small_study, "small"):
        pass
    other = small_study.model_copy(update={"seed": 1})
    with (
        pytest.raises(InputError, match="holds another study"),
        Store(tmp_path).writing(other, "small"),
    ):
        pass


def test_a_file_is_not_offered_as_the_folder_of_a_run(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="file is a file: name the folder of a run"):
        Store(file).study()


def test_an_empty_folder_says_so(tmp_path):
    assert Store(tmp_path).keys() == set()
    with pytest.raises(InputError, match="no results in"):
        Store(tmp_path).study()


def stored(study, folder, count=2):
    store = Store(folder)
    with store.writing(study, "small"):
        for trial in trials_of(study)[:count]:
            store.add(trial, {"test_error": 0.25})
    return store


ASKED = (Store.keys, Store.records, Store.study)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database at all, but a text of some length" * 30, "is damaged .*study repair"),
        (b"SQLite format 3\x00" + bytes(5000), "is damaged"),
        (b"\xff\xfe" * 3000, "is damaged .*not a database"),
    ],
)
def test_a_file_that_is_no_database_is_called_damaged(small_study, tmp_path, content, message):
    store = Store(tmp_path)
    store.path.write_bytes(content)
    for ask in ASKED:
        with pytest.raises(Damaged, match=message):
            ask(store)
    with pytest.raises(Damaged, match=message), store.writing(small_study, "small"):
        pass
    assert store.path.read_bytes() == content


def test_a_run_does_not_write_on_into_a_damaged_file(small_study, tmp_path):
    store = stored(small_study, tmp_path, 12)
    with store.path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xa5" * 4096)
    with pytest.raises(Damaged, match="study repair"), store.writing(small_study, "small"):
        pass


def test_a_file_that_has_only_just_been_made_has_nothing(tmp_path):
    store = Store(tmp_path)
    store.path.touch()
    assert (store.keys(), store.records()) == (set(), [])
    with pytest.raises(InputError, match="no results in"):
        store.study()


def test_a_file_of_a_newer_version_is_not_touched(small_study, tmp_path):
    store = stored(small_study, tmp_path)
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for ask in ASKED:
        with pytest.raises(InputError, match=r"written by a newer planimeter .*version 99"):
            ask(store)
    with pytest.raises(InputError, match="newer"), store.writing(small_study, "small"):
        pass


@pytest.mark.parametrize("table", ["study", "trials"])
def test_settings_that_are_not_known_here_are_of_another_version(small_study, tmp_path, table):
    store = stored(small_study, tmp_path)
    column, ask = {"study": ("spec", Store.study), "trials": ("trial", Store.records)}[table]
    db = sqlite3.connect(store.path)
    db.execute(f"UPDATE {table} SET {column} = json_set({column}, '$.more', 1)")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="of another version of planimeter"):
        ask(store)


def test_a_trial_waits_for_another_program_and_is_not_lost(small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_ATTEMPT", 0.05)
    store, heard = stored(small_study, tmp_path), []
    other = sqlite3.connect(store.path, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    def hear(message):
        heard.append(message)
        threading.Timer(0.3, other.rollback).start()

    last = trials_of(small_study)[5]
    store.add(last, {"test_error": 0.5}, hear)
    assert store.keys() >= {last.key}
    assert len(heard) == 1
    assert "held by another program: waiting" in heard[0]
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(store_module, "PATIENCE", 0.2)
    with pytest.raises(Locked, match=r"held by another program .*what was stored is kept"):
        store.add(trials_of(small_study)[6], {"test_error": 0.5})
    other.close()
    assert len(store.keys()) == 3


def test_a_file_that_was_deleted_is_not_made_anew_in_silence(small_study, tmp_path):
    store = stored(small_study, tmp_path)
    store.path.unlink()
    with pytest.raises(Gone, match="not there any more: it was deleted or moved"):
        store.add(trials_of(small_study)[3], {"test_error": 0.5})
    assert not store.path.exists()


def test_a_folder_that_is_none_is_said_in_words(small_study, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with (
            pytest.raises(InputError, match=r"cannot write to .*(File exists|Not a directory)"),
            Store(folder).writing(small_study, "small"),
        ):
            pass
        assert Store(folder).keys() == set()
    (tmp_path / "results.sqlite").mkdir()
    with (
        pytest.raises(InputError, match=r"cannot open .*results.sqlite .*unable to open"),
        Store(tmp_path).writing(small_study, "small"),
    ):
        pass


def test_a_folder_that_cannot_be_written_can_be_read(small_study, tmp_path):
    """On a disk that is mounted read-only, whoever asks."""
    source = tmp_path / "source"
    stored(small_study, source)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    made = subprocess.run(["mount", "--bind", source, mounted], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        remount = ["mount", "-o", "remount,bind,ro", mounted]
        if subprocess.run(remount, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted read-only here")
        assert len(Store(mounted).records()) == 2
        assert Store(mounted).study() == (small_study, "small")
        with (
            pytest.raises(InputError, match=r"cannot write to .*Read-only file system"),
            Store(mounted).writing(small_study, "small"),
        ):
            pass
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_disk_that_is_full_loses_no_trial_that_was_stored(small_study, tmp_path):
    store = stored(small_study, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.path.stat().st_size, hard))
    try:
        with pytest.raises(InputError, match=r"disk .*what was stored is kept|disk of .*copy"):
            store.add(trials_of(small_study)[4], {"text": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(store.records()) == 2
    store.add(trials_of(small_study)[4], {"text": "x" * 200_000})
    assert len(store.records()) == 3


def test_of_a_trial_that_two_versions_computed_the_newer_counts(small_study, tmp_path):
    training = small_study.training.model_copy(update={"averaging": AveragingSpec(start=1)})
    study = small_study.model_copy(update={"training": training})
    store, trials = stored(study, tmp_path, 1), trials_of(study)
    row = (json.dumps(asdict(trials[1])), json.dumps({"test_error": 0.5}), 1.0)
    db = sqlite3.connect(store.path)
    db.execute("INSERT INTO trials VALUES ('0123456789abcdef', ?, ?, ?)", row)
    db.commit()
    db.close()
    assert [r.outdated for r in store.records()] == [True, False]
    assert not store.keys() & {trials[1].key}
    store.add(trials[1], {"test_error": 0.75})
    assert [r.outdated for r in store.records()] == [False, False]
    assert store.records()[1].result == {"test_error": 0.75}
