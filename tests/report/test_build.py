import math
import re
import resource
import shutil
import struct
import subprocess

import numpy as np
import pytest

from planimeter.analysis.correlation import correlations
from planimeter.errors import InputError
from planimeter.report import build_report
from planimeter.report.table import correlation_rows
from planimeter.study import Store, trials_of


def result(trial, *, converged=True, prior_converged=True):
    """A plausible result: log P(f) falls with the attack set, sharpness is noise."""
    rng = np.random.default_rng([trial.attack, trial.repetition])
    error = 0.1 + 0.01 * trial.attack + 0.01 * rng.random()
    prior = {
        "value": -100 - 300 * error, "stderr": 0.02, "noise": 0.0, "alarms": [],
        "converged": prior_converged,
    }  # fmt: skip
    estimate = {"value": 1 + rng.random(), "stderr": 0.1, "converged": True}
    return {
        "fit": {"converged": converged, "epochs": 12, "attack_errors": 0, "reason": ""},
        "test_error": error,
        "train_loss": 0.05,
        "theta_norm": 12.0,
        "measures": {"trace": estimate, "keskar_sharpness": estimate},
        "log_prior": [prior],
    }


@pytest.fixture
def store(small_study, tmp_path):
    store = Store(tmp_path)
    with store.writing(small_study, "small"):
        for trial in trials_of(small_study):
            store.add(trial, result(trial))
    return store


def test_a_folder_where_no_trial_is_finished_is_not_said_to_have_missed_its_goal(
    small_study, tmp_path
):
    with Store(tmp_path).writing(small_study, "small"):
        pass
    with pytest.raises(InputError, match=r"no trial in .* is finished: nothing to show"):
        build_report(Store(tmp_path))


def test_the_table_is_computed_from_the_records(store, small_study):
    rows = correlation_rows(small_study, store.records())
    assert [(r.optimiser, r.quantity.name) for r in rows] == [
        (o, q) for o in ("adam", "sgd") for q in ("log_prior", "trace", "keskar_sharpness")
    ]
    own = [r.result for r in store.records() if r.trial.optimiser["name"] == "sgd"]
    expected = correlations(
        np.array([r["log_prior"][0]["value"] for r in own]),
        np.array([r["test_error"] for r in own]),
        bootstrap=100,
    )["pearson"]
    assert rows[3].pearson.value == pytest.approx(expected.value)
    assert rows[3].pearson.value == pytest.approx(-1)


def test_the_report_is_one_self_contained_file(store):
    built = build_report(store)
    page = built.html.read_text()
    # Only scripts, style sheets and images that are fetched would break it offline.
    assert not re.search(r"<(script|img)[^>]*\ssrc=|<link[^>]*href=", page)
    assert "Plotly.newPlot" in page
    assert "-1.000" in page
    assert "adam |A|=10 #0" in page
    assert built.warnings == []
    header = built.png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", header[16:24])) > 500


def test_what_cannot_be_trusted_is_said(small_study, tmp_path):
    store, trials = Store(tmp_path), trials_of(small_study)
    with store.writing(small_study, "small"):
        for trial in trials[:8]:
            store.add(trial, result(trial, prior_converged=trial is not trials[1]))
        store.add(trials[8], result(trials[8], converged=False))
    built = build_report(store)
    text = " ".join(built.warnings)
    assert "3 of 12 trials are not done" in text
    assert "1 of 9 trials did not reach zero error on S and are left out of figures" in text
    assert trials[8].label in text
    assert "1 of 9 trials: EP did not converge" in text
    assert sum(row.pearson.n for row in built.rows) == 3 * 8


def test_nothing_to_show_is_an_error(small_study, tmp_path):
    store = Store(tmp_path)
    with store.writing(small_study, "small"):
        trial = trials_of(small_study)[0]
        store.add(trial, result(trial, converged=False))
    with pytest.raises(InputError, match="reached zero error"):
        build_report(store)


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_every_point(store, tmp_path):
    built = build_report(store)
    page = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000", "--dump-dom", built.html.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    # 12 trials in each of 3 rows of panels, as SVG paths with the class `point`.
    assert len(re.findall(r'<path class="point"', page)) == 36


def test_diverged_trials_are_named_with_their_epoch(small_study, tmp_path):
    store, trials = Store(tmp_path), trials_of(small_study)
    with store.writing(small_study, "small"):
        for trial in trials[1:]:
            store.add(trial, result(trial))
        wild = result(trials[0], converged=False)
        wild["fit"] |= {"diverged": True, "epochs": 7}
        store.add(trials[0], {"fit": wild["fit"], "measures": {}, "log_prior": []})
    built = build_report(store)
    (warning,) = built.warnings
    assert "1 of 12 trials diverged, the loss became infinite or NaN, and are left out" in warning
    assert f"{trials[0].label} (epoch 7)" in warning
    assert "(diverged)" in built.html.read_text()


def test_weight_decays_stand_beside_loss_and_accuracy(small_study, tmp_path):
    grid = small_study.grid.model_copy(update={"attack": (0,), "weight_decay": (0.0, 0.01)})
    study, store = small_study.model_copy(update={"grid": grid}), Store(tmp_path)
    traces: dict = {}
    with store.writing(study, "small"):
        for trial in trials_of(study):
            made = result(trial) | {"train_error": 0.02}
            decay = trial.optimiser["weight_decay"]
            made["measures"]["trace"] = {
                "value": 5 * decay + trial.repetition, "stderr": 0.0, "converged": True,
            }  # fmt: skip
            store.add(trial, made)
            traces.setdefault(decay, []).append(5 * decay + trial.repetition)
    built = build_report(store)
    rows = [(r.optimiser, r.weight_decay, r.networks) for r in built.decays]
    assert rows == [("adam", 0.0, 3), ("adam", 0.01, 3), ("sgd", 0.0, 3), ("sgd", 0.01, 3)]
    means = built.decays[1].means
    assert means["train accuracy (%)"] == pytest.approx((98.0, 0.0))
    assert means["train loss"] == pytest.approx((0.05, 0.0))
    assert means["tr H"] == pytest.approx((1.05, 4.302653 / 1.959964 / 3**0.5))  # Student, 2
    assert "What does weight decay do?" in built.html.read_text()


def filled(study, folder, change=lambda trial, made: None):
    store = Store(folder)
    with store.writing(study, "small"):
        for trial in trials_of(study):
            made = result(trial)
            change(trial, made)
            store.add(trial, made)
    return store


@pytest.mark.parametrize("measured", [True, False])
def test_a_study_without_figures_has_a_report(small_study, tmp_path, measured):
    update = {"figures": ()}
    if not measured:
        update |= {"measures": {}, "prior": small_study.prior.model_copy(update={"noise": ()})}
    built = build_report(filled(small_study.model_copy(update=update), tmp_path))
    page = built.html.read_text()
    assert built.png is None
    assert not (tmp_path / "report.png").exists()
    assert "<h2>Figures</h2>" not in page
    assert "<h2>Trials</h2>" in page
    assert ("Which quantity predicts" in page) == measured
    assert len(built.rows) == (6 if measured else 0)


@pytest.mark.parametrize(
    ("value", "everywhere", "figures"),
    [
        (math.nan, True, ("trace",)),
        (math.nan, True, ("trace", "keskar_sharpness")),
        (math.nan, False, ("trace",)),
        (-math.inf, True, ("trace",)),
        (-1.0, False, ("trace",)),
        (0.0, True, ("trace",)),
    ],
)
def test_no_value_of_a_quantity_stops_the_report(small_study, tmp_path, value, everywhere, figures):
    def spoil(trial, made):
        if everywhere or trial.repetition == 0:
            made["measures"]["trace"] = {"value": value, "stderr": abs(value), "converged": True}

    study = small_study.model_copy(update={"figures": figures})
    built = build_report(filled(study, tmp_path, spoil))
    nothing = everywhere and not math.isfinite(value)
    assert (built.png is None) == (nothing and figures == ("trace",))
    assert any("tr H has no finite value" in w or "trace" in w for w in built.warnings) == nothing
    assert "Plotly.newPlot" in built.html.read_text() or built.png is None


def test_a_measure_that_was_not_taken_stops_no_report(small_study, tmp_path):
    built = build_report(filled(small_study, tmp_path, lambda t, made: made["measures"].clear()))
    assert {r.quantity.name for r in built.rows} == {"log_prior", "trace", "keskar_sharpness"}
    assert all(r.pearson.n == 0 for r in built.rows if r.quantity.name == "trace")


def test_a_full_disk_leaves_the_old_report_or_none(store):
    folder = store.folder
    for attempt in range(2):
        if attempt:
            build_report(store)
        before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # plotly alone is larger
        try:
            with pytest.raises(InputError, match=r"cannot write to .*report.* free some space"):
                build_report(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        after = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}
        assert after.get("report.html") == before.get("report.html")
        assert not [name for name in after if ".part" in name]
