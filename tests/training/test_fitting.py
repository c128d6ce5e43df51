import json
from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import cross_entropy

from planimeter.data import binary_split, load
from planimeter.errors import InputError
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy, predicted_classes
from planimeter.models.fully_connected import fully_connected
from planimeter.training import (
    Intervention,
    Recording,
    Timetable,
    after_epochs,
    alpha_scale,
    evaluate,
    fit,
    fit_to_zero_error,
    function_on,
    loss_below,
    make_optimiser,
    measuring,
    shuffled,
    steps,
)

from .small import flat, network, optimiser, rows

SETTINGS = {"sgd": {"lr": 0.05}, "adam": {"lr": 2e-3}, "entropy_sgd": {"lr": 1.0}}


@pytest.fixture
def split():
    return binary_split(load("digits"), train=80, test=200)


def train(split, name="adam", attack=0, settings=None, **options):
    model = fully_connected(64, seed=1)
    optimiser = make_optimiser(name, model.parameters(), **(settings or SETTINGS[name]))
    train = (split.train_inputs, split.train_labels)
    result = fit_to_zero_error(
        model, binary_cross_entropy, optimiser, train, split.attack_set(attack, 0), **options
    )
    return model, result


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("attack", [0, 30])
def test_reaches_zero_error_on_the_training_set(split, name, attack):
    model, result = train(split, name, attack)
    assert result.converged
    with torch.no_grad():
        wrong = predicted_classes(model(split.train_inputs)) != split.train_labels
    assert int(wrong.sum()) == result.train_errors == 0


def test_stops_at_the_first_such_epoch(split):
    history = []
    _, result = train(split, progress=lambda epoch, errors: history.append((epoch, errors)))
    assert [epoch for epoch, _ in history] == list(range(1, result.epochs + 1))
    assert [errors for _, errors in history].index(0) == len(history) - 1


def test_not_reaching_it_is_a_result(split):
    _, result = train(split, "sgd", settings={"lr": 1e-6}, max_epochs=3)
    assert not result.converged
    assert result.epochs == 3
    assert "training rows still wrong after 3 epochs" in result.reason


def test_divergence_is_a_result(split):
    _, result = train(split, "sgd", settings={"lr": 1e20}, max_epochs=50)
    assert not result.converged
    assert "the loss became" in result.reason or "still wrong" in result.reason


def test_attack_sets_hurt_the_test_error(split):
    errors = []
    for attack in (0, 60):
        model, _ = train(split, attack=attack)
        with torch.no_grad():
            errors.append(
                float(
                    (predicted_classes(model(split.test_inputs)) != split.test_labels)
                    .double()
                    .mean()
                )
            )
    assert errors[1] > errors[0] + 0.05


def test_the_seed_alone_decides(split):
    one, other = (train(split, seed=3)[0] for _ in range(2))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_wrong_settings_are_refused(split):
    with pytest.raises(InputError, match="at least 1"):
        train(split, max_epochs=0)


def fitted(model, name="sgd", data=None, **options):
    """`fit` on the small task of three classes."""
    settings = {"batch_size": 16, "seed": 5} | options
    return fit(model, cross_entropy, optimiser(model, name), data or rows(40), **settings)


def test_zero_error_within_fit_is_fit_to_zero_error(split):
    train = split.train_inputs, split.train_labels
    ends = []
    for run in (fit, fit_to_zero_error):
        model = fully_connected(64, seed=1)
        algorithm = make_optimiser("sgd", model.parameters(), lr=0.05)
        result = run(model, binary_cross_entropy, algorithm, train, split.attack_set(30, 0), seed=2)
        ends.append((flat(model), result))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[0][1].stop_epoch == ends[0][1].epochs


def test_loss_below_stops_at_the_first_such_epoch():
    losses = []
    model = network()
    result = fitted(
        model, stop=loss_below(0.35), progress=lambda epoch, on_train: losses.append(on_train.loss)
    )
    assert result.converged
    assert losses[-1] < 0.35 <= min(losses[:-1])
    assert evaluate(model, cross_entropy, rows(40)).loss == losses[-1]
    assert "below 0.35" in result.reason


def test_a_number_of_epochs_looks_at_nothing_on_the_way():
    seen = []
    result = fitted(
        network(), stop=after_epochs(4), progress=lambda epoch, on_train: seen.append(on_train)
    )
    assert (result.converged, result.epochs, seen) == (True, 4, [None] * 4)


def test_giving_up_says_what_was_missing():
    result = fitted(network(), stop=loss_below(1e-9), max_epochs=3)
    assert not result.converged
    assert "after 3 epochs" in result.reason
    assert result.stop_epoch is None


def test_overtraining_goes_on_and_is_recorded_from_the_stop_point():
    model = network()
    recording = Recording(Timetable(epochs=(0, 2), after_stop=(0, 5, 20)))
    result = fitted(
        model, data=rows(40), attack=rows(5, 8), test=rows(30, 9), overtrain=20, recording=recording
    )
    stop = result.stop_epoch
    assert result.epochs == stop + 20
    assert result.converged
    assert [(r.epoch, r.after_stop) for r in result.records] == [
        (0, None), (2, None), (stop, 0), (stop + 5, 5), (stop + 20, 20),
    ]  # fmt: skip
    first, _, reached, *_, last = (r.values for r in result.records)
    assert reached["train_errors"] == 0 < first["train_errors"]
    assert last["loss"] < reached["loss"] < first["loss"]
    assert first["loss"] == evaluate(network(), cross_entropy, rows(40)).loss
    assert last["test_errors"] == evaluate(model, cross_entropy, rows(30, 9)).errors
    assert last["attack_errors"] == result.attack_errors
    weights = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    assert last["theta_norm"] == pytest.approx(float(weights.norm()))


def test_overtraining_starts_with_the_same_epochs():
    """The network at the stop point does not depend on what follows."""
    model = network()
    stop = fitted(model).stop_epoch
    longer, seen = network(), {}
    fitted(
        longer,
        overtrain=5,
        progress=lambda epoch, on_train: seen.setdefault(epoch, flat(longer)),
    )
    assert torch.equal(seen[stop], flat(model))
    assert max(seen) == stop + 5


def test_measures_and_any_function_can_be_recorded():
    def landscape_of(model):
        return LossLandscape(model, cross_entropy, rows(40))

    model = network(norm=False)
    hooks = measuring({"trace": {"probes": 5}, "top_eigenvalue": {}}, landscape_of)
    recording = Recording(
        Timetable(epochs=(2,)), (hooks, lambda m: {"first": float(m[0].bias.detach()[0])})
    )
    result = fitted(model, stop=after_epochs(2), recording=recording)
    values = result.records[0].values
    assert values["first"] == float(model[0].bias.detach()[0])
    expected = measure(
        landscape_of(model), ["trace", "top_eigenvalue"], settings={"trace": {"probes": 5}}
    )
    for name, estimate in expected.items():
        assert values[name]["value"] == pytest.approx(estimate.value, rel=1e-6)
    json.dumps(asdict(result))
    with pytest.raises(InputError, match="did you mean trace"):
        measuring({"tracee": {}}, landscape_of)


def test_alpha_scaling_at_an_epoch_keeps_the_function_and_moves_the_flatness():
    """zhang2021, Figure 5: the first layer by 1/5.9, the second by 5.9."""

    def landscape_of(model):
        return LossLandscape(model, cross_entropy, rows(40))

    model = network(norm=False)
    change = alpha_scale("0", 1 / 5.9, landscape_of)
    weights = []
    recording = Recording(
        Timetable(after_stop=(2, 3)),
        (measuring({"top_eigenvalue": {}}, landscape_of), lambda m: weights.append(flat(m)) or {}),
    )
    plain = fitted(network(norm=False), stop=after_epochs(3), overtrain=3, recording=recording)
    scaled = fitted(
        model,
        stop=after_epochs(3),
        overtrain=3,
        recording=recording,
        interventions=[Intervention(Timetable(after_stop=(2,)), change)],
    )
    before, after = plain.records[0].values, scaled.records[0].values
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert after["train_errors"] == before["train_errors"]
    assert after["top_eigenvalue"]["value"] > 3 * before["top_eigenvalue"]["value"]
    first = 12 * 6 + 12
    ratio = weights[2] / weights[0]
    torch.testing.assert_close(
        ratio[:first], torch.full_like(ratio[:first], 1 / 5.9), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        ratio[first:-3], torch.full_like(ratio[first:-3], 5.9), rtol=1e-5, atol=0
    )
    assert not torch.equal(weights[3], weights[1])  # training went on from there


def test_divergence_comes_with_its_epoch():
    model = network(norm=False)
    seen = []
    result = fitted(
        model,
        stop=after_epochs(200),
        schedule=lambda epoch: 1.0 if epoch < 3 else 1e30,
        recording=Recording(Timetable(every=1)),
        progress=lambda epoch, _: seen.append(epoch),
    )
    assert result.diverged
    assert not result.converged
    assert result.epochs == seen[-1] == 4
    assert [record.epoch for record in result.records] == [0, 1, 2, 3]
    assert result.reason == "the loss became nan"


def test_a_last_step_into_nowhere_is_divergence_too():
    schedule = steps(1, 1e30)  # the first epoch is sound, the second one's steps are not
    result = fitted(network(norm=False), stop=after_epochs(2), schedule=schedule, batch_size=40)
    assert result.diverged
    assert not result.converged
    assert result.epochs == 2


@pytest.mark.parametrize("name", ["gradient_descent", "sam"])
def test_full_batches_in_pieces_are_full_batches(name, monkeypatch):
    ends = []
    for numbers in (10**6, 6 * 16):  # 16 rows of 6 numbers
        monkeypatch.setattr("planimeter.training.evaluation.PIECE", numbers)
        model = network(norm=False).double()
        inputs, labels = rows(40)
        fitted(model, name, (inputs.double(), labels), batch_size=None, stop=after_epochs(5))
        ends.append(flat(model))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)
    plain = network(norm=False).double()
    fitted(plain, name, (inputs.double(), labels), batch_size=40, stop=after_epochs(5))
    torch.testing.assert_close(ends[0], flat(plain), rtol=1e-12, atol=1e-14)


def test_sam_sees_each_batch_twice():
    seen = []

    class Watched(torch.nn.Linear):
        def forward(self, inputs):
            seen.append(inputs)
            return super().forward(inputs)

    model = Watched(6, 3)
    fitted(model, "sam", stop=after_epochs(2))
    trained = [x for x in seen if len(x) < 40]
    assert len(trained) == 2 * 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(trained[::2], trained[1::2], strict=True))


def test_training_batches_may_come_from_anywhere():
    """An augmenting source, with S as batches for evaluation."""
    inputs, labels = rows(40)

    def noisy(generator):
        for x, y in shuffled(inputs, labels, 16)(generator):
            yield x + 0.1 * torch.randn(x.shape, generator=generator), y

    kept = list(zip(inputs.split(7), labels.split(7), strict=True))
    ends = []
    for _ in range(2):
        model = network()
        result = fitted(model, data=kept, batches=noisy, stop=after_epochs(3))
        ends.append(flat(model))
    assert torch.equal(*ends)
    assert result.train_errors == evaluate(model, cross_entropy, (inputs, labels)).errors
    plain = network()
    fitted(plain, data=(inputs, labels), stop=after_epochs(3))
    assert not torch.equal(flat(plain), ends[0])
    # A source that only shuffles is what `fit` does by itself.
    same = network()
    fitted(same, data=kept, batches=shuffled(inputs, labels, 16), stop=after_epochs(3))
    assert torch.equal(flat(plain), flat(same))


def test_evaluation_goes_in_pieces_and_leaves_the_model_alone(monkeypatch):
    model = network(dropout=0.5).train()
    before = flat(model)
    whole = evaluate(model, cross_entropy, rows(40))
    sizes = []
    model[0].register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    monkeypatch.setattr("planimeter.training.evaluation.PIECE", 6 * 15)
    pieces = evaluate(model, cross_entropy, rows(40))
    assert sizes == [15, 15, 10]
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (pieces.errors, pieces.rows) == (whole.errors, 40)
    labels = function_on(model, rows(40)[0])
    assert int((labels != rows(40)[1]).sum()) == whole.errors
    assert model.training
    assert model[1].training
    assert torch.equal(before, flat(model))


def test_the_schedule_sets_the_rate_of_each_epoch():
    model = network()
    algorithm = make_optimiser("sgd", model.parameters(), lr=0.1)
    seen = []
    fit(
        model, cross_entropy, algorithm, rows(40), batch_size=16, stop=after_epochs(5),
        schedule=steps(2, 0.5),
        progress=lambda epoch, _: seen.append(algorithm.param_groups[0]["lr"]),
    )  # fmt: skip
    assert seen == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 41}, "batch_size 41 is larger than the 40 rows"),
        ({"overtrain": -1}, "overtrain at least 0"),
        ({"data": [rows(40)]}, "pass `batches`"),
        ({"recording": None, "max_epochs": 0}, "at least 1"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fitted(network(), **options)


def test_wrong_rules_and_timetables_are_refused():
    for wrong in (
        lambda: loss_below(0.0),
        lambda: after_epochs(0),
        lambda: Timetable(epochs=(-1,)),
        lambda: Timetable(every=0),
    ):
        with pytest.raises(InputError):
            wrong()
