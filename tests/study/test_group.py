import pytest
import torch

from planimeter.errors import InputError
from planimeter.study import trials_of
from planimeter.study.group import (
    MOST,
    Trained,
    groups_of,
    measure_member,
    train_group,
)
from planimeter.study.trial import run_trial

TIMES = ("train_seconds", "measure_seconds")


def result_of(trial, company):
    result = measure_member(trial, train_group(company)[company.index(trial)])
    return {name: value for name, value in result.items() if name not in TIMES}


def test_every_trial_is_in_one_group_of_its_kind(small_study):
    trials = trials_of(small_study)
    for workers in (1, 2, 5, 100):
        groups = groups_of(trials, workers)
        assert sorted(t.key for group in groups for t in group) == sorted(t.key for t in trials)
        assert all(len({t.optimiser["name"] for t in group}) == 1 for group in groups)
        sizes = [len(group) for group in groups]
        assert max(sizes) <= min(MOST, -(-len(trials) // workers))
    assert [len(group) for group in groups_of(trials, 2)] == [6, 6]


def test_groups_stay_below_the_cache(small_study):
    many = small_study.model_copy(
        update={"grid": small_study.grid.model_copy(update={"repetitions": 25})}
    )
    assert max(map(len, groups_of(trials_of(many), 1))) <= MOST


def test_a_result_does_not_depend_on_the_group(small_study):
    trials = trials_of(small_study)
    adam = [trial for trial in trials if trial.optimiser["name"] == "adam"]
    alone = result_of(adam[0], adam[:1])
    assert result_of(adam[0], adam) == alone == result_of(adam[0], [adam[4], adam[0]])


def test_results_are_those_of_single_trials(small_study):
    for trial in trials_of(small_study)[::4]:
        single, grouped = run_trial(trial), result_of(trial, [trial])
        assert grouped["fit"] == single["fit"]
        assert grouped["test_error"] == single["test_error"]
        for name, wanted in single["measures"].items():
            found = grouped["measures"][name]
            # In percent of a loss that is known to seven digits, the sharpness has five decimals.
            assert found["value"] == pytest.approx(wanted["value"], rel=1e-4, abs=2e-5)
            assert found.keys() == wanted.keys()
            assert (found["seed"], found["dtype"]) == (wanted["seed"], wanted["dtype"])
        for found, wanted in zip(grouped["log_prior"], single["log_prior"], strict=True):
            assert found["value"] == pytest.approx(wanted["value"], rel=1e-9)


def test_a_trial_that_cannot_start_does_not_stop_its_group(small_study):
    impossible = small_study.model_copy(
        update={"grid": small_study.grid.model_copy(update={"attack": (0, 5000)})}
    )
    trials = [t for t in trials_of(impossible) if t.optimiser["name"] == "sgd"]
    outcomes = train_group(trials)
    assert [isinstance(o, Trained) for o in outcomes] == [t.attack == 0 for t in trials]
    with pytest.raises(InputError, match="attack set of 5000 rows"):
        measure_member(trials[0], outcomes[0])


def test_divergence_is_stored_and_leaves_the_others_alone(small_study):
    trials = [t for t in trials_of(small_study) if t.optimiser["name"] == "sgd"]
    wild = trials[0].__class__(**vars(trials[0]) | {"optimiser": {"name": "sgd", "lr": 1e30}})
    outcomes = train_group([wild, trials[1]])
    result = measure_member(wild, outcomes[0])
    assert not result["fit"]["converged"]
    assert "the loss became" in result["fit"]["reason"]
    assert result["measures"] == {}
    (usual,) = train_group([trials[1]])
    assert outcomes[1].fit == usual.fit
    assert all(torch.equal(a, usual.state[n]) for n, a in outcomes[1].state.items())
