import pytest

from planimeter.errors import InputError
from planimeter.study import built_in_studies, load_study, trials_of
from planimeter.study.spec import parse_study

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
        ("trace: {}", "tracee: {}", "no measure 'tracee'.*did you mean 'trace'"),
        ("trace: {}", "trace: {prbes: 3}", "no setting of trace 'prbes'.*did you mean 'probes'"),
        ("trace: {}", "trace: {probes: many}", "trace.probes must be a number, got 'many'"),
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
