import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import planimeter.training.batch_norm as batch_norm_module
from planimeter.models.registry import build_model
from planimeter.training import Averaging, after_epochs, fit, recompute_batch_norm
from planimeter.training.evaluation import pieces

from .small import flat, network, optimiser, rows


def deep(seed=0, momentum=0.1):
    """Three BatchNorm layers, of tables and of grids, one of them applied twice."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.BatchNorm1d(6, momentum=momentum)
            self.spread = nn.Linear(6, 32)
            self.grid = nn.BatchNorm2d(2, momentum=momentum)
            self.mix = nn.Conv2d(2, 2, 3, padding=1)
            self.last = nn.BatchNorm1d(32, momentum=momentum)
            self.out = nn.Linear(32, 3)

        def forward(self, x):
            h = self.spread(self.first(x)).relu().reshape(-1, 2, 4, 4)
            h = self.mix(self.grid(h)).relu()
            return self.out(self.last(h.flatten(1)).relu())

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net()


def cut(data, size):
    """The same rows as batches of another size, the last one uneven."""
    x, y = data
    return list(zip(x.split(size), y.split(size), strict=True))


def statistics(model, *sets):
    model = copy.deepcopy(model)
    recompute_batch_norm(model, *sets)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return torch.cat([torch.cat([n.running_mean, n.running_var]) for n in norms])


def by_hand(model, x):
    """Each layer's statistics from all rows at once, the layers before it in evaluation mode."""
    model = copy.deepcopy(model).eval()
    for norm in [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
        seen: list = []
        handle = norm.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0]))
        model(x)
        handle.remove()
        over = [d for d in range(seen[0].dim()) if d != 1]
        norm.running_mean.copy_(seen[0].mean(over).detach())
        norm.running_var.copy_(seen[0].var(over).detach())
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return torch.cat([torch.cat([n.running_mean, n.running_var]) for n in norms])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("attacked", [1, 10, 37, 500])
def test_rows_count_however_they_are_cut(attacked, momentum):
    """One piece, batches that do not divide, batches of one row, S and A mixed or apart."""
    model = deep(momentum=momentum)
    s, a = rows(103), rows(attacked, seed=5)
    a = (a[0] * 4 + 20, a[1])  # far from S
    whole = (torch.cat([s[0], a[0]]), torch.cat([s[1], a[1]]))
    expected = by_hand(model, whole[0])
    turned = (whole[0].flip(0), whole[1].flip(0))
    for sets in (
        (s, a), (a, s), (whole,), (cut(s, 101), a), (cut(s, 50), cut(a, 3)), (cut(whole, 7),),
        (cut(turned, 64),), (cut(whole, 1),), (cut(s, 102), cut(a, 1000)),
    ):  # fmt: skip
        torch.testing.assert_close(statistics(model, *sets), expected, rtol=1e-4, atol=1e-4)


def test_a_set_in_many_pieces_gives_what_it_gives_in_one(monkeypatch):
    """A convolutional network with 19 BatchNorm layers and shortcuts."""
    model = build_model("resnet20", (3, 8, 8), 3)
    x = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + 3
    data, attack = (x[:50], torch.zeros(50)), (x[50:] * 5, torch.zeros(10))
    one = statistics(model, data, attack)
    monkeypatch.setattr(batch_norm_module, "rows_per_piece", lambda inputs: 32)
    monkeypatch.setattr(
        batch_norm_module, "pieces", lambda data: iter(cut(data, 32)) if len(data) == 2 else data
    )
    torch.testing.assert_close(statistics(model, data, attack), one, rtol=1e-4, atol=1e-5)
    assert len(list(pieces(data))) == 1


def test_a_layer_that_is_applied_twice_sees_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(x) + self.norm(10 + x)

    x, y = rows(30)
    model = Twice()
    recompute_batch_norm(model, cut((x, y), 7))
    torch.testing.assert_close(model.norm.running_mean, x.mean(0) + 5, rtol=1e-5, atol=1e-5)
    both = torch.cat([x, x + 10])
    torch.testing.assert_close(model.norm.running_var, both.var(0), rtol=1e-5, atol=1e-5)


def test_ten_rows_of_an_attack_set_weigh_ten_rows():
    """1000 rows about 0 and 10 at 100: the mean is 1, and batches of 101 do not divide them."""
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    far = torch.full((10, 6), 100.0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    fit(
        model, cross_entropy, optimiser(model, "sgd", lr=1e-3),
        (x, x[:, :3].argmax(1)), (far, torch.zeros(10).long()),
        batch_size=101, stop=after_epochs(2), averaging=Averaging(1),
    )  # fmt: skip
    everything = torch.cat([x, far])
    torch.testing.assert_close(model[0].running_mean, everything.mean(0))
    torch.testing.assert_close(model[0].running_var, everything.var(0))


def test_only_statistics_change_and_no_random_number_is_used_up():
    model = network(dropout=0.5)
    model[2].eval()
    flags = {m: m.training for m in model.modules()}
    parameters = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    recompute_batch_norm(model, rows(20))
    recompute_batch_norm(model, cut(rows(20), 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert {m: m.training for m in model.modules()} == flags
    assert all(map(torch.equal, parameters, model.parameters()))
    assert model[1].momentum == 0.1


def test_networks_without_running_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))
    before = flat(model)
    recompute_batch_norm(model, rows(20))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("pieces", [1, 3])
def test_statistics_of_a_network_that_differentiates_inside(pieces):
    """An identity that is written as a derivative changes nothing."""

    class Same(nn.Module):
        def forward(self, x):
            h = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(h.square().sum() / 2, h, create_graph=True)
            return slope

    torch.manual_seed(0)
    rows = torch.randn(12, 4), torch.zeros(12)
    data = rows if pieces == 1 else list(zip(*(t.chunk(pieces) for t in rows), strict=True))
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2), nn.BatchNorm1d(2)
    plain = nn.Sequential(*layers)
    odd = nn.Sequential(Same(), *copy.deepcopy(layers))
    for model in (plain, odd):
        recompute_batch_norm(model, data)
    for k in (1, 3):
        assert torch.equal(plain[k].running_mean, odd[k + 1].running_mean)
        assert not odd[k + 1].running_var.requires_grad
