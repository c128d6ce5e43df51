import os
import signal
import sqlite3
import subprocess
import sys
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
