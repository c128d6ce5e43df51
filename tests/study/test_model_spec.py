import inspect
import json
from collections.abc import Sequence

import pytest
from pydantic import TypeAdapter
from torch import nn

from planimeter.errors import InputError
from planimeter.models.registry import MODELS, build_model, default_settings
from planimeter.study import trials_of
from planimeter.study.model_spec import SETTINGS, ModelSpec
from planimeter.study.spec import parse_study
from planimeter.study.trial import run_trial

STUDY = """\
title: small
data: {name: digits, train: 24, test: 12}
model: MODEL
training: {batch_size: 28, max_epochs: 60}
grid: {optimisers: [{name: adam, lr: 0.01}], attack: [4], repetitions: 1}
prior: {noise: []}
measures: {top_eigenvalue: {}, rangamani: {}}
figures: [rangamani]
"""


def study(model, text=STUDY):
    return parse_study(text.replace("MODEL", model), "small.yaml")


@pytest.mark.parametrize("name", MODELS)
def test_defaults_of_the_functions_are_those_of_the_specification(name):
    spec = ModelSpec.model_validate({"name": name})
    plain = spec.model_dump(mode="json")
    assert ModelSpec.model_validate_json(json.dumps(plain)) == spec
    assert set(plain) == {"name", *default_settings(name)}
    for setting, value in default_settings(name).items():
        assert TypeAdapter(SETTINGS[setting]).validate_python(value) == value
        assert inspect.signature(MODELS[name]).parameters[setting].default == value


def test_what_older_studies_say_means_what_it_meant():
    whole = {"name": "fully_connected", "hidden": [7], "sigma_w": 2.0**0.5, "sigma_b": 1.0}
    assert study("{hidden: [7]}", STUDY + "").model.model_dump(mode="json") == whole
    assert ModelSpec().model_dump(mode="json") == whole | {"hidden": [40, 40]}
    assert trials_of(study("{hidden: [7]}"))[0].key == trials_of(study(json.dumps(whole)))[0].key


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{name: resnet_20}", "no model 'resnet_20'; there are .*; did you mean 'resnet20'"),
        ("{name: [mlp]}", "model.name: must be a word"),
        ("{hiden: [3]}", "fully_connected has no setting 'hiden'; .* did you mean 'hidden'"),
        ("{name: resnet20, hidden: [3]}", "resnet20 has no setting 'hidden'; it has none"),
        ("{name: mlp, hidden: [3, 0]}", "model: hidden.1: .*greater than or equal to 1, got 0"),
        ("{name: mlp, hidden: 3}", "model: hidden: must be a list, .*, got 3"),
        ("{sigma_w: -1}", "model: sigma_w: .*greater than 0, got -1"),
        ("{name: vgg16, dropout: 1.0}", "model: dropout: .*less than 1, got 1.0"),
        ("{name: lenet5, biases: perhaps}", "model: biases: must be true or false, got 'perhaps'"),
        ("lenet5", "model: must be keys with values"),
    ],
)
def test_mistakes_are_named_with_their_line(model, message):
    with pytest.raises(InputError, match=rf"small.yaml, line 3: .*{message}"):
        study(model)


def test_settings_of_the_prior_belong_together():
    with pytest.raises(InputError, match=r"networks are those of an empirical kernel"):
        study("{name: lenet5}", STUDY.replace("{noise: []}", "{networks: 20}"))
    with pytest.raises(InputError, match=r"prior.kernel: .*'analytic' or 'empirical'"):
        study("{name: lenet5}", STUDY.replace("{noise: []}", "{kernel: empiric}"))
    with pytest.raises(InputError, match=r"a figure of log_prior needs prior\.noise"):
        study("{name: lenet5}", STUDY.replace("[rangamani]", "[log_prior]"))


def test_settings_reach_the_network():
    spec = ModelSpec.model_validate({"name": "mlp", "hidden": [5, 3], "biases": False})
    model = build_model(input_shape=(4,), outputs=1, **spec.model_dump(mode="json"))
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 4), (3, 5), (1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "{name: logistic_regression}",
        "{name: mlp, hidden: [5, 20, 7]}",
        "{name: lenet5, biases: false}",
        "{name: convnet}",
        "{name: resnet20}",
        "{name: bottleneck_preresnet, depth: 11}",
        "{name: wide_resnet, depth: 10, width: 1}",
    ],
)
def test_a_trial_runs_with_any_network(model, tmp_path):
    (trial,) = trials_of(study(model))
    result = run_trial(trial, tmp_path)
    assert result["log_prior"] == []
    assert result["measures"]["rangamani"]["value"] > 0
    assert 0 <= result["test_error"] <= 1
    assert (tmp_path / f"{trial.key}.safetensors").is_file()


def test_a_setting_that_an_architecture_gains_is_read_off_its_signature(monkeypatch):
    """No second list has to know of it."""

    def gated(
        input_shape, outputs=1, *, gates: int = 2, names: Sequence[str] = ("a",), skip=True
    ) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))

    monkeypatch.setitem(MODELS, "gated", gated)
    spec = study("{name: gated, names: [b, c]}").model
    assert spec.model_dump(mode="json") == {
        "name": "gated", "gates": 2, "names": ["b", "c"], "skip": True,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"model: gates: must be a whole number, got 'many'"):
        study("{name: gated, gates: many}")
    with pytest.raises(InputError, match=r"model: skip: must be true or false, got 'perhaps'"):
        study("{name: gated, skip: perhaps}")
    with pytest.raises(InputError, match=r"gated has no setting 'gate'; .*did you mean 'gates'"):
        study("{name: gated, gate: 3}")
