import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from distributed import LocalCluster

from planimeter.errors import InputError
from planimeter.study import Store, trials_of
from planimeter.study.model_spec import ModelSpec
from planimeter.study.runner import run_study


def test_runs_every_trial_once_and_then_none(small_study, tmp_path):
    store, seen = Store(tmp_path), []
    summary = run_study(
        small_study, store, "small", workers=2, progress=lambda t, r, done, total: seen.append(done)
    )
    assert (summary.total, summary.already_done, summary.done_now, summary.failed) == (
        12,
        0,
        12,
        {},
    )
    assert seen == list(range(1, 13))
    assert store.keys() == {t.key for t in trials_of(small_study)}
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == 12
    again = run_study(small_study, store, "small", workers=2)
    assert (again.already_done, again.done_now) == (12, 0)


def test_a_failing_trial_is_reported_and_left_for_the_next_run(small_study, tmp_path):
    impossible = small_study.model_copy(
        update={"grid": small_study.grid.model_copy(update={"attack": (0, 5000)})}
    )
    store = Store(tmp_path)
    summary = run_study(impossible, store, "small", workers=2)
    assert len(store.keys()) == summary.done_now == 6
    assert len(summary.failed) == 6
    assert all("attack set of 5000 rows" in reason for reason in summary.failed.values())


def test_runs_on_a_cluster_that_is_there_already(small_study, tmp_path):
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
    ) as cluster:
        store = Store(tmp_path)
        summary = run_study(small_study, store, "small", scheduler=cluster.scheduler_address)
    assert summary.done_now == len(store.keys()) == 12
    assert not (tmp_path / "weights").exists()  # its workers need not share this disk


def test_a_network_without_an_analytic_kernel_is_refused_before_it_is_trained(
    small_study, tmp_path
):
    lenet = ModelSpec.model_validate({"name": "lenet5"})
    with pytest.raises(InputError, match=r"log P\(f\) of lenet5: .*kernel: empirical"):
        run_study(small_study.model_copy(update={"model": lenet}), Store(tmp_path), "small")


def test_an_address_without_a_scheduler_is_explained(small_study, tmp_path):
    with pytest.raises(InputError, match="no dask scheduler answers at 'nowhere"):
        run_study(small_study, Store(tmp_path), "small", scheduler="nowhere://x:1")


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_driver_loses_nothing_and_repeats_nothing(small_study_file, tmp_path, blow):
    folder = tmp_path / "run"
    command = [
        sys.executable, "-c", "from planimeter.cli import main; main()",
        "study", "run", str(small_study_file), "--out", str(folder), "--workers", "2",
    ]  # fmt: skip
    # A costly prior slows the trials down, so that the blow falls in the middle.
    text = small_study_file.read_text().replace("particles: 50", "particles: 60000")
    small_study_file.write_text(text)
    driver = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_listens,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(stored(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    if blow == signal.SIGKILL:
        driver.kill()
    else:
        os.killpg(driver.pid, blow)  # what Ctrl-C does: the whole foreground group
    message = driver.communicate(timeout=60)[1]
    before = stored(folder)
    assert 3 <= len(before) < 12
    if blow == signal.SIGINT:
        assert driver.returncode == 130
        assert "the same command does the rest" in " ".join(message.split())
        assert "Traceback" not in message

    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    after = stored(folder)
    assert len(after) == 12
    assert {key: after[key] for key in before} == before  # same results, same time of finishing
    assert f"{12 - len(before)} trials run" in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blow", "whole_group", "code", "word"),
    [
        (signal.SIGINT, True, 130, "interrupted"),
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGTERM, False, 143, "terminated"),
        (signal.SIGTERM, True, 143, "terminated"),
    ],
)
def test_signals_while_workers_start_end_the_run(
    small_study_file, tmp_path, blow, whole_group, code, word
):
    driver = subprocess.Popen(
        [
            sys.executable, "-c", "from planimeter.cli import main; main()",
            "study", "run", str(small_study_file), "--out", str(tmp_path / "run"), "--workers", "2",
        ],
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_listens,
    )  # fmt: skip
    assert "starting workers" in driver.stderr.readline()
    time.sleep(1.0)
    (os.killpg if whole_group else os.kill)(driver.pid, blow)
    message = driver.communicate(timeout=60)[1]
    assert driver.returncode == code
    assert f"{word}: 0 of 12 trials are stored" in " ".join(message.split())
    assert "Traceback" not in message
    assert _ended(driver.pid)
    assert stored(tmp_path / "run") == {}


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 3])
def test_workers_that_are_killed_again_and_again_end_the_run(small_study, tmp_path, delay):
    """While they start, or after the first has begun: in words, and never for ever."""
    over, others = threading.Event(), set(multiprocessing.active_children())

    def kill():
        time.sleep(delay)
        while not over.wait(0.2):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()

    threading.Thread(target=kill, daemon=True).start()
    try:
        with pytest.raises(InputError, match=r"did not start|had no worker for 15 s: start"):
            run_study(small_study, Store(tmp_path), "small", workers=1, patience=15)
    finally:
        over.set()
    assert run_study(small_study, Store(tmp_path), "small", workers=2).done_now == 12


@pytest.mark.slow
def test_one_worker_that_dies_a_few_times_loses_nothing(small_study, tmp_path):
    others, kills = set(multiprocessing.active_children()), [0]

    def kill(*_):
        if kills[0] < 3:
            kills[0] += 1
            for process in set(multiprocessing.active_children()) - others:
                process.kill()

    summary = run_study(small_study, Store(tmp_path), "small", workers=1, progress=kill)
    assert kills[0] == 3
    assert summary.done_now + len(summary.failed) == 12
    assert all("for want of memory" in reason for reason in summary.failed.values())
    again = run_study(small_study, Store(tmp_path), "small", workers=1)
    assert again.already_done == summary.done_now
    assert again.failed == {}


def test_a_cluster_without_workers_is_said_and_ends(small_study, tmp_path):
    heard: list = []
    with (
        LocalCluster(n_workers=0, dashboard_address=":0", silence_logs="CRITICAL") as cluster,
        pytest.raises(InputError, match=r"cluster at tcp://.* had no worker for 1 s: start some"),
    ):
        run_study(
            small_study, Store(tmp_path), "small", scheduler=cluster.scheduler_address,
            patience=1, note=heard.append,
        )  # fmt: skip
    assert len(heard) == 1
    assert "has no worker: waiting 1 s" in heard[0]
    with Store(tmp_path).locked():  # the lock was let go
        pass


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["scheduler", "workers"])
def test_what_a_run_loses_while_it_goes_on_is_named(small_study, tmp_path, lost):
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
    )
    store, gone = Store(tmp_path), threading.Event()

    def lose(trial, result, done, total):
        if not gone.is_set():
            gone.set()
            cluster.close() if lost == "scheduler" else cluster.scale(0)

    message = "scheduler was lost" if lost == "scheduler" else "had no worker for 3 s"
    try:
        with pytest.raises(InputError, match=message):
            run_study(
                small_study, store, "small", scheduler=cluster.scheduler_address,
                patience=3, progress=lose,
            )  # fmt: skip
    finally:
        cluster.close()
    before = store.keys()
    assert before
    assert run_study(small_study, store, "small", workers=2).already_done == len(before)


@pytest.mark.slow
def test_a_file_that_is_deleted_meanwhile_is_written_anew(small_study, tmp_path):
    store, heard, seen = Store(tmp_path), [], []

    def delete(trial, result, done, total):
        seen.append(done)
        if len(seen) == 4:
            store.path.unlink()

    summary = run_study(small_study, store, "small", workers=1, progress=delete, note=heard.append)
    assert summary.done_now == len(store.keys()) == 12
    assert len(heard) == 1
    assert "deleted or moved" in heard[0]
    assert "a new one has the 5 trials of this run" in heard[0]


def _ended(group):
    """Whether no process of a group is left; those that nobody has yet waited for do not count."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        states = subprocess.run(
            ["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        alive = [s for s in map(str.split, states) if s and int(s[0]) == group and s[1][0] != "Z"]
        if not alive:
            return True
        time.sleep(0.2)
    return False


def _listens():
    """To Ctrl-C, whatever the tests were started by: jobs in the background inherit deafness."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stored(folder):
    """Key to (result, time of finishing), read while the driver may be writing."""
    path = folder / "results.sqlite"
    if not path.is_file():
        return {}
    db = sqlite3.connect(path, timeout=10)
    try:
        rows = db.execute("SELECT key, result, finished_at FROM trials").fetchall()
    except sqlite3.OperationalError:  # the tables are not there yet
        return {}
    finally:
        db.close()
    return {key: (result, at) for key, result, at in rows}
