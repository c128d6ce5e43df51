import pytest
import torch

from planimeter.data import binary_split, load
from planimeter.errors import InputError
from planimeter.losses import binary_cross_entropy, predicted_classes
from planimeter.models.fully_connected import fully_connected
from planimeter.training import fit_to_zero_error, make_optimiser

SETTINGS = {"sgd": {"lr": 0.05}, "adam": {"lr": 2e-3}, "entropy_sgd": {"lr": 1.0}}


@pytest.fixture
def split():
    return binary_split(load("digits"), train=80, test=200)


def fit(split, name="adam", attack=0, settings=None, **options):
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
    model, result = fit(split, name, attack)
    assert result.converged
    with torch.no_grad():
        wrong = predicted_classes(model(split.train_inputs)) != split.train_labels
    assert int(wrong.sum()) == result.train_errors == 0


def test_stops_at_the_first_such_epoch(split):
    history = []
    _, result = fit(split, progress=lambda epoch, errors: history.append((epoch, errors)))
    assert [epoch for epoch, _ in history] == list(range(1, result.epochs + 1))
    assert [errors for _, errors in history].index(0) == len(history) - 1


def test_not_reaching_it_is_a_result(split):
    _, result = fit(split, "sgd", settings={"lr": 1e-6}, max_epochs=3)
    assert not result.converged
    assert result.epochs == 3
    assert "training rows still wrong after 3 epochs" in result.reason


def test_divergence_is_a_result(split):
    _, result = fit(split, "sgd", settings={"lr": 1e20}, max_epochs=50)
    assert not result.converged
    assert "the loss became" in result.reason or "still wrong" in result.reason


def test_attack_sets_hurt_the_test_error(split):
    errors = []
    for attack in (0, 60):
        model, _ = fit(split, attack=attack)
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
    one, other = (fit(split, seed=3)[0] for _ in range(2))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_wrong_settings_are_refused(split):
    with pytest.raises(InputError, match="at least 1"):
        fit(split, max_epochs=0)
