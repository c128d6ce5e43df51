from itertools import pairwise

import pytest
import torch
from torch import nn

from planimeter.curvature import (
    gauss_newton_rank_bound,
    hessian_rank_bound,
    published_rank_bound,
)
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape


def landscape(relu, rows):
    """The net on which methods' bound for linear networks is broken once it has ReLUs."""
    torch.manual_seed(0)
    between = nn.ReLU if relu else nn.Identity
    model = nn.Sequential(
        nn.Linear(8, 6), between(), nn.Linear(6, 5), between(), nn.Linear(5, 3)
    ).double()
    data = torch.randn(rows, 8).double(), torch.randint(0, 3, (rows,))
    return LossLandscape(model, nn.functional.cross_entropy, data)


def rank(matrix, tolerance=1e-10):
    values = torch.linalg.eigvalsh(matrix).abs()
    return int((values > tolerance * values.max()).sum())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [5, 400])
def test_the_gauss_newton_bound_always_holds(relu, rows):
    case = landscape(relu, rows)
    bound = gauss_newton_rank_bound(case)
    assert rank(case.gauss_newton().dense()) <= bound.value
    assert bound.value == min(case.num_parameters, 2 * rows)
    assert bound.assumption == "none"


@pytest.mark.parametrize("widths", [(20, 3), (30, 3, 2), (8, 5, 5, 3), (8, 6, 5, 3)])
@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, nn.functional.mse_loss])
def test_the_hessian_bound_holds_for_linear_networks(widths, loss):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)]).double()
    x, classes = torch.randn(100, widths[0]).double(), torch.randint(0, widths[-1], (100,))
    y = classes if loss is nn.functional.cross_entropy else torch.randn(100, widths[-1]).double()
    case = LossLandscape(model, loss, (x, y))
    assert rank(case.hessian().dense()) <= hessian_rank_bound(case).value


def test_where_bounds_break():
    """The published one for logistic regression, either for ReLU networks."""
    data = torch.randn(60, 20).double(), torch.randint(0, 3, (60,))
    logistic = LossLandscape(nn.Linear(20, 3).double(), nn.functional.cross_entropy, data)
    assert rank(logistic.hessian().dense()) == hessian_rank_bound(logistic).value == 42
    assert published_rank_bound(logistic).value == 18
    relu = landscape(True, 400)
    assert rank(relu.hessian().dense()) > hessian_rank_bound(relu).value
    assert "not so for ReLU" in str(hessian_rank_bound(relu))
    assert rank(landscape(False, 400).hessian().dense()) <= hessian_rank_bound(relu).value


def test_other_layers_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3))
    data = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    with pytest.raises(InputError, match="Conv2d"):
        hessian_rank_bound(LossLandscape(model, nn.functional.cross_entropy, data))


class Again(nn.Module):
    """A chain whose middle layer is applied several times."""

    def __init__(self, times, width=8, inputs=3, outputs=2, bias=True):
        super().__init__()
        self.first = nn.Linear(inputs, width, bias=bias)
        self.middle = nn.Linear(width, width, bias=bias)
        self.last = nn.Linear(width, outputs, bias=bias)
        self.times = times

    def forward(self, x):
        h = self.first(x)
        for _ in range(self.times):
            h = self.middle(h)
        return self.last(h)


class Tied(Again):
    """The same weights under two names."""

    def __init__(self):
        super().__init__(1)
        self.twin = nn.Linear(8, 8)
        self.twin.weight, self.twin.bias = self.middle.weight, self.middle.bias

    def forward(self, x):
        return self.last(self.twin(self.middle(self.twin(self.first(x)))))


class Tokens(nn.Module):
    """Layers on each of several tokens, mixed by a linear layer over them."""

    def __init__(self, tokens):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)
        self.mix = nn.Linear(tokens, 2)

    def forward(self, x):
        h = self.second(self.first(x))
        return self.mix(h.transpose(1, 2)).flatten(1)


class Skip(nn.Module):
    """No chain: two layers read the same, and their outputs are added to what skips them."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.a(h) + self.b(self.a(h)))


REPEATED = {
    "once": lambda: Again(1), "twice": lambda: Again(2), "six times": lambda: Again(6),
    "six times without biases": lambda: Again(6, bias=False), "tied": Tied,
    "wide": lambda: Again(2, width=20, inputs=2, outputs=1), "skip": Skip,
    "tokens": lambda: Tokens(5),
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATED)
def test_a_layer_counts_as_often_as_it_is_applied(name):
    torch.manual_seed(0)
    model = REPEATED[name]().double()
    shape = (40, 5, 2) if name == "tokens" else (40, next(model.parameters()).shape[1])
    inputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randn_like(model(inputs).detach())
    case = LossLandscape(model, nn.functional.mse_loss, (inputs, targets))
    assert rank(case.hessian().dense()) <= hessian_rank_bound(case).value <= case.num_parameters


def test_six_applications_have_the_bound_of_six_layers():
    torch.manual_seed(0)
    inputs, targets = torch.randn(50, 3).double(), torch.randn(50, 2).double()

    def bound(model):
        return hessian_rank_bound(
            LossLandscape(model.double(), nn.functional.mse_loss, (inputs, targets))
        )

    chain = nn.Sequential(nn.Linear(3, 8), *[nn.Linear(8, 8) for _ in range(6)], nn.Linear(8, 2))
    assert bound(chain).value == 2 * 4 + 2 * 2 * 7 * 8
    repeated = bound(Again(6))
    assert repeated.value == 122  # all parameters
    assert "once an application" in repeated.formula
    wide = Again(2, width=20, inputs=2, outputs=1)
    case = LossLandscape(wide.double(), nn.functional.mse_loss, (inputs[:, :2], targets[:, :1]))
    assert hessian_rank_bound(case).value == 3 + 2 * 3 * 20


class OutsideOfItsLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * self.layer(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.layer = nn.RNNCell(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(self.cell(x))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OutsideOfItsLayer, "'layer.weight' is used 2 times while its layers are called 1 times"),
        (OwnParameter, "OwnParameter with parameters scale"),
        (Recurrent, "'cell' is a RNNCell"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "ParametrizationList"),
    ],
)
def test_parameters_that_serve_elsewhere_are_refused(model, words):
    data = torch.randn(10, 3), torch.randn(10, 3)
    for bound in (hessian_rank_bound, published_rank_bound):
        with pytest.raises(InputError, match=words):
            bound(LossLandscape(model(), nn.functional.mse_loss, data))
