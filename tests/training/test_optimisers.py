import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.training import OPTIMISERS, SAM, EntropySGD, Padam, make_optimiser


def descend(optimiser, x, loss, steps):
    """`steps` steps on a function of one tensor."""

    def closure():
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    for _ in range(steps):
        optimiser.step(closure)
    return x.detach()


def curved(x):
    return (x**4 + torch.sin(3 * x)).sum()


def slope(x):
    return 4 * x**3 + 3 * math.cos(3 * x)


def start(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.125, 0.5])
def test_padam_follows_its_formula(p, decoupled):
    lr, b1, b2, eps, decay = 0.05, 0.8, 0.95, 1e-3, 0.1
    x = start(1.3)
    optimiser = Padam(
        [x], lr, betas=(b1, b2), eps=eps, partial=p, weight_decay=decay, decoupled=decoupled
    )
    found = float(descend(optimiser, x, curved, 6))
    theta, m, v, largest = 1.3, 0.0, 0.0, 0.0
    for t in range(1, 7):
        g = slope(theta)
        if decoupled:
            theta -= lr * decay * theta
        else:
            g += decay * theta
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        largest = max(largest, v)
        step = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
        theta -= step * m / (math.sqrt(largest) + eps) ** (2 * p)
    assert found == pytest.approx(theta, rel=1e-12)


@settings(max_examples=25)
@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    st.floats(1e-4, 0.1),
    st.floats(0, 0.1),
)
def test_padam_at_one_half_is_amsgrad(values, lr, decay):
    x, y = start(*values), start(*values)
    # Without epsilon, which the two add before and after the bias correction.
    common = {"lr": lr, "weight_decay": decay, "eps": 0.0}
    ours = descend(Padam([x], partial=0.5, **common), x, curved, 8)
    theirs = descend(torch.optim.Adam([y], amsgrad=True, **common), y, curved, 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_padam_decoupled_at_one_half_is_adamw_with_amsgrad():
    x, y = start(1.3, -0.4), start(1.3, -0.4)
    common = {"lr": 0.02, "weight_decay": 0.3, "eps": 0.0}
    ours = descend(Padam([x], partial=0.5, decoupled=True, **common), x, curved, 8)
    theirs = descend(torch.optim.AdamW([y], amsgrad=True, **common), y, curved, 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sam_follows_its_formula(momentum):
    lr, rho, decay = 0.03, 0.2, 0.05
    x = start(1.3, -0.7)
    optimiser = SAM([x], lr, rho=rho, momentum=momentum, weight_decay=decay)
    found = descend(optimiser, x, curved, 5)
    theta, velocity = [1.3, -0.7], [0.0, 0.0]
    for _ in range(5):
        g = [slope(t) for t in theta]
        norm = math.hypot(*g)
        there = [slope(t + rho * s / norm) for t, s in zip(theta, g, strict=True)]
        velocity = [
            momentum * v + s + decay * t for v, s, t in zip(velocity, there, theta, strict=True)
        ]
        theta = [t - lr * v for t, v in zip(theta, velocity, strict=True)]
    assert found.tolist() == pytest.approx(theta, rel=1e-12)


def test_sam_without_a_radius_is_sgd_to_the_last_bit():
    x, y = start(1.3, -0.7), start(1.3, -0.7)
    common = {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    ours = descend(SAM([x], rho=0.0, **common), x, curved, 6)
    assert torch.equal(ours, descend(torch.optim.SGD([y], **common), y, curved, 6))


@pytest.mark.parametrize(
    ("name", "torch_class", "fixed"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("momentum", torch.optim.SGD, {"momentum": 0.9}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("gradient_descent", torch.optim.SGD, {}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("adagrad", torch.optim.Adagrad, {}),
        ("rmsprop", torch.optim.RMSprop, {}),
    ],
)
def test_names_mean_what_torch_has(name, torch_class, fixed):
    x, y = start(1.3), start(1.3)
    ours = descend(make_optimiser(name, [x], lr=0.01, weight_decay=0.1), x, curved, 5)
    theirs = descend(torch_class([y], lr=0.01, weight_decay=0.1, **fixed), y, curved, 5)
    assert torch.equal(ours, theirs)


def test_every_name_makes_an_optimiser():
    for name in OPTIMISERS:
        assert isinstance(make_optimiser(name, [start(1.0)], lr=0.1), torch.optim.Optimizer)
    assert isinstance(make_optimiser("entropy_sgd", [start(1.0)]), EntropySGD)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("adamm", {}, "no optimiser 'adamm'.*did you mean 'adam'"),
        ("padam", {"parital": 0.1}, "padam has no setting 'parital'.*did you mean 'partial'"),
        ("momentum", {"momentun": 0.1}, "did you mean 'momentum'"),
        ("padam", {"partial": 0.7}, "partial from 0 to 0.5.*0.7"),
        ("padam", {"betas": (0.9, 1.0)}, "betas from 0 to below 1"),
        ("sam", {"rho": -1.0}, "rho >= 0, got -1"),
        ("adam", {"lr": -1.0}, "optimiser adam: Invalid learning rate: -1.0"),
    ],
)
def test_wrong_settings_are_refused(name, given, message):
    with pytest.raises(InputError, match=message):
        make_optimiser(name, [start(1.0)], **given)


def test_sam_needs_a_closure():
    with pytest.raises(InputError, match="needs a closure"):
        SAM([start(1.0)]).step()
