import itertools
import math

import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.flatness import average_sharpness, measure, worst_case_sharpness
from planimeter.landscape import LossLandscape

F = nn.functional


def two_parameters():
    """A binary logistic model of two weights."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.8, -1.5]]))
    x = torch.randn(40, 2).double()
    y = (x[:, :1] - x[:, 1:] + 0.5 * torch.randn(40, 1).double() > 0).double()
    return LossLandscape(model, F.binary_cross_entropy_with_logits, (x, y))


def at_a_minimum():
    """A regression network at a minimum of loss zero, off by a hair."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(64, 4).double()
    y = model(x).detach()
    landscape = LossLandscape(model, F.mse_loss, (x, y))
    return landscape.at(landscape.theta * (1 + 1e-9))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_against_the_brute_force_maximum(norm, adaptive):
    landscape = two_parameters()
    theta, base = landscape.theta, landscape.loss()
    scale = theta.abs() if adaptive else torch.ones(2).double()
    if norm == "linf":
        ball = [torch.tensor(c).double() for c in itertools.product((-1, 1), repeat=2)]
    else:
        angles = torch.linspace(0, 2 * torch.pi, 721).double()
        ball = list(torch.stack([angles.cos(), angles.sin()], 1))
    best = max(landscape.at(theta + 0.3 * scale * z).loss() for z in ball) - base
    found = worst_case_sharpness(landscape, adaptive=adaptive, norm=norm, radius=0.3, m=40)
    assert found.value == pytest.approx(best, rel=1e-4)
    assert found.converged


def test_small_radii_see_half_the_eigenvalue():
    """At a minimum the rise is rho^2/2 times lambda_max of c H c; a slope of 2 in log-log."""
    landscape = at_a_minimum()
    top = measure(landscape, ["adaptive_eigenvalue"])["adaptive_eigenvalue"].value
    dense = landscape.hessian().dense()
    c = landscape.theta.abs()
    assert top == pytest.approx(float(torch.linalg.eigvalsh(c[:, None] * dense * c)[-1]), rel=1e-4)
    rises = [
        worst_case_sharpness(landscape, norm="l2", radius=rho, m=64, steps=60).value
        for rho in (1e-3, 2e-3)
    ]
    assert rises[0] == pytest.approx(top * 1e-6 / 2, rel=0.02)
    assert rises[1] / rises[0] == pytest.approx(4, rel=0.02)


def test_averages_see_half_the_trace():
    landscape = at_a_minimum()
    c = landscape.theta.abs()
    trace = float((c.square() * landscape.hessian().dense().diagonal()).sum())
    found = measure(landscape, ["adaptive_trace"], settings={"adaptive_trace": {"probes": 10**4}})
    assert found["adaptive_trace"].value == pytest.approx(trace, rel=1e-8)
    average = average_sharpness(landscape, radius=1e-3, draws=400)
    assert abs(average.value - trace * 1e-6 / 2) < 3 * average.stderr
    assert average.stderr < 0.1 * average.value


def test_m_sharpness_is_a_mean_over_batches_by_their_size():
    landscape = two_parameters()
    whole = worst_case_sharpness(landscape, norm="l2", radius=0.1, m=40)
    small = worst_case_sharpness(landscape, norm="l2", radius=0.1, m=16)
    assert small.value > whole.value  # every batch has its own worst direction
    assert "3 of 3 batches" in small.method
    part = worst_case_sharpness(landscape, norm="l2", radius=0.1, m=8, batches=4)
    assert part.stderr > 0
    assert "4 of 5 batches" in part.method
    assert math.isnan(worst_case_sharpness(landscape, norm="l2", m=8, batches=1).stderr)


def test_settings_in_error():
    landscape = two_parameters()
    for settings, message in (
        ({"norm": "l3"}, "no norm 'l3'"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"m": 0}, "m must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            worst_case_sharpness(landscape, **settings)
    with pytest.raises(InputError, match="at least 2 draws"):
        average_sharpness(landscape, draws=1)


class Counted(nn.Module):
    """An operation that stacked networks have no rule for."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False).double()

    def forward(self, x):
        h = self.linear(x)
        return h * 2 if h.detach().abs().sum().item() >= 0 else h


def test_a_forward_pass_may_look_at_its_own_numbers():
    data = torch.randn(40, 2).double(), torch.rand(40, 1).double()
    landscape = LossLandscape(Counted(), F.mse_loss, data)
    assert "3 of 3 batches" in worst_case_sharpness(landscape, m=16).method


@pytest.mark.parametrize(("size", "count"), [(7, 6), (40, 1), (11, 4), (1, 40)])
def test_batches_are_counted_as_they_come(size, count):
    """A loader keeps its own batches: no more are done than there are, and all leave no error."""
    landscape = two_parameters()
    x, y = landscape.data.tensors
    batches = list(zip(x.split(size), y.split(size), strict=True))
    loaded = LossLandscape(landscape.model, F.binary_cross_entropy_with_logits, batches)
    seen: list = []
    found = worst_case_sharpness(
        loaded, m=16, steps=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, count) for done in range(1, count + 1)]
    assert f"{count} of {count} batches" in found.method
    assert found.stderr == 0
