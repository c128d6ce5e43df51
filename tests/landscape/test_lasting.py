"""Losses that are not the same twice are refused; what is written to is a copy, not the data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape
from planimeter.errors import InputError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (24,), generator=generator)


def noisy(h, y):
    return F.cross_entropy(h + 0.1 * torch.randn_like(h), y)


class Centred(nn.Module):
    """Keeps a running mean of the outputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3).double())

    def forward(self, h, y):
        self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
        return (h - self.centre).square().mean()


class Annealed:
    """Counts its calls."""

    calls = 0

    def __call__(self, h, y):
        self.calls += 1
        return F.cross_entropy(h, y) * (1 + 0.01 * self.calls)


@pytest.mark.parametrize("loss", [noisy, Centred(), Annealed()])
def test_a_loss_that_is_another_one_each_time_is_refused(loss):
    model, state = network(), torch.get_rng_state()
    with pytest.raises(InputError, match="another one when it is computed again"):
        LossLandscape(model, loss, data())
    assert torch.equal(state, torch.get_rng_state())


def test_noise_that_is_drawn_once_is_none():
    noise = torch.randn(24, 3).double()

    def loss(h, y):
        return F.cross_entropy(h + y[:, 1:], y[:, 0].long())

    x, y = data()
    targets = torch.cat([y[:, None].double(), noise], 1)
    found = LossLandscape(network(), loss, (x, targets), batch_size=7).loss()
    assert found == pytest.approx(float(F.cross_entropy(network()(x) + noise, y)))


def shifted(h, y):
    y -= 1
    return F.cross_entropy(h, y)


def clipped(h, y):
    h.clamp_(-0.1, 0.1)
    return F.cross_entropy(h, y)


class Writes(nn.Module):
    """Shifts its inputs where they are."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        x -= 1
        return self.body(x)


@pytest.mark.parametrize("model", [network(), Writes()])
@pytest.mark.parametrize(("loss", "shift"), [(shifted, 1), (clipped, 0), (F.cross_entropy, 0)])
def test_data_is_left_alone_and_the_same_in_every_pass(model, loss, shift):
    x, y = data()
    rows = x.clone(), y + shift
    found = LossLandscape(model, loss, rows, batch_size=7)
    expected = float(loss(model(x.clone()), y + shift))
    assert found.loss() == found.loss() == pytest.approx(expected)
    gradient = found.gradient()
    found.hessian().dense()
    torch.testing.assert_close(found.gradient(), gradient)
    assert torch.equal(rows[0], x)
    assert torch.equal(rows[1], y + shift)


class Auxiliary(nn.Module):
    """Logits, and something that the loss may count beside them."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        logits = self.body(x)
        return {"logits": logits, "auxiliary": logits.square().sum(1)}


@pytest.mark.parametrize("factor", [0, 1])
def test_a_loss_that_takes_logits_or_the_whole_has_the_value_of_the_whole(factor):
    def loss(h, y):
        if isinstance(h, dict):
            return F.cross_entropy(h["logits"], y) + factor * h["auxiliary"].mean()
        return F.cross_entropy(h, y)

    x, y = data()
    found = LossLandscape(Auxiliary(), loss, (x, y))
    assert found.loss() == pytest.approx(float(loss(Auxiliary()(x), y)))
    if not factor:  # the same number: then the outputs are the logits
        assert found.accuracy() == float((network()(x).argmax(1) == y).double().mean())


class Graph(nn.Module):
    """Every node sees its neighbours."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x, matrix):
        return matrix @ self.body(x)


@pytest.mark.parametrize("nodes", [24, 100])
def test_a_matrix_with_as_many_rows_as_nodes_is_not_cut(nodes):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(nodes, 3, generator=generator, dtype=torch.float64)
    matrix = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64) / nodes
    y = torch.randint(0, 3, (nodes,), generator=generator)
    found = LossLandscape(Graph(), F.cross_entropy, ((x, matrix), y))
    assert found.loss() == pytest.approx(float(F.cross_entropy(Graph()(x, matrix), y)))
    v = torch.ones(found.num_parameters).double()
    assert torch.isfinite(found.hessian() @ v).all()


def test_time_first_is_measured_whole_where_there_are_as_many_steps_as_rows():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.RNN(2, 3)

        def forward(self, x):
            return self.body(x)[0][-1]

    x, y = torch.randn(6, 6, 2), torch.randint(0, 3, (6,))
    with pytest.warns(UserWarning, match="batch_first=True"):
        found = LossLandscape(Recurrent(), F.cross_entropy, (x, y))
    assert found.loss() == pytest.approx(float(F.cross_entropy(Recurrent()(x), y)), rel=1e-6)
