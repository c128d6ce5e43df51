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
    result = keskar_sharpness(landscape, zeta=0.01, learning_rate=1.0, epochs=40)
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
        small_landscape, zeta=zeta, learning_rate=0.1, batch_size=41, epochs=200
    )
    assert full.value == pytest.approx(reference, rel=1e-4)
    # Mini-batch noise keeps weakly pulled coordinates off the corners: a lower bound, close by.
    stochastic = keskar_sharpness(small_landscape, zeta=zeta, learning_rate=0.1, epochs=200)
    assert 0.9 * reference < stochastic.value <= reference * (1 + 1e-9)
    assert stochastic.loss == pytest.approx(loss)
    assert np.all(np.diff(stochastic.curve) >= 0)


def test_small_boxes_see_the_gradient_and_larger_ones_more(small_landscape):
    values = [
        keskar_sharpness(small_landscape, zeta=z, learning_rate=0.1, batch_size=41, epochs=60).value
        for z in (1e-5, 1e-4, 1e-3)
    ]
    slope = (small_landscape.gradient().abs() * (small_landscape.theta.abs() + 1)).sum()
    expected = 100 * 1e-5 * float(slope) / (1 + small_landscape.loss())
    assert values[0] == pytest.approx(expected, rel=1e-3)
    assert values[0] < values[1] < values[2]


def test_an_unfinished_ascent_says_so(small_landscape):
    result = keskar_sharpness(small_landscape, zeta=1e-2, learning_rate=1e-4, epochs=20)
    assert not result.converged
    assert result.residual > 0.01
    assert "NOT CONVERGED" in str(result.as_estimate())


@pytest.mark.parametrize("setting", ["zeta", "learning_rate", "epochs"])
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
    result = keskar_sharpness(nudged, zeta=1e-2, learning_rate=1.0, epochs=50)
    top = float(top_eigenvalues(landscape.hessian()).values[0])
    diagonal = float(((landscape.theta.abs() + 1) * 1e-2).norm())
    assert 0 < result.value / 100 * (1 + result.loss) <= 0.5 * top * diagonal**2 * (1 + 1e-6)
