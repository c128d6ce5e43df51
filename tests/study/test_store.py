import sqlite3

import pytest

from planimeter.errors import InputError
from planimeter.study import Store, trials_of


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


def test_an_empty_folder_says_so(tmp_path):
    assert Store(tmp_path).keys() == set()
    with pytest.raises(InputError, match="no results in"):
        Store(tmp_path).study()
