import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from planimeter.errors import InputError
from planimeter.training import (
    Averaging,
    Checkpoints,
    Recording,
    Timetable,
    after_epochs,
    fit,
    latest_checkpoint,
    linear_decay,
    load_checkpoint,
)

from .small import SETTINGS, flat, network, optimiser, rows


class Stopped(Exception):
    """What an interruption looks like from inside."""


def train(folder, name="sgd", *, resume=None, interrupt=None, error=Stopped, **options):
    """Nine epochs with dropout and BatchNorm, optionally blown up in the middle of one."""
    model = network(dropout=0.3)
    calls = 0

    def loss(outputs, labels):
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == interrupt:
            raise error
        return cross_entropy(outputs, labels)

    result = fit(
        model,
        loss,
        optimiser(model, name),
        rows(40),
        rows(27, seed=2),  # 5 batches an epoch: a step of Entropy-SGD ends within one
        rows(30, seed=3),
        batch_size=None if name == "gradient_descent" else 16,
        stop=after_epochs(7),
        overtrain=2,
        schedule=linear_decay(9, 0.1),
        recording=Recording(Timetable(every=2)),
        checkpoints=Checkpoints(folder, Timetable(every=1)),
        resume=resume,
        seed=5,
        **options,
    )
    return model, result


@pytest.mark.parametrize("averaging", [None, Averaging(4)])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_run_goes_on_to_the_last_bit(name, averaging, tmp_path):
    before = torch.get_rng_state()
    whole, expected = train(tmp_path / "whole", name, averaging=averaging)
    calls = 6 if name == "gradient_descent" else 25
    with pytest.raises(Stopped):
        train(tmp_path / "cut", name, interrupt=calls, averaging=averaging)
    checkpoint = latest_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    resumed, result = train(tmp_path / "cut", name, resume=checkpoint, averaging=averaging)
    assert torch.equal(flat(whole), flat(resumed))
    assert result == expected
    assert torch.equal(torch.get_rng_state(), before)  # dropout draws from its own numbers


@pytest.mark.parametrize("epoch", [1, 3, 5, 7, 8, 9])
@pytest.mark.parametrize("name", ["adamw", "entropy_sgd"])
def test_every_checkpoint_leads_to_the_same_end(name, epoch, tmp_path):
    whole, expected = train(tmp_path, name, averaging=Averaging(3, every=2))
    found = [p for p in sorted(tmp_path.iterdir()) if int(p.name[6:]) >= epoch]
    resumed, result = train(tmp_path, name, resume=found[0], averaging=Averaging(3, every=2))
    assert torch.equal(flat(whole), flat(resumed))
    assert result == expected


def test_a_checkpoint_holds_the_network_of_its_epoch(tmp_path):
    model, _ = train(tmp_path, averaging=Averaging(4))
    weights, state = load_checkpoint(latest_checkpoint(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert state["averaged"] == 6
    assert not list(tmp_path.glob("**/*.p*kl*"))


def test_the_stop_point_and_the_end_have_checkpoints_of_their_own(tmp_path):
    model = network()
    fit(
        model, cross_entropy, optimiser(model), rows(40), batch_size=16, stop=after_epochs(3),
        overtrain=4, checkpoints=Checkpoints(tmp_path),
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-000003", "epoch-000007"]


def test_ctrl_c_keeps_the_last_checkpoint_and_half_a_one_does_not_count(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, interrupt=18, error=KeyboardInterrupt)
    half = tmp_path / ".epoch-000004.partial"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "epoch-000003"
    whole, _ = train(tmp_path / "whole")
    resumed, _ = train(tmp_path, resume=latest_checkpoint(tmp_path))
    assert torch.equal(flat(whole), flat(resumed))


def test_wrong_checkpoints_are_refused(tmp_path):
    train(tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    with pytest.raises(InputError, match="another training: it used SGD, without averaging"):
        train(tmp_path, "adam", resume=checkpoint)
    with pytest.raises(InputError, match="without averaging"):
        train(tmp_path, resume=checkpoint, averaging=Averaging(3))
    model = network(norm=False)
    with pytest.raises(InputError, match="is of another training"):
        fit(model, cross_entropy, optimiser(model), rows(40), resume=checkpoint)
    with pytest.raises(InputError, match=r"no checkpoint at .*nothing"):
        train(tmp_path, resume=tmp_path / "nothing")
    weights = checkpoint / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        train(tmp_path, resume=checkpoint)
    assert latest_checkpoint(tmp_path / "empty") is None


def test_the_state_is_readable_json(tmp_path):
    train(tmp_path, "adam")
    text = (latest_checkpoint(tmp_path) / "state.json").read_text()
    assert "optimiser" in json.dumps(json.loads(text))
