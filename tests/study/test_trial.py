import json

import pytest
import torch
from safetensors.torch import load_file

from planimeter.study import trials_of
from planimeter.study.trial import run_trial


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
