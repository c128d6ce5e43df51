import json
import shutil
import sqlite3
from dataclasses import replace

import pytest

from planimeter.errors import InputError
from planimeter.study import Store, trials_of
from planimeter.study.repair import repair
from planimeter.study.spec import parse_study
from planimeter.study.store_errors import Damaged

PAGE = 4096


def result(trial, size):
    return {"test_error": trial.repetition / 7, "text": "ü" * size, "at": trial.attack}


STUDY = """\
title: small
data: {name: digits, train: 30, test: 30}
grid: {optimisers: [{name: adam}, {name: sgd, lr: 0.1}], attack: [0, 10], repetitions: 6}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """24 trials, short ones and ones that flow over to other pages, under interior pages."""
    store = Store(tmp_path_factory.mktemp("made") / "run")
    with store.writing(parse_study(STUDY, "small.yaml"), "small"):
        for number, trial in enumerate(trials_of(store.study()[0])):
            store.add(trial, result(trial, (10, 1500, 200, 10_000)[number % 4]))
    return store.folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def pages(path):
    return path.stat().st_size // PAGE


def spoil(path, start, content):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def expected(folder):
    return {r.key: r for r in Store(folder).records()}


def test_every_page_may_be_lost_and_the_rest_is_rescued(folder, tmp_path):
    """Zeros, and noise, over each page in turn: what is rescued is as it was, and is counted."""
    whole = expected(folder)
    study, reference = Store(folder).study()
    fewest, copy = len(whole), tmp_path / "copy"
    size = pages(folder / "results.sqlite")
    for number in sorted({*range(8), *range(8, size, size // 8)}):
        for content in (bytes(PAGE), b"\xa5" * PAGE):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            spoil(copy / "results.sqlite", number * PAGE, content)
            done = repair(Store(copy), (study, reference))
            found = expected(copy)
            assert all(whole[key] == record for key, record in found.items())
            if done.kept is None:
                assert found == whole
                continue
            assert done.rescued == len(found)
            # What is neither rescued nor known as lost had its key on that page alone.
            assert done.rescued + done.lost <= len(whole)
            assert len(whole) - done.rescued <= 12
            fewest = min(fewest, done.rescued)
            Store(copy).check()
    assert fewest < len(whole)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_file_that_was_cut_off(folder, cut):
    path = folder / "results.sqlite"
    whole, size = expected(folder), path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(cut * size))
    done = repair(Store(folder))
    assert 0 < done.rescued < len(whole)
    assert done.rescued >= (cut - 0.2) * len(whole)
    assert all(whole[key] == record for key, record in expected(folder).items())
    assert done.kept.name == "results.damaged.sqlite"
    assert done.kept.stat().st_size == int(cut * size)


def test_without_its_header_nothing_is_lost(folder):
    """The first page has the schema alone."""
    whole = expected(folder)
    spoil(folder / "results.sqlite", 0, bytes(PAGE))
    for ask in (Store(folder).keys, Store(folder).records, Store(folder).study):
        with pytest.raises(Damaged, match=r"is damaged \(.*planimeter study repair"):
            ask()
    done = repair(Store(folder))
    assert (done.rescued, done.lost) == (len(whole), 0)
    assert expected(folder) == whole


def test_trials_in_the_log_of_a_killed_run_are_rescued(folder, tmp_path):
    """Rows that were committed, and had not come into the file itself."""
    store, trial = Store(folder), trials_of(Store(folder).study()[0])[0]
    more = [replace(trial, seed=seed) for seed in range(100, 110)]
    db = sqlite3.connect(store.path)
    db.execute("SELECT count(*) FROM trials").fetchall()  # open, so the log is not folded in
    for one in more:
        store.add(one, result(one, 5000))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # as a kill leaves it: with its log
    db.close()
    assert (copy / "results.sqlite-wal").stat().st_size > 0
    spoil(copy / "results.sqlite", 0, bytes(PAGE))
    repair(Store(copy))
    assert {r.key for r in Store(copy).records()} >= {one.key for one in more}


def test_texts_that_are_not_whole_are_lost_and_counted(folder):
    path = folder / "results.sqlite"
    whole = expected(folder)
    first, second, third = list(whole)[:3]
    db = sqlite3.connect(path)
    for key, column, text in (
        (first, "result", '{"test_error": 0.'), (second, "trial", '{"seed": 3}'),
        (third, "result", b"\xff\xfe not text"),
    ):  # fmt: skip
        db.execute(f"UPDATE trials SET {column} = CAST(? AS TEXT) WHERE key = ?", (text, key))
    db.commit()
    db.close()
    with pytest.raises(InputError, match="planimeter study repair"):
        Store(folder).records()
    done = repair(Store(folder))
    assert (done.rescued, done.lost) == (len(whole) - 3, 3)
    assert set(expected(folder)) == set(whole) - {first, second, third}


def test_the_study_itself_may_have_to_be_named(folder, small_study):
    path = folder / "results.sqlite"
    content = path.read_bytes()
    at = content.index(b'{"title"')
    spoil(path, at - 200, bytes(400))
    with pytest.raises(InputError, match=r"24 trials can be read in .*: name it with --study"):
        repair(Store(folder))
    assert path.read_bytes() != content
    assert not (folder / "results.damaged.sqlite").exists()
    done = repair(Store(folder), (small_study, "small"))
    assert done.rescued == 24
    assert Store(folder).study() == (small_study, "small")


def test_no_damage_and_no_file(folder, tmp_path):
    before = (folder / "results.sqlite").read_bytes()
    done = repair(Store(folder))
    assert (done.rescued, done.lost, done.kept) == (24, 0, None)
    assert (folder / "results.sqlite").read_bytes() == before
    with pytest.raises(InputError, match="there is nothing to repair"):
        repair(Store(tmp_path / "nothing"))


@pytest.mark.parametrize("content", [b"no database", bytes(10_000), b"SQLite format 3\x00" * 900])
def test_files_of_something_else_are_kept_and_replaced(tmp_path, small_study, content):
    path = tmp_path / "results.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="0 trials can be read"):
        repair(Store(tmp_path))
    assert path.read_bytes() == content
    assert repair(Store(tmp_path), (small_study, "small")).rescued == 0
    path.write_bytes(content)
    second = repair(Store(tmp_path), (small_study, "small"))
    assert second.kept.name == "results.damaged-2.sqlite"
    assert second.kept.read_bytes() == content
    assert json.loads(json.dumps(Store(tmp_path).study()[1])) == "small"
