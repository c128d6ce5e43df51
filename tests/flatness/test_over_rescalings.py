import math

import pytest
import torch
from torch import nn

from planimeter.errors import NotApplicableError
from planimeter.flatness import minimum_sharpness, normalized_flat_minima
from planimeter.flatness.over_rescalings import least_over_neurons
from planimeter.landscape import LossLandscape

F = nn.functional


def trained(bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6, bias=bias), nn.ReLU(), nn.Linear(6, 6, bias=bias), nn.ReLU(),
        nn.Linear(6, 3, bias=bias),
    ).double()  # fmt: skip
    x = torch.randn(60, 5).double()
    y = (x[:, :3] + 0.3 * torch.randn(60, 3)).argmax(1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return LossLandscape(model, F.cross_entropy, (x, y))


def rescaled(landscape, factors):
    parameters = {n: v.clone() for n, v in landscape.parameters.items()}
    total = 1.0
    for name in parameters:
        if name.endswith("weight"):
            factor = factors.pop(0)
            total *= factor
            parameters[name] *= factor
        else:
            parameters[name] *= total
    return landscape.at(torch.cat([v.reshape(-1) for v in parameters.values()]))


def test_without_biases_there_is_a_closed_form():
    landscape = trained(bias=False)
    dense, blocks = landscape.hessian().dense(), landscape.hessian().blocks
    traces = [float(dense[part, part].trace()) for part in blocks.values()]
    found = minimum_sharpness(landscape, probes=10**4)
    assert found.value == pytest.approx(3 * math.prod(traces) ** (1 / 3), rel=1e-8)
    assert found.converged
    assert found.stderr == 0


def test_no_rescaling_has_a_smaller_trace():
    landscape = trained(bias=True)
    least = minimum_sharpness(landscape, probes=10**4).value
    generator = torch.Generator().manual_seed(0)
    best = math.inf
    for _ in range(60):
        a, b = torch.empty(2).uniform_(-1.0, 1.0, generator=generator).exp().tolist()
        moved = rescaled(landscape, [a, b, 1 / (a * b)])
        best = min(best, float(moved.hessian().dense().trace()))
        assert minimum_sharpness(moved, probes=10**4).value == pytest.approx(least, rel=1e-7)
        assert best >= least * (1 - 1e-9)
    assert best < 1.1 * least


def test_its_error_covers_the_exact_value():
    landscape = trained(bias=True)
    exact = minimum_sharpness(landscape, probes=10**4).value
    found = [minimum_sharpness(landscape, probes=60, seed=s) for s in range(20)]
    assert sum(abs(e.value - exact) < 2 * e.stderr for e in found) >= 17


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(x + self.one(x).relu())


@pytest.mark.parametrize(
    "model",
    [
        Residual(),
        nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    ],
)
def test_networks_that_are_no_chain(model):
    data = torch.randn(9, 4), torch.randint(0, 2, (9,))
    with pytest.raises(NotApplicableError, match="no chain of homogeneous layers"):
        minimum_sharpness(LossLandscape(model, F.cross_entropy, data))


def test_least_over_neurons_against_a_search():
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(3, 2, generator=generator).double()
    w = torch.rand(3, 2, generator=generator).double()
    value, change = least_over_neurons(h, w)
    assert change < 1e-10

    logs = torch.zeros(5, dtype=torch.float64, requires_grad=True)

    def total():
        u, v = logs[:3].exp(), logs[3:].exp()
        return u @ h @ v + (1 / u) @ w @ (1 / v)

    optimiser = torch.optim.LBFGS([logs], max_iter=500, tolerance_grad=1e-12)

    def closure():
        optimiser.zero_grad()
        loss = total()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert value == pytest.approx(float(total()), rel=1e-9)
    # One weight: u h v + w/(u v) is least at 2 (h w)^(1/2).
    assert least_over_neurons(h[:1, :1], w[:1, :1])[0] == pytest.approx(
        2 * math.sqrt(float(h[0, 0] * w[0, 0]))
    )


def test_dead_neurons_cost_nothing():
    h = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, -1.0, 0.0]]).double()
    w = torch.tensor([[1.0, 1.0, 5.0], [4.0, 4.0, 4.0], [2.0, 0.0, 1.0]]).double()
    part = [0, 2]
    expected = least_over_neurons(h[part][:, :2], w[part][:, :2])
    assert least_over_neurons(h, w) == pytest.approx(expected)
    assert least_over_neurons(0 * h, w) == (0.0, 0.0)


def test_normalized_flat_minima_of_the_exact_diagonal_and_of_probes():
    landscape = trained(bias=True)
    diagonal, exact = landscape.hessian().dense().diagonal(), 0.0
    for name, part in landscape.hessian().blocks.items():
        w = landscape.parameters[name]
        if w.ndim == 2:
            exact += least_over_neurons(diagonal[part].reshape(w.shape), w.square())[0]
    whole = normalized_flat_minima(landscape, probes=10**4)
    assert whole.value == pytest.approx(exact, rel=1e-8)
    assert whole.converged
    found = [normalized_flat_minima(landscape, probes=80, seed=s) for s in range(10)]
    assert sum(abs(e.value - exact) < 2.5 * e.stderr for e in found) >= 8
