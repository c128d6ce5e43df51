import copy
import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.training import EntropySGD, make_optimiser


def reference(
    x, gradient, steps, *, lr, momentum, inner_lr, inner_steps, averaging, gamma, scoping
):
    """The algorithm of the module's docstring in plain Python, without noise."""
    velocity = 0.0
    for t in range(steps):
        w, mu, pull = x, x, gamma * (1 + scoping) ** t
        for _ in range(inner_steps):
            w -= inner_lr * (gradient(w) - pull * (x - w))
            mu = averaging * mu + (1 - averaging) * w
        velocity = momentum * velocity + (x - mu)
        x -= lr * ((x - mu) + momentum * velocity)
    return x


@pytest.mark.parametrize(
    ("lr", "momentum", "gamma"), [(1.0, 0.9, 1e-4), (0.5, 0.0, 0.7), (0.1, 0.5, 3.0)]
)
def test_follows_its_definition(lr, momentum, gamma):
    settings = {
        "lr": lr, "momentum": momentum, "gamma": gamma,
        "inner_lr": 0.05, "inner_steps": 7, "averaging": 0.75, "scoping": 0.01,
    }  # fmt: skip
    x = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    optimiser = EntropySGD([x], thermal_noise=0.0, **settings)

    def closure():
        optimiser.zero_grad()
        value = (x**4 + torch.sin(3 * x)).sum()
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(closure)
    expected = reference(1.3, lambda w: 4 * w**3 + 3 * math.cos(3 * w), 5, **settings)
    assert float(x.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_noise_has_its_size():
    x = torch.zeros(20000, requires_grad=True)
    optimiser = EntropySGD(
        [x], lr=1.0, momentum=0.0, inner_lr=0.08, inner_steps=1, averaging=0.0, thermal_noise=0.5
    )

    def closure():
        x.grad = torch.zeros_like(x)
        return 0.0

    optimiser.step(closure)
    assert float(x.detach().std()) == pytest.approx(math.sqrt(2 * 0.08) * 0.5, rel=0.02)


def test_a_restored_optimiser_goes_on_exactly():
    def make(weights):
        x = weights.clone().requires_grad_()
        return x, make_optimiser("entropy_sgd", [x], seed=4, lr=0.3)

    def advance(x, optimiser, steps):
        for _ in range(steps):

            def closure():
                optimiser.zero_grad()
                value = (x**2).sum()
                value.backward()
                return value

            optimiser.step(closure)

    x, optimiser = make(torch.ones(3))
    advance(x, optimiser, 3)
    state = copy.deepcopy(optimiser.state_dict())  # what saving to disk does
    resumed, second = make(x.detach())
    second.load_state_dict(state)
    advance(x, optimiser, 2)
    advance(resumed, second, 2)
    assert torch.equal(x, resumed)


def test_wrong_settings_are_refused():
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(InputError, match="inner_lr > 0"):
        EntropySGD([x], inner_lr=0.0)
    with pytest.raises(InputError, match="closure"):
        EntropySGD([x]).step()
    with pytest.raises(InputError, match="no optimiser 'sdg'"):
        make_optimiser("sdg", [x])
    with pytest.raises(InputError, match="optimiser adam"):
        make_optimiser("adam", [x], speed=3)
