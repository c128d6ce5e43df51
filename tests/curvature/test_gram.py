import importlib

import pytest
import torch
from torch import nn

from planimeter.curvature import (
    gauss_newton_spectrum,
    gauss_newton_trace,
    piecewise_linear_trace,
)
from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy

cross_entropy, mse_loss = nn.functional.cross_entropy, nn.functional.mse_loss


class Shared(nn.Module):
    """A layer that is called twice, a weight that is tied, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.twice, self.once, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.once.weight = self.twice.weight
        self.out.bias.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.tanh(self.once(torch.relu(self.twice(torch.relu(self.twice(x)))))))


def problems():
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 6, 2, groups=3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    attention = nn.Sequential(
        nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(),
        nn.Linear(40, 3),
    )  # fmt: skip
    single = nn.Sequential(  # a convolution with one place to be
        nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    mlp = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4))
    binary = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1))
    x, classes = torch.randn(30, 7), torch.randint(0, 4, (30,))
    return {
        "mlp": (mlp, cross_entropy, x, classes),
        "regression": (mlp, mse_loss, x, torch.randn(30, 4)),
        "binary": (binary, binary_cross_entropy, x, classes // 2),
        "convolutions": (conv, cross_entropy, torch.randn(20, 2, 8, 8), classes[:20] % 3),
        "one place": (single, cross_entropy, torch.randn(20, 2, 8, 8), classes[:20] % 3),
        "attention": (attention, cross_entropy, torch.randint(0, 9, (12, 5)), classes[:12] % 3),
        "shared": (Shared(), cross_entropy, torch.randn(15, 4), classes[:15] % 3),
    }


def landscape_of(name, **options):
    model, loss, x, y = problems()[name]
    double = (t.double() if t.is_floating_point() else t for t in (x, y))
    return LossLandscape(model.double().eval(), loss, tuple(double), **options)


@pytest.mark.parametrize("name", list(problems()))
@pytest.mark.parametrize("options", [{}, {"memory_budget": 3000}])
def test_the_spectrum_is_that_of_the_dense_matrix(name, options):
    landscape = landscape_of(name)
    exact = torch.linalg.eigvalsh(landscape.gauss_newton().dense()).flip(0)
    spectrum = gauss_newton_spectrum(landscape, **options)
    count = min(len(exact), len(spectrum.values))
    torch.testing.assert_close(spectrum.values[:count], exact[:count], rtol=1e-9, atol=1e-12)
    assert spectrum.trace().value == pytest.approx(float(exact.sum()), rel=1e-10)
    assert spectrum.frobenius_norm().value == pytest.approx(float(exact.norm()), rel=1e-10)
    assert gauss_newton_trace(landscape).value == pytest.approx(float(exact.sum()), rel=1e-10)
    assert spectrum.rank(1e-9).value == int((exact > 1e-9 * exact[0]).sum())
    assert spectrum.log_product(3).value == pytest.approx(float(exact[:3].log().sum()), rel=1e-9)


def test_batches_make_no_difference():
    one, other = (gauss_newton_spectrum(landscape_of("mlp", batch_size=b)) for b in (7, 100))
    torch.testing.assert_close(one.values, other.values)


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_the_trace_of_a_piecewise_linear_network(name):
    landscape = landscape_of(name)
    exact = float(landscape.hessian().dense().trace())
    assert piecewise_linear_trace(landscape).value == pytest.approx(exact, rel=1e-10)


class Rows(nn.Module):
    """Layers that see the rows in another order, or not as rows at all."""

    def __init__(self, order):
        super().__init__()
        self.order, self.first, self.out = order, nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        if self.order == "sequence first":
            hidden = self.first(x.transpose(0, 1)).mean(0)
        elif self.order == "flattened":
            hidden = self.first(x.reshape(-1, 4)).reshape(len(x), -1, 5).mean(1)
        elif self.order == "keyword":
            hidden = self.first(input=x).mean(1)
        else:
            hidden = self.first(x.flip(0)).flip(0).mean(1)
        return self.scale * self.out(torch.tanh(hidden))


@pytest.mark.parametrize("order", ["sequence first", "flattened", "reversed", "keyword"])
@pytest.mark.parametrize("length", [6, 12])
def test_layers_that_see_the_rows_otherwise(order, length):
    torch.manual_seed(0)
    x, y = torch.randn(12, length, 4).double(), torch.randint(0, 3, (12,))
    model = Rows(order).double()
    if order == "reversed":  # what is frozen in front needs no derivative
        model.first.bias.requires_grad_(False)
    landscape = LossLandscape(model, cross_entropy, (x, y))
    exact = torch.linalg.eigvalsh(landscape.gauss_newton().dense()).flip(0)
    found = gauss_newton_spectrum(landscape).values
    count = min(len(found), len(exact))
    torch.testing.assert_close(found[:count], exact[:count], rtol=1e-9, atol=1e-12)
    assert gauss_newton_trace(landscape).value == pytest.approx(float(exact.sum()))


@pytest.mark.parametrize("activation", [nn.PReLU, nn.ReLU])
def test_frozen_layers_and_activations_with_parameters(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    x, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    landscape = LossLandscape(model, cross_entropy, (x, y))
    exact = float(landscape.gauss_newton().dense().trace())
    assert gauss_newton_trace(landscape).value == pytest.approx(exact)


def test_rows_count_what_the_loss_divides_by():
    torch.manual_seed(0)
    y = torch.randint(0, 3, (300,))
    y[:270:3] = -100
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.01]).double())
    model, data = nn.Linear(4, 3).double(), (torch.randn(300, 4).double(), y)
    for loss, size in ((weighted, 300), (weighted, 7), (cross_entropy, 7)):
        landscape = LossLandscape(model, loss, data, batch_size=size)
        dense = landscape.gauss_newton().dense()
        whole = LossLandscape(model, loss, data).gauss_newton().dense()
        torch.testing.assert_close(dense, whole)
        spectrum = gauss_newton_spectrum(landscape).values
        torch.testing.assert_close(
            spectrum, torch.linalg.eigvalsh(whole).flip(0)[: len(spectrum)], rtol=1e-9, atol=1e-12
        )
        assert gauss_newton_trace(landscape).value == pytest.approx(float(whole.trace()))
        assert piecewise_linear_trace(landscape).value == pytest.approx(float(whole.trace()))


def test_losses_that_single_rows_have_no_share_in_are_refused():
    torch.manual_seed(0)
    data = torch.randn(30, 4), torch.randint(0, 3, (30,))

    def contrasted(h, y):
        return (h[1:] - h[:-1]).square().sum(1).exp().mean() + cross_entropy(h, y)

    with pytest.warns(MeasurementWarning, match="cannot be cut into batches"):
        landscape = LossLandscape(nn.Linear(4, 3), contrasted, data)
    with pytest.raises(InputError, match="no mean over rows"):
        gauss_newton_trace(landscape)
    assert not landscape.function.separable
    assert landscape.hessian().dense().shape == (15, 15)  # in one piece it is what it is


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.relu(self.layer(torch.relu(self.layer(x)))))


def test_what_is_used_twice_is_not_piecewise_linear():
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    for model, message in ((Twice(), r"Twice|called 2 times"), (Shared(), "more than one place")):
        with pytest.raises(InputError, match=message):
            piecewise_linear_trace(LossLandscape(model, cross_entropy, data))


class HiddenCurve(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))

    def forward(self, x):
        return self.layers[1](torch.sigmoid(self.layers[0](x)))


def test_networks_that_are_not_piecewise_linear_are_refused():
    with pytest.raises(InputError, match="Tanh"):
        piecewise_linear_trace(landscape_of("binary"))
    torch.manual_seed(0)
    x, y = torch.randn(20, 7).double(), torch.randint(0, 3, (20,))
    with pytest.raises(InputError, match=r"diagonals|HiddenCurve"):
        piecewise_linear_trace(LossLandscape(HiddenCurve().double(), cross_entropy, (x, y)))


def test_what_does_not_fit_is_refused_at_once():
    model = nn.Sequential(nn.Linear(3, 200), nn.Linear(200, 101))
    data = torch.randn(201, 3), torch.randint(0, 101, (201,))
    with pytest.raises(InputError, match=r"at most 200 rows"):
        gauss_newton_spectrum(LossLandscape(model, cross_entropy, data))


def test_many_rows_of_a_small_network_need_the_small_matrix_alone():
    torch.manual_seed(0)
    data = torch.randn(20_001, 4).double(), torch.randint(0, 3, (20_001,))
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    landscape = LossLandscape(model, cross_entropy, data)
    exact = torch.linalg.eigvalsh(landscape.gauss_newton().dense()).flip(0)
    found = gauss_newton_spectrum(landscape).values
    assert len(found) == landscape.num_parameters
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "shared"])
def test_memory_is_looked_at_before_the_start(monkeypatch, name):
    module = importlib.import_module("planimeter.curvature.gram")
    landscape = landscape_of(name)
    values = gauss_newton_spectrum(landscape).values
    needed = 8 * len(values) ** 2
    monkeypatch.setattr(module, "free_memory", lambda device: needed)
    in_place = gauss_newton_spectrum(landscape).values  # a second copy would not fit
    torch.testing.assert_close(in_place, values, rtol=1e-9, atol=1e-14)
    monkeypatch.setattr(module, "free_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match=r"GiB of memory are free: use at most \d+ rows"):
        gauss_newton_spectrum(landscape)


def test_large_matrices_foretell_how_long_they_take(monkeypatch):
    monkeypatch.setattr(importlib.import_module("planimeter.curvature.gram"), "SHOWN", 16)
    told = []
    gauss_newton_spectrum(landscape_of("mlp"), progress=lambda *stage: told.append(stage))
    assert ("rows", 30, 30) in told
    assert [stage for stage, _, _ in told][-1] == "eigenvalues"
    assert all(done <= total for _, done, total in told)


def test_the_softmax_has_no_more_than_c_minus_1_columns_in_float32():
    """Where the rows are fitted well, 1 - p has few digits in float32."""
    torch.manual_seed(0)
    model = nn.Linear(40, 4)
    with torch.no_grad():
        model.weight.mul_(30)
    x = torch.randn(30, 40)
    landscape = LossLandscape(model, cross_entropy, (x, model(x).argmax(1)))
    assert len(gauss_newton_spectrum(landscape).values) == 30 * 3
    exact = torch.linalg.eigvalsh(landscape.gauss_newton().dense()).flip(0)
    found = gauss_newton_spectrum(landscape).values
    torch.testing.assert_close(found, exact[:90], rtol=1e-3, atol=1e-5 * float(exact[0]))


def test_rows_that_batchnorm_mixes_are_refused():
    landscape = landscape_of("convolutions", batch_norm="train-frozen-buffers")
    for function in (gauss_newton_spectrum, gauss_newton_trace):
        with pytest.raises(InputError, match="batch_norm='eval'"):
            function(landscape)


def test_float32_ranks_count_no_noise():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    data = torch.randn(60, 5), torch.randint(0, 3, (60,))
    spectrum = gauss_newton_spectrum(LossLandscape(model, cross_entropy, data))
    assert spectrum.rank().value == 12  # (C - 1)(5 + 1), of 120 rows
