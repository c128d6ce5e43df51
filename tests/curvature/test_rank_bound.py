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
