import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from planimeter.errors import InputError
from planimeter.study import Study, load_study, trials_of
from planimeter.study.data_spec import DataSpec
from planimeter.study.model_spec import ModelSpec
from planimeter.study.optimiser_spec import SGDSpec
from planimeter.study.spec import PriorSpec
from planimeter.study.training_spec import TrainingSpec
from planimeter.study.trial import check_trial, run_trial
from planimeter.training import OPTIMISERS
from planimeter.training.stream import BatchStream


def test_a_trial_is_reproducible_and_plain_json(small_study, tmp_path):
    trial = trials_of(small_study)[0]
    one, other = run_trial(trial, tmp_path), run_trial(trial)
    for result in (one, other):
        for timing in ("train_seconds", "measure_seconds"):
            result.pop(timing)
    assert json.loads(json.dumps(one)) == json.loads(json.dumps(other))
    weights = load_file(tmp_path / f"{trial.key}.safetensors")
    assert float(torch.cat([w.reshape(-1) for w in weights.values()]).norm()) == pytest.approx(
        one["theta_norm"], rel=1e-6
    )


def test_results_carry_errors_and_settings(small_study):
    result = run_trial(trials_of(small_study)[0])
    assert result["fit"]["converged"]
    assert 0 <= result["test_error"] <= 1
    assert result["measures"]["trace"]["stderr"] > 0
    assert result["log_prior"][0]["stderr"] > 0
    assert result["log_prior"][0]["noise"] == 0.0
    assert result["train_loss"] > 0


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_log_p_of_any_network_with_an_empirical_kernel(small_study, name):
    update = {
        "model": ModelSpec.model_validate({"name": name}),
        "prior": PriorSpec(noise=(0.0, 1.0), kernel="empirical", particles=50, runs=2),
    }
    trial = trials_of(small_study.model_copy(update=update))[0]
    found = run_trial(trial)["log_prior"]
    assert [entry["noise"] for entry in found] == [0.0, 1.0]
    for entry in found:
        assert entry["networks"] == 10
        assert entry["stderr"] > entry["kernel_stderr"] > 0
        assert -200 < entry["value"] < -5


def test_the_empirical_kernel_of_a_study_approaches_the_analytic_one(small_study):
    """Wide layers and many networks; the same function, since training does not look at it."""
    wide = {"model": ModelSpec.model_validate({"name": "fully_connected", "hidden": [512]})}
    sections = {
        "analytic": PriorSpec(),
        "empirical": PriorSpec(kernel="empirical", networks=60),
    }
    values = {
        kind: run_trial(trials_of(small_study.model_copy(update=wide | {"prior": prior}))[0])
        for kind, prior in sections.items()
    }
    one, other = (values[kind]["log_prior"][0] for kind in sections)
    assert abs(one["value"] - other["value"]) < 4 * other["stderr"] + 0.5


def test_optimisers_start_from_the_same_networks(small_study):
    trials = trials_of(small_study)
    adam, sgd = trials[0], trials[3]
    assert (adam.attack, adam.repetition) == (sgd.attack, sgd.repetition)
    assert adam.optimiser["name"] != sgd.optimiser["name"]


def test_not_reaching_zero_error_is_stored_not_hidden(small_study):
    hard = small_study.model_copy(
        update={"training": small_study.training.model_copy(update={"max_epochs": 1})}
    )
    result = run_trial(trials_of(hard)[0])
    assert not result["fit"]["converged"]
    assert result["fit"]["reason"]
    assert "test_error" in result


def changed(study, **training):
    """The study with another training section."""
    section = TrainingSpec.model_validate({"batch_size": 16, "max_epochs": 300} | training)
    return study.model_copy(update={"training": section})


def test_a_diverged_trial_is_stored_as_such_with_its_epoch(small_study):
    wild = small_study.grid.model_copy(
        update={"optimisers": (SGDSpec(name="sgd", lr=1e25), *small_study.grid.optimisers)}
    )
    result = run_trial(trials_of(small_study.model_copy(update={"grid": wild}))[0])
    assert result["fit"]["diverged"]
    assert not result["fit"]["converged"]
    assert 1 <= result["fit"]["epochs"] < 300
    assert "the loss became" in result["fit"]["reason"]
    assert result["measures"] == {}
    json.dumps(result)


def test_records_hold_measures_and_the_prior(small_study):
    study = changed(
        small_study,
        overtrain=6,
        record={"after_stop": [0, 6], "measures": {"trace": {"probes": 5}}, "log_prior": True},
        rescale={"layer": "1", "alpha": 0.5, "after_stop": [3]},
    )
    result = run_trial(trials_of(study)[-1])
    assert result["fit"]["epochs"] == result["fit"]["stop_epoch"] + 6
    at_zero, last = (r["values"] for r in result["fit"]["records"])
    assert at_zero["train_errors"] == 0
    assert last["log_prior"] == result["log_prior"]
    assert last["trace"]["value"] == pytest.approx(result["measures"]["trace"]["value"], rel=1e-6)
    assert last["loss"] == pytest.approx(result["train_loss"], rel=1e-6)


def test_an_interrupted_trial_goes_on_from_its_checkpoint(small_study, tmp_path, monkeypatch):
    study = changed(small_study, stop="epochs", max_epochs=12, checkpoints={"every": 5})
    trial = trials_of(study)[0]
    expected = run_trial(trial)
    run_trial(trial, tmp_path)
    for done in ("epoch-000010", "epoch-000012"):
        shutil.rmtree(tmp_path / trial.key / done)
    epochs = []
    original = BatchStream.take
    monkeypatch.setattr(
        BatchStream, "take", lambda stream: epochs.append(stream.epochs) or original(stream)
    )
    result = run_trial(trial, tmp_path)
    assert sorted(set(epochs)) == list(range(5, 12))
    for name in ("fit", "measures", "log_prior", "train_loss"):
        assert result[name] == expected[name]


def test_several_classes_and_weight_decays(small_study):
    grid = small_study.grid.model_copy(update={"attack": (0,), "weight_decay": (0.0, 0.1)})
    study = changed(small_study, stop="epochs", max_epochs=40).model_copy(
        update={
            "data": DataSpec(name="digits", train=60, test=60, classes="all"),
            "grid": grid,
            "prior": PriorSpec(noise=()),
        }
    )
    free, decayed = [run_trial(t) for t in trials_of(study) if t.repetition == 0][:2]
    assert free["log_prior"] == []
    assert free["fit"]["train_errors"] == round(60 * free["train_error"]) < 6
    assert free["theta_norm"] > decayed["theta_norm"]
    assert free["train_loss"] < decayed["train_loss"]


@pytest.mark.slow
def test_weight_decay_makes_networks_that_fit_sharper():
    """granziol2020, claim 1: two orders of magnitude, at training accuracy 1."""
    study = load_study("granziol2020/regularisation")
    ends = [t for t in trials_of(study) if t.repetition == 0][:: len(study.grid.weight_decay) - 1]
    weak, strong = (run_trial(t) for t in ends)
    assert weak["train_error"] == strong["train_error"] == 0
    assert weak["train_loss"] < strong["train_loss"]
    for name in ("top_eigenvalue", "trace"):
        ratio = strong["measures"][name]["value"] / weak["measures"][name]["value"]
        assert ratio > 100


def test_augmented_batches_are_for_training_only(small_study):
    study = changed(small_study, stop="epochs", max_epochs=3, augmentation="flip_crop")
    plain = changed(small_study, stop="epochs", max_epochs=3)
    one, again, other = (run_trial(trials_of(s)[0]) for s in (study, study, plain))
    assert one["train_loss"] == again["train_loss"] != other["train_loss"]
    assert one["train_error"] == one["fit"]["train_errors"] / 30


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_trial_runs_with_every_optimiser(small_study, name):
    grid = {"optimisers": [{"name": name, "lr": 0.01}], "attack": [10], "repetitions": 1}
    training = {"batch_size": 16, "max_epochs": 3, "stop": "epochs", "averaging": {"start": 2}}
    plain = small_study.model_dump(mode="json") | {"grid": grid, "training": training}
    result = run_trial(trials_of(Study.model_validate(plain))[0])
    assert result["fit"]["converged"]
    assert result["fit"]["epochs"] >= 3
    assert result["train_error"] == result["fit"]["train_errors"] / 30


@pytest.mark.parametrize(
    ("section", "content", "message"),
    [
        ("model", {"hidden": [10**11]}, "does not fit into memory: .*hidden .*100000000000"),
        ("training", {"rescale": {"layer": "9", "alpha": 2.0, "epochs": [1]}},
         r"training.rescale: no rescaling of layer '9' was found; these can be: 1"),
        ("model", {"name": "lenet5"}, "kernel: empirical"),
    ],
)  # fmt: skip
def test_what_could_not_be_done_is_refused_before_any_work(small_study, section, content, message):
    trial = trials_of(small_study)[0]
    whole = getattr(small_study, section).model_dump(mode="json") | content
    if content.get("name"):
        whole = ModelSpec.model_validate(content).model_dump(mode="json")
    with pytest.raises(InputError, match=message):
        check_trial(replace(trial, **{section: whole}))


def test_a_rescaling_that_never_comes_is_refused():
    with pytest.raises(ValueError, match=r"rescale at epoch 5 never comes.*for 0 epochs"):
        TrainingSpec(rescale={"layer": "0", "alpha": 2.0, "after_stop": [5]})
    with pytest.raises(ValueError, match="rescale at epoch 12 never comes"):
        TrainingSpec(rescale={"layer": "0", "alpha": 2.0, "epochs": [12]}, max_epochs=11)
    TrainingSpec(rescale={"layer": "0", "alpha": 2.0, "after_stop": [5]}, overtrain=5)
