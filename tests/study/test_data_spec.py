import json

import pytest
import torch

from planimeter.data import binary_split, load
from planimeter.errors import InputError
from planimeter.study import trials_of
from planimeter.study.data_spec import DataSpec
from planimeter.study.spec import parse_study
from planimeter.study.trial import run_trial

STUDY = """\
title: small
data: {DATA}
model: {hidden: [5]}
training: {batch_size: 20, max_epochs: 2}
grid:
  optimisers: [{name: adam}]
  attack: [10]
  repetitions: 1
prior: {particles: 10, runs: 2}
"""


def study(data):
    return parse_study(STUDY.replace("DATA", data), "x.yaml")


def spec(**fields):
    return DataSpec(**({"name": "digits", "train": 40, "test": 20} | fields))


def test_old_studies_have_the_keys_that_they_had():
    """A field that is not used leaves the plain data, and so the key, as it was without it."""
    assert spec().model_dump(mode="json") == {
        "name": "digits", "train": 40, "test": 20, "positive": [5, 6, 7, 8, 9], "seed": 0,
    }  # fmt: skip
    assert spec(positive=[5, 6, 7, 8, 9]) == spec()
    assert "corruption" in spec(corruption=0.1).model_dump(mode="json")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"classes": "all", "normalisation": "granziol2020", "wrong_labels": "permuted"},
        {"classes": [3, [0, 8]], "corruption": 0.25, "ladder": True},
        {"name": "boolean", "n": 8, "target": "parity"},
    ],
)
def test_plain_data_say_it_all(fields):
    made = spec(**fields)
    assert DataSpec.model_validate_json(json.dumps(made.model_dump(mode="json"))) == made


def test_the_default_is_the_binary_split_of_old():
    one, other = spec(seed=3).split(), binary_split(load("digits"), train=40, test=20, seed=3)
    assert torch.equal(one.train_inputs, other.train_inputs)
    assert torch.equal(one.train_labels, other.train_labels)


def test_classes_normalisation_and_corruption_arrive_at_the_split():
    parts = spec(classes="all", normalisation="granziol2020", corruption=0.5).split()
    clean = spec(classes="all", normalisation="granziol2020").split()
    assert parts.classes == 10
    assert float(parts.train_inputs.min()) == -1.0
    assert int((parts.train_labels != clean.train_labels).sum()) == 20
    pair = spec(classes=[3, 8]).split()
    assert len(pair.train) + len(pair.test) + len(pair.pool) == 183 + 174
    assert spec(name="boolean", n=6, target="parity", train=30).split().classes == 2


@pytest.mark.data("uci")
def test_tables_are_standardised_by_default():
    parts = spec(name="sonar").split()
    torch.testing.assert_close(parts.train_inputs.mean(0), torch.zeros(60), atol=1e-5, rtol=0)
    assert spec(name="sonar", normalisation="none").split().train_inputs.min() >= 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("name: digts, train: 5, test: 5", "no data set 'digts'.*did you mean 'digits'"),
        ("name: cifar10, train: 5, test: 5, positive: [catt]", "did you mean 'cat'"),
        ("name: cifar10, train: 5, test: 5, classes: [cat, dgo]", "did you mean 'dog'"),
        ("name: digits, train: 5, test: 5, classes: [1]", "two or more groups"),
        ("name: digits, train: 5, test: 5, classes: [1, [2, 1]]", "class 1 stands in two"),
        ("name: digits, train: 5, test: 5, classes: some", "`all` or a list"),
        ("name: digits, train: 5, test: 5, classes: [1.5, 2]", "a number or a name"),
        ("name: digits, train: 5, test: 5, positive: [12]", "no class 12; they are 0 to 9"),
        ("name: digits, train: 5, test: 5, positive: [1], classes: all", "not both"),
        ("name: cifar100, train: 5, test: 5", "cifar100 has 100 classes: choose"),
        ("name: digits, train: 5, test: 5, normalisation: standard", "mean 'standardised'"),
        ("name: digits, train: 5, test: 5, wrong_labels: unifrom", "did you mean 'uniform'"),
        ("name: digits, train: 5, test: 5, corruption: 2", "data.corruption: .*less than or equal"),
        ("name: digits, train: 5, test: 5, n: 4", "digits has no setting 'n'"),
        ("name: boolean, train: 5, test: 5, n: 3, target: '01'", "has 8 values, the target has 2"),
        ("name: digits, train: 5, test: 5, normalization: none", "did you mean 'normalisation'"),
        ("name: digits, train: 1780, test: 10", "digits has 7 rows beside .* attack set of 10"),
        ("name: boolean, train: 60, test: 60", "boolean has 8 rows beside"),
        ("name: cifar10, train: 60000, test: 60", "cifar10 has too few rows: 10000 are missing"),
        ("name: digits, train: 5, test: 5, positive: []", "must be some, not all"),
    ],
)
def test_mistakes_are_named_with_their_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        study(data)
    assert str(caught.value).startswith("x.yaml, line ")


def test_trials_run_on_other_data_than_images():
    (trial,) = trials_of(study("name: boolean, train: 40, test: 20, target: majority"))
    result = run_trial(trial)
    assert 0 <= result["test_error"] <= 1


def test_on_a_ladder_sets_of_all_sizes_come_from_one_seed(monkeypatch):
    from planimeter.data import Split

    taken = {}
    attack_set = Split.attack_set

    def noted(self, size, seed):
        taken.setdefault(size, seed)
        return attack_set(self, size, seed)

    monkeypatch.setattr(Split, "attack_set", noted)
    for ladder in ("true", "false"):
        taken.clear()
        text = STUDY.replace("attack: [10]", "attack: [5, 10]")
        made = parse_study(
            text.replace("DATA", f"name: digits, train: 20, test: 20, ladder: {ladder}"), "x"
        )
        for trial in trials_of(made):
            run_trial(trial)
        assert (taken[5] == taken[10]) == (ladder == "true")
