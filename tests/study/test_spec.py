import json
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
import torch

from planimeter.errors import InputError
from planimeter.study import Study, built_in_studies, load_study, trials_of
from planimeter.study.spec import parse_study
from planimeter.study.trial import RESULT_VERSION, is_key_of
from planimeter.training import (
    OPTIMISERS,
    Averaging,
    Timetable,
    constant,
    make_optimiser,
    zero_error,
)

GOOD = """\
title: small
data: {name: digits, train: 20, test: 20}
grid:
  optimisers:
    - {name: adam}
    - name: sgd
      lr: 0.1
  attack: [0, 5]
  repetitions: 2
measures:
  trace: {}
"""


def test_a_study_has_a_trial_for_each_point():
    study = parse_study(GOOD, "good.yaml")
    trials = trials_of(study)
    assert len(trials) == len({t.key for t in trials}) == 8
    assert trials[0].label == "adam |A|=5 #0"


def test_every_built_in_study_is_valid():
    assert {"demo", "zhang2021/fig3-mnist"} <= set(built_in_studies())
    for name in built_in_studies():
        assert load_study(name).title
    assert len(trials_of(load_study("demo"))) >= 60
    assert len(trials_of(load_study("zhang2021/fig3-mnist"))) == 55
    assert len(trials_of(load_study("granziol2020/regularisation"))) == 15
    assert load_study("zhang2021/fig5").training.overtrain == 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "repetitions: 2",
            "repetitons: 2",
            "line 9: unknown key 'grid.repetitons'; did you mean 'repetitions'",
        ),
        ("title: small\n", "", "key 'title' is missing"),
        ("train: 20", "trian: 20", "line 2: unknown key 'data.trian'; did you mean 'train'"),
        ("      lr: 0.1", "      learning_rate: 0.1", r"line 7: .*learning_rate|line 6: .*lr"),
        ("lr: 0.1", "lr: -1", r"line 7: grid.optimisers.1.lr: .*greater than 0 \(got -1\)"),
        ("name: digits", "name: digit", "line 2: data: no data set 'digit'.*did you mean 'digits'"),
        ("trace: {}", "tracee: {}", "line 10: measures: no measure 'tracee'; did you mean trace"),
        ("trace: {}", "trace: {prbes: 3}", "no setting of trace 'prbes'.*did you mean 'probes'"),
        ("trace: {}", "trace: {probes: many}", "trace.probes must be a whole number, got 'many'"),
        ("name: adam", "name: adan", "line 5: no optimiser 'adan'; .*did you mean 'adam'"),
        ("attack: [0, 5]", "attack: [0, 0]", "attack sizes must differ"),
        ("attack: [0, 5]", "attack: [0, -5]", "line 8: grid.attack.1: .*greater than or"),
        ("title: small", "title: [small", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(old, new, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_study(GOOD.replace(old, new), "bad.yaml")
    assert str(caught.value).startswith("bad.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train: 20", "train: 20.5", r"line 2: data.train: must be a whole number \(got 20.5\)"),
        ("train: 20", "train: [20]", r"data.train: must be a whole number \(got \[20\]\)"),
        ("train: 20", "train: '20'", r"data.train: must be a whole number \(got '20'\)"),
        ("[0]", "0", r"grid.attack: must be a list, such as \[a, b\] \(got 0\)"),
        ("[0]", "[]", r"grid.attack: must have 1 entries or more \(got \[\]\)"),
        ("lr: 1", "lr: [1]", r"grid.optimisers.0.lr: must be a number \(got \[1\]\)"),
        ("title: t", "title: 3", r"title: must be a word .* \(got 3\)"),
        ("{noise: [0.0]}", "false", r"prior: must be keys with values, .* \(got False\)"),
        ("{trace: {}}", "[trace]", r"measures: must be keys with values, .* \(got \['trace'\]\)"),
    ],
)
def test_wrong_kinds_of_values_are_told_in_the_words_of_yaml(old, new, message):
    text = """title: t
data: {name: digits, train: 20, test: 20}
grid: {optimisers: [{name: sgd, lr: 1}], attack: [0], repetitions: 1}
measures: {trace: {}}
prior: {noise: [0.0]}
"""
    parse_study(text, "x.yaml")
    assert text.count(old) == 1
    with pytest.raises(InputError, match=message):
        parse_study(text.replace(old, new), "x.yaml")


def test_a_folder_is_no_study_file(tmp_path):
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(InputError, match="is a folder, not a study file"):
        load_study(str(tmp_path / "x.yaml"))


def test_unknown_studies_are_suggested():
    with pytest.raises(InputError, match="did you mean 'demo'"):
        load_study("demos")
    with pytest.raises(InputError, match="no study file at nothing"):
        load_study("nothing.yaml")


def test_keys_depend_on_what_determines_the_result_and_on_nothing_else():
    def keys(text):
        return [t.key for t in trials_of(parse_study(text, "x"))]

    assert keys(GOOD) == keys(GOOD.replace("title: small", "title: other"))
    assert keys(GOOD) == keys(GOOD + "statistics: {bootstrap: 500}\n")
    for changed in (
        GOOD + "seed: 1\n",
        GOOD.replace("train: 20", "train: 21"),
        GOOD.replace("trace: {}", "trace: {probes: 7}"),
        GOOD + "prior: {noise: [1.0]}\n",
        GOOD + "training: {batch_size: 16}\n",
    ):
        assert not set(keys(GOOD)) & set(keys(changed))


TRAINING = """\
title: trained
data: {name: digits, train: 60, test: 20, classes: all}
training:
  stop: loss_below
  loss_below: 0.1
  overtrain: 20
  schedule: {name: linear, ratio: 0.5, epochs: 161}
  averaging: {start: 161}
  record: {epochs: [0, 10], after_stop: [0, 20], measures: {trace: {probes: 5}}}
  rescale: {layer: "1", alpha: 0.5, after_stop: [10]}
  checkpoints: {every: 100}
grid:
  optimisers:
    - {name: adamw, lr: 0.001, betas: [0.9, 0.99]}
    - {name: padam}
  weight_decay: [0.0, 0.25]
  attack: [0]
  repetitions: 1
measures:
  trace: {}
prior: null
figures: [trace]
"""


def test_training_is_said_in_yaml():
    study = parse_study(TRAINING, "trained.yaml")
    training = study.training
    assert training.schedule.function(5000)(161) == 0.5
    assert training.average == Averaging(161)
    assert training.record.timetable == Timetable(epochs=(0, 10), after_stop=(0, 20))
    assert [t.label for t in trials_of(study)] == [
        "adamw |A|=0 #0", "adamw wd=0.25 |A|=0 #0", "padam |A|=0 #0", "padam wd=0.25 |A|=0 #0",
    ]  # fmt: skip
    assert len({t.key for t in trials_of(study)}) == 4
    assert study.prior.noise == ()


def test_old_studies_have_the_keys_that_they_had():
    """A setting that is not used leaves the plain data, and so the key, as it was without it."""
    plain = parse_study(GOOD, "good.yaml").model_dump(mode="json")
    assert plain["training"] == {"batch_size": 32, "max_epochs": 5000}
    assert plain["grid"] == {
        "optimisers": [
            {"name": "adam", "lr": 0.001}, {"name": "sgd", "lr": 0.1, "momentum": 0.0},
        ],
        "attack": [0, 5],
        "repetitions": 2,
    }  # fmt: skip
    for text in (GOOD, TRAINING):
        study = parse_study(text, "x")
        assert Study.model_validate_json(study.model_dump_json()) == study


def test_defaults_are_what_studies_always_meant():
    training = parse_study(GOOD, "good.yaml").training
    assert training.rule is zero_error
    assert training.schedule.function(10) is constant
    assert (training.overtrain, training.average, training.record) == (0, None, None)
    assert (training.batch_size, training.max_epochs) == (32, 5000)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_can_stand_in_a_study(name):
    text = GOOD.replace("{name: adam}", f"{{name: {name}, lr: 0.2}}").replace(
        "    - name: sgd\n      lr: 0.1\n", ""
    )
    trial = trials_of(parse_study(text, "x"))[0]
    settings = {key: value for key, value in trial.optimiser.items() if key != "name"}
    made = make_optimiser(name, [torch.zeros(1, requires_grad=True)], **settings)
    assert made.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: padam", "name: padm", "line 15: no optimiser 'padm'; .*did you mean 'padam'"),
        ("{name: padam}", "{lr: 1.0}", "line 15: grid.optimisers.1 needs a `name`"),
        ("betas: [0", "beta: [0", "line 14: unknown key 'grid.optimisers.0.beta'; .*mean 'betas'"),
        ("lr: 0.001", "lr: 0", r"line 14: grid.optimisers.0.lr: .*greater than 0 \(got 0\)"),
        ("name: linear", "name: liner", "line 7: no schedule 'liner'; .*did you mean 'linear'"),
        ("ratio: 0.5", "rato: 0.5", "line 7: unknown key 'training.schedule.rato'; .*'ratio'"),
        ("stop: loss_below", "stop: loss_blow", "line 4: training.stop: .*mean 'loss_below'"),
        ("  loss_below: 0.1\n", "", "and a value for `loss_below` belong together"),
        ("{start: 161}", "{strat: 161}", "line 8: unknown key 'training.averaging.strat'; .*start"),
        ("{start: 161}", "{start: 9999}", "averaging starts at epoch 9999, training ends at 5020"),
        ("after_stop: [0,", "after_sop: [0,", "line 9: unknown key .*did you mean 'after_stop'"),
        (
            "{trace: {probes",
            "{trac: {probes",
            "record.measures: no measure 'trac'; did you mean trace",
        ),
        ("alpha: 0.5", "alpha: -1", "line 10: training.rescale.alpha: .*greater than 0"),
        ("[0.0, 0.25]", "[0.1, 0.1]", "weight decays must differ"),
        ("name: padam", "name: entropy_sgd", "entropy_sgd has no weight decay"),
        ("stop: loss_below", "augmentation: flip", "augmentation: .*'none' or 'flip_crop'"),
        ("prior: null", "prior: {noise: [0.0]}", "needs a binary task: set `prior: null`"),
        ("probes: 5}}}", "probes: 5}}, log_prior: true}", "to be recorded: give `prior`"),
        ("figures: [trace]", "figures: [log_prior]", "a figure of log_prior needs prior.noise"),
    ],
)
def test_mistakes_in_training_are_named(old, new, message):
    assert old in TRAINING
    with pytest.raises(InputError, match=message):
        parse_study(TRAINING.replace(old, new), "bad.yaml")


def test_a_key_is_the_hash_of_all_that_determines_the_result():
    trial = trials_of(parse_study(GOOD, "good.yaml"))[0]
    stored = {"version": RESULT_VERSION} | asdict(trial)
    assert trial.key == sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:16]
    averaged = replace(trial, training=trial.training | {"averaging": {"start": 1, "every": 1}})
    assert averaged.key != trial.key
    for version in range(RESULT_VERSION + 1):
        stored = {"version": version} | asdict(trial)
        old = sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:16]
        assert is_key_of(old, asdict(trial))
