import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from planimeter.curvature import top_eigenvalues
from planimeter.errors import InputError
from planimeter.flatness import keskar_sharpness
from planimeter.landscape import LossLandscape


def test_a_quadratic_has_a_closed_form():
    # L(w) = mean (w x - y)^2 with x = 1, y = 0 and w = 0: L = w^2, the box is |w| <= zeta.
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 1e-9)  # off the exact minimum, where the slope is 0
    data = (torch.ones(10, 1).double(), torch.zeros(10, 1).double())
    landscape = LossLandscape(model, torch.nn.functional.mse_loss, data)
    result = keskar_sharpness(landscape, method="sgd", zeta=0.01, learning_rate=1.0, epochs=40)
    assert result.value == pytest.approx(100 * 0.01**2, rel=1e-5)
    assert result.converged
    assert result.zeta == 0.01
    assert result.as_estimate().value == result.value


def test_against_lbfgsb(small_landscape):
    """SGD finds what the reference maximiser of the paper finds (Keskar et al. 2016)."""
    zeta, theta, loss = 1e-3, small_landscape.theta, small_landscape.loss()

    def negative(flat):
        other = small_landscape.at(torch.from_numpy(flat))
        return -other.loss(), -other.gradient().numpy()

    width = zeta * (theta.abs().numpy() + 1)
    bounds = list(zip(theta.numpy() - width, theta.numpy() + width, strict=True))
    best = -minimize(negative, theta.numpy(), jac=True, bounds=bounds, method="L-BFGS-B").fun
    reference = 100 * (best - loss) / (1 + loss)
    full = keskar_sharpness(
        small_landscape, method="sgd", zeta=zeta, learning_rate=0.1, batch_size=41, epochs=200
    )
    assert full.value == pytest.approx(reference, rel=1e-4)
    # Mini-batch noise keeps weakly pulled coordinates off the corners: a lower bound, close by.
    stochastic = keskar_sharpness(
        small_landscape, method="sgd", zeta=zeta, learning_rate=0.1, epochs=200
    )
    assert 0.9 * reference < stochastic.value <= reference * (1 + 1e-9)
    assert stochastic.loss == pytest.approx(loss)
    assert np.all(np.diff(stochastic.curve) >= 0)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sgd", {"learning_rate": 0.1, "batch_size": 41, "epochs": 60}),
        ("sign", {}),
        ("lbfgs", {"steps": 30}),
    ],
)
def test_small_boxes_see_the_gradient_and_larger_ones_more(small_landscape, method, settings):
    values = [
        keskar_sharpness(small_landscape, method=method, zeta=z, **settings).value
        for z in (1e-5, 1e-4, 1e-3)
    ]
    slope = (small_landscape.gradient().abs() * (small_landscape.theta.abs() + 1)).sum()
    expected = 100 * 1e-5 * float(slope) / (1 + small_landscape.loss())
    assert values[0] == pytest.approx(expected, rel=1e-3)
    assert values[0] < values[1] < values[2]


def test_an_unfinished_ascent_says_so(small_landscape):
    result = keskar_sharpness(
        small_landscape, method="sgd", zeta=1e-2, learning_rate=1e-4, epochs=20
    )
    assert not result.converged
    assert result.residual > 0.01
    assert "NOT CONVERGED" in str(result.as_estimate())


@pytest.mark.parametrize("setting", ["zeta", "learning_rate", "epochs", "steps"])
def test_settings_must_be_positive(small_landscape, setting):
    with pytest.raises(InputError, match=f"{setting} must be positive"):
        keskar_sharpness(small_landscape, **{setting: 0})


def test_at_a_minimum_it_is_bounded_by_the_curvature():
    """zeta^2 lambda_max/2 times the squared box diagonal bounds the rise of a quadratic."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1, bias=False).double()
    inputs = torch.randn(30, 4).double()
    targets = (inputs @ model.weight.detach().T).clone()
    landscape = LossLandscape(model, torch.nn.functional.mse_loss, (inputs, targets))
    nudged = landscape.at(landscape.theta + 1e-9)
    result = keskar_sharpness(nudged, method="sgd", zeta=1e-2, learning_rate=1.0, epochs=50)
    top = float(top_eigenvalues(landscape.hessian()).values[0])
    diagonal = float(((landscape.theta.abs() + 1) * 1e-2).norm())
    assert 0 < result.value / 100 * (1 + result.loss) <= 0.5 * top * diagonal**2 * (1 + 1e-6)


def three_parameters():
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1).double()
    x = torch.randn(30, 2).double()
    y = (x.sum(1, keepdim=True) + 0.3 * torch.randn(30, 1).double() > 0).double()
    return LossLandscape(model, torch.nn.functional.binary_cross_entropy_with_logits, (x, y))


@pytest.mark.parametrize("zeta", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("method", ["sign", "lbfgs"])
def test_against_every_corner_of_the_box(zeta, method):
    """The logistic loss is convex, so its maximum is in a corner."""
    landscape = three_parameters()
    theta, loss = landscape.theta, landscape.loss()
    corners = [torch.tensor(c).double() for c in itertools.product((-1, 1), repeat=3)]
    best = max(landscape.at(theta + zeta * (theta.abs() + 1) * c).loss() for c in corners)
    found = keskar_sharpness(landscape, method=method, zeta=zeta, steps=60)
    assert found.value == pytest.approx(100 * (best - loss) / (1 + loss), rel=1e-6)
    assert found.max_loss == pytest.approx(best)
    assert np.all(np.diff(found.curve) >= 0)


def test_the_sign_gradient_finds_what_lbfgsb_finds(small_landscape):
    for zeta in (1e-4, 1e-3, 1e-2):
        sign = keskar_sharpness(small_landscape, zeta=zeta)
        reference = keskar_sharpness(small_landscape, method="lbfgs", zeta=zeta, steps=200)
        assert sign.value >= 0.98 * reference.value


@pytest.mark.parametrize("method", ["sign", "sgd", "lbfgs"])
def test_a_random_subspace(method):
    """q = P is the whole space in other coordinates; the box of one dimension has two ends."""
    landscape = three_parameters()
    settings = {"learning_rate": 1.0, "batch_size": 30, "steps": 40}
    found = keskar_sharpness(landscape, method=method, zeta=0.1, subspace=1, seed=3, **settings)
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    a = (a / a.norm())[:, 0]
    width = 0.1 * (abs(float(a @ landscape.theta)) + 1)
    ends = [landscape.at(landscape.theta + s * width * a).loss() for s in (-1, 1)]
    expected = 100 * (max(ends) - found.loss) / (1 + found.loss)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.subspace == 1
    with pytest.raises(InputError, match="1 to 3 dimensions, not 4"):
        keskar_sharpness(landscape, subspace=4)


def test_a_loss_that_is_not_finite_at_the_edge():
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 700.0)
    data = (torch.ones(4, 1).double(), torch.zeros(4, 1).double())

    def exploding(outputs, targets):
        return outputs.exp().mean()

    landscape = LossLandscape(model, exploding, data)
    with pytest.raises(InputError, match=r"inside the box of zeta 0.1 the loss is inf.*smaller"):
        keskar_sharpness(landscape, zeta=0.1)


def test_an_unknown_method(small_landscape):
    with pytest.raises(InputError, match="no method 'adam'; there are sign, sgd, lbfgs"):
        keskar_sharpness(small_landscape, method="adam")
