import pytest

from planimeter.report import build_report
from planimeter.report.over_time import curves
from planimeter.study import Store, trials_of
from planimeter.study.training_spec import TrainingSpec
from planimeter.study.trial import run_trial


@pytest.fixture
def store(small_study, tmp_path):
    training = TrainingSpec.model_validate(
        {
            "batch_size": 16,
            "overtrain": 4,
            "record": {
                "epochs": [0], "after_stop": [0, 4], "measures": {"trace": {"probes": 5}},
                "log_prior": True,
            },
        }
    )  # fmt: skip
    study = small_study.model_copy(update={"training": training})
    store = Store(tmp_path)
    with store.writing(study, "small"):
        for trial in trials_of(study)[:2]:
            store.add(trial, run_trial(trial))
    return store


def test_every_recorded_quantity_has_a_curve_for_each_trial(store):
    study, records = store.study()[0], store.records()
    found = curves(study, records)
    assert set(found) == {
        "loss on S", "training error (%)", "error on A (%)", "test error (%)", "‖θ‖",
        "trace of the Hessian", "log P(f), noise 0",
    }  # fmt: skip
    for record in records:
        epochs, values = found["test error (%)"][record.trial.label]
        stop = record.result["fit"]["stop_epoch"]
        assert epochs == [0, stop, stop + 4]
        assert values[-1] == pytest.approx(100 * record.result["test_error"])
        assert found["training error (%)"][record.trial.label][1][1] == 0


def test_the_report_shows_them(store):
    built = build_report(store)
    assert built.over_time.read_bytes()[:4] == b"\x89PNG"
    page = built.html.read_text()
    assert "During training" in page
    assert "trace of the Hessian" in page


def test_a_study_of_one_network_has_a_report(store, tmp_path):
    study, record = store.study()[0], store.records()[0]
    alone = Store(tmp_path / "alone")
    with alone.writing(study, "one"):
        alone.add(record.trial, record.result)
    built = build_report(alone)
    assert built.over_time.is_file()
    assert all(row.pearson.n <= 1 for row in built.rows)
